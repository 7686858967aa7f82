"""generate against a server of fixed service rate: the rate it is kept at beside that of a bare load.

The server (_rate_server.py, a process of its own) completes RATE requests a second and times itself, from the first
request's arrival to the last answer. The other side is 64 sockets that send the same bytes again as soon as they are
answered: the rate that a server of this kind reaches on this machine at this moment. Beside it stands the share of
the nominal rate, and the CPU time of the whole call (reading seeds, asking, writing pairs) for one request.

python -m benchmarks.generate [--rates 50 100 200 400] [--seconds 4] [--pairs 10] [--answer-tokens 500]
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from tools.synthesis.generate import generate
from tools.synthesis.options import GenerateOptions

SERVER = Path(__file__).with_name("_rate_server.py")
CONCURRENCY = 64
TARGET_SHARE = 0.95


async def bare(port: int, number: int, body: bytes) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    left = iter(range(number))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().partition(b"content-length:")[2].split()[0]))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def write_seeds(path: Path, number: int) -> Path:
    text = "A stone falls from a tower and we time it. " * 20
    rows = [
        {"text": f"Snippet {i}. {text}", "seed_id": str(i), "seed_hash": f"{i:032x}", "discipline": "physics",
         "language": "en"}
        for i in range(number)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(record: Record, rate: float, folder: Path, arguments: argparse.Namespace) -> None:
    number = int(rate * arguments.seconds)
    seeds = write_seeds(folder / "seeds.jsonl", number)
    command = [sys.executable, str(SERVER), str(rate), str(arguments.answer_tokens)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    calls, shares, cpu, server_cpu = 0, [], [], []

    def served() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/stats", trust_env=False).json()
        return found

    def ours() -> float:
        nonlocal calls
        calls += 1
        before = time.process_time()
        options = GenerateOptions(
            seeds=(str(seeds),), out=folder / f"{rate:g}-{calls}", model="m",
            endpoints=(f"http://127.0.0.1:{port}/v1",), concurrency=CONCURRENCY,
        )  # fmt: skip
        report = generate(options)
        cpu.append(1000 * (time.process_time() - before) / number)
        stats = served()
        assert report["pairs"] == number == stats["served"]
        server_cpu.append(1000 * stats["cpu_seconds"] / number)
        shares.append(number / stats["seconds"] / rate)
        return number / float(stats["seconds"])

    def theirs() -> float:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "A stone falls. " * 200}]}).encode()
        asyncio.run(bare(port, number, body))
        return number / float(served()["seconds"])

    try:
        pairs = interleaved(ours, theirs, num_pairs=arguments.pairs)
    finally:
        server.kill()
        server.wait()
    what = (
        f"`syne synth generate` at concurrency {CONCURRENCY} to as many bare sockets, requests/s, server of {rate:g}/s"
    )
    bare_share = statistics.median(pair[1] for pair in pairs) / rate
    note = (
        f"{number} requests; share of the nominal rate {statistics.median(shares[1:]):.1%}, least "
        f"{min(shares[1:]):.1%}, bare {bare_share:.1%}"
    )
    record.add(Figure.of(what, ratio_of(pairs), target=TARGET_SHARE, note=note))
    what = f"CPU a request of the whole call at {rate:g}/s"
    note = f"the server's own {statistics.median(server_cpu[1:]):.2f} ms"
    record.add(Figure(what=what, value=statistics.median(cpu[1:]), unit="ms", note=note))


def main() -> None:
    parser = parser_of(__doc__, seconds=4.0, pairs=10, answer_tokens=500)
    parser.add_argument("--rates", type=float, nargs="+", default=[50, 100, 200, 400])
    arguments = parser.parse_args()
    with Record("generate", keep=arguments.record) as record, tempfile.TemporaryDirectory() as name:
        for rate in arguments.rates:
            measure(record, rate, Path(name), arguments)


if __name__ == "__main__":
    main()
