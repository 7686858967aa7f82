"""A server with OpenAI's interface and a fixed service rate: _rate_server.py RATE ANSWER_TOKENS. Its port is printed.

It completes one request every 1 / RATE seconds, the oldest first, however many wait. The slots are deadlines on the
clock, each one slot after the one before while requests wait, so that a late timer delays an answer and loses no slot.
GET /stats: what it served since it was last asked, by its own clock, and its own CPU.
"""

import asyncio
import json
import re
import sys
import time
from collections import deque

SECTION = "The stone falls for t seconds, so it has fallen g t t / 2 metres in that time. "


class _State:
    def __init__(self, rate: float, answer_tokens: int) -> None:
        self.slot_seconds = 1 / rate
        self.waiting: deque[tuple[float, asyncio.Transport]] = deque()
        self.next_slot = 0.0
        self.timer: asyncio.TimerHandle | None = None
        text = f"[Problem]\nHow far?\n[Solution]\n{SECTION * (answer_tokens // 20)}\n5 m"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 300, "completion_tokens": answer_tokens}
        self.answer = _response({"object": "chat.completion", "choices": [choice], "usage": usage})
        self._begin()

    def _begin(self) -> None:
        self.served = self.most_waiting = 0
        self.first = self.last = 0.0
        self.cpu = time.process_time()

    def stats(self) -> dict[str, float]:
        """Since the last call of this."""
        found = {
            "served": self.served,
            "seconds": self.last - self.first,
            "cpu_seconds": time.process_time() - self.cpu,
            "most_waiting": self.most_waiting,
        }
        self._begin()
        return found

    def ask(self, transport: asyncio.Transport) -> None:
        now = asyncio.get_running_loop().time()
        self.first = self.first or now
        self.next_slot = max(now, self.next_slot) + self.slot_seconds
        self.waiting.append((self.next_slot, transport))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        if self.timer is None:
            self._wait()

    def _wait(self) -> None:
        self.timer = asyncio.get_running_loop().call_at(self.waiting[0][0], self._serve)

    def _serve(self) -> None:
        self.timer = None
        now = asyncio.get_running_loop().time()
        while self.waiting and self.waiting[0][0] <= now:
            _, transport = self.waiting.popleft()
            transport.write(self.answer)
            self.served += 1
            self.last = now
        if self.waiting:
            self._wait()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, state: _State) -> None:
        self.state, self.received = state, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        if self.received.startswith(b"GET"):
            self.received.clear()
            self.transport.write(_response(self.state.stats()))
            return
        length = re.search(rb"content-length: *(\d+)", self.received[:end], re.IGNORECASE)
        assert length is not None
        if len(self.received) >= end + 4 + int(length[1]):
            self.received.clear()
            self.state.ask(self.transport)


def _response(content: object) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def main() -> None:
    state = _State(float(sys.argv[1]), int(sys.argv[2]))
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(state), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
