"""The mixer at 100 B tokens beside megatron-core's own blend, and reading beside its GPTDataset.

Scale: 22 topics, 91 M documents (real .idx, sparse .bin), 12.2 M samples of 8,192 tokens. Both sides in processes of
their own: ours opens, changes weights, seeks; megatron-core builds its BlendedDataset, then builds it for new weights.
Reads: samples of 8,192 from a file of random content on disk, both sides returning tokens, labels, loss mask and
document boundaries (megatron-core as restarting positions), in interleaved pairs.

python -m benchmarks.mixer [--documents 91000000] [--read-gb 8] [--pairs 10] [--theirs/--no-theirs]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from data_mixers.manifest import (
    IDX_HEADER,
    IDX_MAGIC,
    SCHEMA_VERSION,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
)
from data_mixers.mixture import PlannedPhase, Reweight, compose
from data_mixers.sampling import Sampler

TOPICS, SEQ_LENGTH, TOKENS = 22, 8192, 100_000_000_000
INT32 = 4
VOCAB = 128_256


def write_pair(prefix: Path, lengths: np.ndarray, *, content: bool) -> None:
    """A real .idx for documents of these lengths, and its .bin: sparse, or of random tokens."""
    pointers = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], out=pointers[1:])
    with prefix.with_suffix(".idx").open("wb") as stream:
        stream.write(IDX_HEADER.pack(IDX_MAGIC, 1, INT32, len(lengths), len(lengths) + 1))
        stream.write(lengths.astype(np.int32).tobytes())
        stream.write((pointers * INT32).tobytes())
        stream.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
    size = int(lengths.sum()) * INT32
    with prefix.with_suffix(".bin").open("wb") as stream:
        block = np.random.default_rng(0).integers(3, VOCAB, 1 << 24, dtype=np.int32).tobytes()
        while content and stream.tell() < size:
            stream.write(block[: size - stream.tell()])
        stream.truncate(size)


def manifest(folder: Path, prefixes: dict[str, int]) -> DatasetManifest:
    """As preprocess would have written it: prefix -> tokens. Hashes are not looked at here."""
    sources = tuple(
        SourceEntry(
            name=f"zh/web/{name}", language="zh", source="web", topic=name, bucket=None, role="train",
            shards=(
                ShardEntry(
                    prefix=name, num_documents=1, num_tokens=tokens, text_bytes=1, bin_size_bytes=tokens * INT32,
                    idx_size_bytes=1, bin_sha256="0", idx_sha256="0",
                ),
            ),
        )
        for name, tokens in prefixes.items()
    )  # fmt: skip
    identity = TokenizerIdentity(digest="0", vocab_size=VOCAB, eos_id=2, bos_id=1)
    return DatasetManifest(
        schema_version=SCHEMA_VERSION, folder=folder, tokenizer=identity, dtype="int32", sources=sources
    )


def anonymous_mb() -> float:
    """Memory that is no file's: what stays when the maps are taken away."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def ours_at_scale(folder: Path, sizes: dict[str, int]) -> dict[str, float]:
    """Open, read one sample of every topic, take new weights, seek."""
    from megatron_synE.data.scheduled_dataset import ScheduledDataset

    made = manifest(folder, sizes)
    entries = {entry.name: entry for entry in made.sources}
    shares = {name: Fraction(index + 1, TOPICS * (TOPICS + 1) // 2) for index, name in enumerate(entries)}
    samples = TOKENS // SEQ_LENGTH
    planned = [PlannedPhase(name="s", stage="s", num_samples=samples, weights=shares)]
    written, memory = bytes_below(folder), anonymous_mb()
    started = time.perf_counter()
    schedule = compose(planned, (), entries, seed=1, seq_length=SEQ_LENGTH)
    dataset = ScheduledDataset(schedule, [made])
    for index in range(TOPICS):
        dataset._file(index, 0)
    opened = time.perf_counter() - started
    weights = []
    for number in range(20):
        ratios = tuple((e.topic, (i + 1 + number % 3) / 500) for i, e in enumerate(entries.values()))
        started = time.perf_counter()
        changed = compose(
            planned, [Reweight(start_sample=samples // 2, group="zh/web", ratios=ratios)], entries, seed=1,
            seq_length=SEQ_LENGTH,
        )  # fmt: skip
        other = dataset.with_schedule(changed)
        Sampler(changed)
        weights.append(time.perf_counter() - started)
    sampler = Sampler(other.schedule)
    places = np.random.default_rng(1).integers(0, samples, 2000).tolist()
    started = time.perf_counter()
    for place in places:
        sampler.address(place)
    seek = (time.perf_counter() - started) / len(places)
    for place in places[:200]:
        other[place]
    return {
        "open_ms": 1000 * opened,
        "new_weights_ms": 1000 * sorted(weights)[len(weights) // 2],
        "seek_us": 1e6 * seek,
        "bytes_written": bytes_below(folder) - written,
        "memory_mb": anonymous_mb() - memory,
    }


def core_dataset(prefixes: list[Path], weights: list[float], samples: int, cache: Path) -> Any:
    """megatron-core's own, as pretrain_gpt.py builds it: (dataset)."""
    import torch.distributed as dist
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=SEQ_LENGTH, blend=([str(p) for p in prefixes], weights), split="1,0,0",
        path_to_cache=str(cache), tokenizer=NullTokenizer(VOCAB), reset_position_ids=True, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False, mmap_bin_files=True,
    )  # fmt: skip
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def theirs_at_scale(folder: Path, sizes: dict[str, int]) -> dict[str, float]:
    """Build, then build for other weights; the cache is on disk between them, as in a restarted run."""
    prefixes = [folder / name for name in sizes]
    cache = folder / "cache"
    seconds = []
    memory = anonymous_mb()
    for shift in (0, 1):
        weights = [float(index + 1 + shift) for index in range(TOPICS)]
        started, cpu = time.perf_counter(), time.process_time()
        core_dataset(prefixes, weights, TOKENS // SEQ_LENGTH, cache)
        seconds.append((time.perf_counter() - started, time.process_time() - cpu))
    return {
        "open_ms": 1000 * seconds[0][0], "new_weights_ms": 1000 * seconds[1][0],
        "new_weights_cpu_ms": 1000 * seconds[1][1], "bytes_written": bytes_below(cache),
        "memory_mb": anonymous_mb() - memory,
    }  # fmt: skip


def reads(folder: Path, record: Record, gigabytes: float, pairs: int) -> None:
    """Samples a second of one process, in shuffled order over a file of this size."""
    import torch

    from megatron_synE.data.scheduled_dataset import ScheduledDataset

    torch.set_num_threads(1)
    tokens = int(gigabytes * 1e9) // INT32
    lengths = np.full(tokens // 1000, 1000)
    write_pair(folder / "read", lengths, content=True)
    made = manifest(folder, {"read": int(lengths.sum())})
    entries = {entry.name: entry for entry in made.sources}
    samples = int(lengths.sum()) // SEQ_LENGTH - 2
    planned = [PlannedPhase(name="s", stage="s", num_samples=samples, weights={"zh/web/read": Fraction(1)})]
    ours = ScheduledDataset(compose(planned, (), entries, seed=1, seq_length=SEQ_LENGTH), [made])
    theirs = core_dataset([folder / "read"], [1.0], samples, folder / "read_cache")
    mask = torch.ones(SEQ_LENGTH)
    # Both sides read the same number of samples, each in its own shuffled order, every time others.
    size = min(400, samples // (pairs + 1))

    def read_ours(number: int) -> float:
        started = time.perf_counter()
        for index in range(number * size, (number + 1) * size):
            sample = ours[index]
            row = torch.from_numpy(sample.tokens)
            _ = {"tokens": row[:-1], "labels": row[1:], "loss_mask": mask.clone(), "starts": sample.document_starts}
        return size / (time.perf_counter() - started)

    def read_theirs(number: int) -> float:
        started = time.perf_counter()
        for index in range(number * size, (number + 1) * size):
            theirs[index]
        return size / (time.perf_counter() - started)

    counters = {"ours": 0, "theirs": 0}

    def turn(name: str, read: Any) -> float:
        counters[name] += 1
        return float(read(counters[name] - 1))

    measured = interleaved(lambda: turn("ours", read_ours), lambda: turn("theirs", read_theirs), num_pairs=pairs)
    middle = [sorted(side)[len(side) // 2] for side in zip(*measured, strict=True)]
    what = (
        f"reads of {SEQ_LENGTH:,} tokens with labels, mask and boundaries from {gigabytes:g} GB, one core, to "
        "megatron-core's GPTDataset"
    )
    note = f"{middle[0]:,.0f} against {middle[1]:,.0f} samples/s"
    record.add(Figure.of(what, ratio_of(measured), target=1.0, note=note))


LIMITS = {
    "open_ms": ("the mixer opened", "ms", 100.0),
    "new_weights_ms": ("… new weights", "ms", 10.0),
    "seek_us": ("… seek of one sample", "µs", 1000.0),
    "bytes_written": ("… bytes written", "bytes", 0.0),
    "memory_mb": ("… memory above the maps", "MB", 50.0),
}


def in_a_process_of_its_own(side: str, folder: Path, sizes: dict[str, int]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.mixer", "--side", side, "--folder", str(folder)],
        input=json.dumps(sizes), capture_output=True, text=True, check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = parser_of(__doc__, documents=91_000_000, read_gb=8.0, pairs=10)
    parser.add_argument("--theirs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        act = ours_at_scale if options.side == "ours" else theirs_at_scale
        print(json.dumps(act(options.folder, json.loads(sys.stdin.read()))))
        return
    with Record("mixer", keep=options.record) as record:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            per_topic = options.documents // TOPICS
            sizes = {}
            for topic in range(TOPICS):
                lengths = np.random.default_rng(topic).integers(100, 2 * TOKENS // options.documents - 100, per_topic)
                write_pair(folder / f"topic{topic:02d}", lengths, content=False)
                sizes[f"topic{topic:02d}"] = int(lengths.sum())
            size = f"{TOPICS} topics, {per_topic * TOPICS:,} documents, {sum(sizes.values()) / 1e9:.1f} B tokens"
            ours = in_a_process_of_its_own("ours", folder, sizes)
            theirs = in_a_process_of_its_own("theirs", folder, sizes) if options.theirs else {}
            for key, (name, unit, limit) in LIMITS.items():
                note = f"megatron-core {theirs[key]:,.0f} {unit}" if key in theirs else ""
                what = f"{name}, {size}"
                record.add(Figure(what=what, value=ours[key], unit=unit, target=limit, at_most=True, note=note))
        with tempfile.TemporaryDirectory() as name:
            reads(Path(name), record, options.read_gb, options.pairs)


if __name__ == "__main__":
    main()
