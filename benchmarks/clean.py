"""`syne data clean` beside datatrove's own pipeline of the same steps: MB of text per CPU-second of all processes.

Both read the same JSONL, drop repetitive documents by Gopher's thresholds, find near-duplicates by MinHash with 14
bands of 8 hashes, and write kept and dropped documents; ours finds exact duplicates too. datatrove splits words at
blanks here, which is its cheapest way (its English one needs spaCy). Each side is a process of its own, start-up
included, in interleaved pairs. The text is the standard library of the Python that runs this, cut into
pieces, some of them twice.

python -m benchmarks.clean [--megabytes 12] [--pairs 5] [--text FILE.jsonl]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of

PIECE_CHARACTERS = 4000
EVERY_TWICE = 10  # one of so many pieces comes a second time


def write_text(path: Path, size: int) -> None:
    """About `size` bytes of JSONL."""
    number = written = 0
    with path.open("w", encoding="utf-8") as stream:
        for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
            try:
                text = source.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            for start in range(0, len(text), PIECE_CHARACTERS):
                piece = text[start : start + PIECE_CHARACTERS]
                number += 1
                for copy in range(2 if number % EVERY_TWICE == 0 else 1):
                    row = {"text": piece, "id": f"{number}-{copy}"}
                    written += stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                if written >= size:
                    return


def ours(path: Path, out: Path) -> None:
    from tools.data.clean import CleanOptions, clean

    clean(CleanOptions(inputs=(str(path),), out=out))


def theirs(path: Path, out: Path) -> None:
    import xxhash
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Blanks(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    words = Blanks()

    class Signature(MinhashDedupSignature):
        """xxhash 4 takes no text any more, which datatrove 0.10 gives it."""

        def __init__(self) -> None:
            super().__init__(str(out / "sig"), config=config, language=words)
            self._hash_func = lambda text: xxhash.xxh32_intdigest(text.encode())

    config = MinhashConfig(hash_config=HashConfig(precision=32))
    reader = JsonlReader(str(path.parent), glob_pattern=path.name)
    gopher = GopherRepetitionFilter(exclusion_writer=JsonlWriter(str(out / "repetitive")), language=words)
    without_copies = MinhashDedupFilter(str(out / "remove"), exclusion_writer=JsonlWriter(str(out / "dropped")))
    steps = [
        ([reader, gopher, JsonlWriter(str(out / "filtered"))], 1),
        ([JsonlReader(str(out / "filtered")), Signature()], 1),
        ([MinhashDedupBuckets(str(out / "sig"), str(out / "dup"), config=config)], config.num_buckets),
        ([MinhashDedupCluster(str(out / "dup"), str(out / "remove"), config=config)], 1),
        ([JsonlReader(str(out / "filtered")), without_copies, JsonlWriter(str(out / "kept"))], 1),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(out / f"log{number}")).run()


def cpu_seconds(side: str, path: Path) -> float:
    """Of one side's process and its children."""
    with tempfile.TemporaryDirectory() as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.clean", "--side", side, "--text", str(path), "--out", out],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{side} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = parser_of(__doc__, megabytes=12.0, pairs=5)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        {"ours": ours, "theirs": theirs}[arguments.side](arguments.text.resolve(), arguments.out)
        return
    with Record("clean", keep=arguments.record) as record, tempfile.TemporaryDirectory() as folder:
        path = arguments.text or Path(folder) / "in/text.jsonl"
        if arguments.text is None:
            path.parent.mkdir()
            write_text(path, int(arguments.megabytes * 1e6))
        megabytes = path.stat().st_size / 1e6
        pairs = interleaved(
            lambda: megabytes / cpu_seconds("ours", path),
            lambda: megabytes / cpu_seconds("theirs", path),
            num_pairs=arguments.pairs,
        )
        what = (
            "`syne data clean` to datatrove's own pipeline of the same steps (its words split at blanks), MB per "
            f"CPU-second of {megabytes:.0f} MB of source code, start-up included"
        )
        medians = [statistics.median(rates) for rates in zip(*pairs, strict=True)]
        note = f"{medians[0]:.2f} against {medians[1]:.2f}"
        record.add(Figure.of(what, ratio_of(pairs), target=2.0, note=note))


if __name__ == "__main__":
    main()
