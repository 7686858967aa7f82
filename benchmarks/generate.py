"""generate against a server of fixed rate: our answers a second beside those of a bare load of the same requests.

The server completes RATE requests a second, one slot after the other. The other side is a loop of plain httpx posts at
the same concurrency, so the ratio holds what our bookkeeping costs; the first figure is the share of the fixed rate.

python -m benchmarks.generate [--rate 200] [--seeds 2000] [--pairs 5]
"""

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.pairs import interleaved, ratio_of
from tools.synthesis.generate import GenerateOptions, generate

SERVER = Path(__file__).parents[1] / "tests" / "synthesis" / "faulty_model_server.py"
CONCURRENCY = 64
TARGET_SHARE = 0.95


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def bare(url: str, number: int) -> None:
    left = iter(range(number))
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:

        async def work() -> None:
            for _ in left:
                (await client.post(f"{url}/chat/completions", json={"messages": []})).raise_for_status()

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = folder / "seeds.jsonl"
        rows = [
            {"text": f"Snippet {i}. " + "A stone falls from a tower and we time it. " * 20, "seed_id": str(i),
             "seed_hash": f"{i:032x}", "discipline": "physics", "language": "en"}
            for i in range(arguments.seeds)
        ]  # fmt: skip
        seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
        server = subprocess.Popen(
            [sys.executable, str(SERVER), str(folder / "log"), str(arguments.rate)], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        calls, shares, cpu = 0, [], []

        def ours() -> float:
            nonlocal calls
            calls += 1
            started, before = time.monotonic(), cpu_seconds()
            options = GenerateOptions(
                seeds=(str(seeds),), out=folder / f"out{calls}", model="m", endpoints=(url,), concurrency=CONCURRENCY
            )
            report = generate(options)
            cpu.append(1000 * (cpu_seconds() - before) / arguments.seeds)
            assert report["pairs"] == arguments.seeds
            shares.append(arguments.seeds / report["last_call"]["seconds"] / arguments.rate)
            return arguments.seeds / (time.monotonic() - started)

        def theirs() -> float:
            started = time.monotonic()
            asyncio.run(bare(url, arguments.seeds))
            return arguments.seeds / (time.monotonic() - started)

        try:
            pairs = interleaved(ours, theirs, num_pairs=arguments.pairs)
        finally:
            server.kill()
            server.wait()
    share = statistics.median(shares[1:])
    verdict = "met" if min(shares[1:]) >= TARGET_SHARE else "missed"
    print(
        f"asking: {share:.1%} of {arguments.rate:g} requests/s at concurrency {CONCURRENCY} (median, least "
        f"{min(shares[1:]):.1%}), target {TARGET_SHARE:.0%} {verdict}"
    )
    print(f"client CPU: {statistics.median(cpu[1:]):.2f} ms a request")
    print(f"the whole call beside bare posts: {ratio_of(pairs).against(TARGET_SHARE)}")


if __name__ == "__main__":
    main()
