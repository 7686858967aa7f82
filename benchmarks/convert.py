"""Import and export against a plain streamed write with fsync of the same bytes to the same disk.

python -m benchmarks.convert [--folder DIR] [--gigabytes 1.0] [--pairs 10]
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from megatron_synE.checkpoint.hf_export import write_hf_folder
from megatron_synE.checkpoint.hf_mapping import hf_shapes
from megatron_synE.checkpoint.hf_verify import verify_folder
from megatron_synE.checkpoint.safetensors_file import SafetensorsWriter
from megatron_synE.model.llama import LlamaArchitecture, hf_config_of
from tools.checkpoint.importer import import_hf
from tools.checkpoint.meter import Meter

TARGET = 0.7
"""Ours: reading, checking and hashing on the way may cost 30 % of the disk's rate."""
_WRITE_BYTES = 16 << 20
_LARGEST_TENSOR_BYTES = 2 * 32000 * 2048  # the embedding


def random_hf_folder(folder: Path, *, gigabytes: float) -> int:
    """A random bf16 Llama with the proportions of TinyLlama; gives its bytes of weights."""
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * 32000 * 2048) / 44e6))
    architecture = LlamaArchitecture(
        num_layers=layers, hidden_size=2048, ffn_hidden_size=5632, num_attention_heads=32, num_query_groups=4,
        kv_channels=64, vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf_config_of(architecture)))
    shapes = {name: (torch.bfloat16, shape) for name, shape in hf_shapes(architecture).items()}
    generator = torch.Generator().manual_seed(0)
    with SafetensorsWriter(folder / "model.safetensors", shapes) as writer:
        for dtype, shape in shapes.values():
            writer.append(torch.empty(shape, dtype=dtype).normal_(0.0, 0.02, generator=generator))
    return 2 * architecture.num_parameters


def streamed_write(file: Path, *, size_bytes: int) -> float:
    """GB/s of writing that many bytes and fsync."""
    block = memoryview(bytearray(os.urandom(1 << 20)) * (_WRITE_BYTES >> 20))
    file.unlink(missing_ok=True)
    started = time.perf_counter()
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    left = size_bytes
    while left:
        left -= os.write(fd, block[: min(left, len(block))])
    os.fsync(fd)
    os.close(fd)
    seconds = time.perf_counter() - started
    file.unlink()
    return size_bytes / 1e9 / seconds


def main() -> None:
    parser = parser_of(__doc__, gigabytes=1.0, pairs=10)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    arguments = parser.parse_args()
    with Record("convert", keep=arguments.record) as record, tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        _measure(Path(name), record, gigabytes=arguments.gigabytes, num_pairs=arguments.pairs)


def _measure(folder: Path, record: Record, *, gigabytes: float, num_pairs: int) -> None:
    hf, checkpoints, back = folder / "hf", folder / "checkpoints", folder / "back"
    size_bytes = random_hf_folder(hf, gigabytes=gigabytes)
    above_start: list[int] = []

    def run_import() -> float:
        shutil.rmtree(checkpoints, ignore_errors=True)
        cost = import_hf(hf, checkpoints, verify=False).cost
        above_start.append(cost.peak_memory_bytes - cost.memory_before_bytes)
        return cost.gigabytes_per_second

    def run_export() -> float:
        shutil.rmtree(back, ignore_errors=True)
        meter = Meter()
        cost = meter.cost(size_bytes=write_hf_folder(checkpoints, back, verify=False))
        above_start.append(cost.peak_memory_bytes - cost.memory_before_bytes)
        return cost.gigabytes_per_second

    size = f"{size_bytes / 1e9:.2f} GB of bf16 weights"
    for label, convert in (("`syne import`, sha256 included,", run_import), ("`syne export`", run_export)):
        pairs = interleaved(
            convert, lambda: streamed_write(folder / "streamed", size_bytes=size_bytes), num_pairs=num_pairs
        )
        rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
        what = f"{label} to a streamed write + fsync of the same bytes, {size}"
        note = f"{rates[0]:.2f} against {rates[1]:.2f} GB/s"
        record.add(Figure.of(what, ratio_of(pairs), target=TARGET, note=note))
    started = time.perf_counter()
    verify_folder(back, checkpoints / "iter_0000000")
    seconds = time.perf_counter() - started
    what = "verify, both sides read and compared"
    record.add(Figure(what=what, value=2 * size_bytes / 1e9 / seconds, unit="GB/s"))
    what = "import and export, peak memory above the start; the largest tensor + 1 GB allowed"
    limit = (_LARGEST_TENSOR_BYTES + 1e9) / 1e6
    record.add(Figure(what=what, value=max(above_start) / 1e6, unit="MB", target=limit, at_most=True))


if __name__ == "__main__":
    main()
