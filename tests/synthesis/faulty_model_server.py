"""A server with OpenAI's interface that errs by a plan: faulty_model_server.py LOG [DELAY] [GATHER].

The word after FAULT in a question says what its first two answers (or, with `always`, all of them) are like.
LOG gets a line a request: the fault or the question, when it came, how many were open then; LOG.keys the key last
sent. DELAY: seconds before each answer; GATHER: none is given before so many are open at once. A question with HOLD is
never answered.
Environment: SYNE_TEST_REFUSED, every request with this text in its body is answered 422; SYNE_TEST_PLAIN, the fault of
the question "Say yes.".
"""

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

LOG = Path(sys.argv[1])
DELAY = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
GATHER = int(sys.argv[3]) if len(sys.argv) > 3 else 0
REFUSED, PLAIN = (os.environ.get(f"SYNE_TEST_{name}", "") for name in ("REFUSED", "PLAIN"))
seen: Counter[str] = Counter()
num_open = most_open = 0


def answer(text: str | list[dict[str, str]] | None, reason: str = "stop") -> bytes:
    return json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 7},
        }
    ).encode()


TEXT = "[Problem]\nWhat is 1 + 1?\n[Solution]\n1 + 1 = 2\n2"
GOOD = answer(TEXT)
THOUGHT = "<think>\nFirst the [Problem], then its [Solution]."
PARTS = [{"type": "reasoning", "text": "Hm."}, *({"type": "text", "text": half} for half in (TEXT[:30], TEXT[30:]))]
WAITS = {"429": 0, "wait": 2, "busy": 300}  # Retry-After of a 429
BODIES = {
    "broken": GOOD[:-30], "empty": answer(""), "long": answer("x" * 100_000), "in_parts": answer(PARTS),
    "thought": answer(f"{THOUGHT}\n</think>\n\n{TEXT}"), "endless_thought": answer(THOUGHT, "length"),
    "uncounted": GOOD.replace(b": 7", b": null"),
    **{reason: answer(None, reason) for reason in ("length", "content_filter")},
}  # fmt: skip


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global num_open, most_open
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head, re.I).group(1))  # type: ignore[union-attr]
            body = await reader.readexactly(length)
            asked = json.loads(body)["messages"][-1]["content"]
            if asked == "Say yes." and PLAIN:
                asked = f"FAULT always {PLAIN} 0"
            found = re.search(r"FAULT (always )?(\S+) (\d+)", asked)
            fault = found.group(2) if found else ""
            key = found.group(0) if found else asked
            seen[key] += 1
            num_open += 1
            most_open = max(most_open, num_open)
            if sent := re.search(rb"authorization: ([^\r]*)", head, re.I):
                LOG.with_suffix(".keys").write_bytes(sent.group(1))
            with LOG.open("a") as stream:
                stream.write(json.dumps([key, time.monotonic(), num_open]) + "\n")
            try:
                while most_open < GATHER:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(3600 if "HOLD" in asked else DELAY)
            finally:
                num_open -= 1
            if REFUSED and REFUSED.encode() in body:
                await send(writer, 422, json.dumps({"detail": f"not permitted: {REFUSED}"}).encode())
                continue
            if fault and (seen[key] <= 2 or (found and found.group(1))):
                if fault in WAITS:
                    await send(writer, 429, b"{}", f"Retry-After: {WAITS[fault]}\r\n")
                elif fault.isdigit():
                    await send(writer, int(fault), b"{}")
                elif fault == "slow":
                    await asyncio.sleep(30)
                elif fault == "cut":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + GOOD[:40])
                    await writer.drain()
                    return
                elif fault in BODIES:
                    await send(writer, 200, BODIES[fault])
                elif fault == "long_endless":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000000\r\n\r\n")
                    for _ in range(2000):
                        writer.write(b"x" * 1_000_000)
                        await writer.drain()
                    return
                continue
            await send(writer, 200, GOOD)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def send(writer: asyncio.StreamWriter, status: int, body: bytes, more: str = "") -> None:
    writer.write(f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
