"""What one rank measures of its node: software, files, arithmetic, memory, disk. No collective here."""

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from data_mixers.errors import UserError
from data_mixers.manifest import DatasetManifest, read_manifest
from megatron_synE import __version__
from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.checkpoint.sampled_hash import sampled_sha256
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.run_dir import git_state, versions


def software() -> dict[str, str]:
    """Versions of everything that decides results, with the driver's and NCCL's where there are GPUs."""
    found = {"megatron-synE": __version__, "machine": platform.machine(), **versions()}
    found |= {f"git {key}": value for key, value in git_state().items() if key == "commit"}
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
        driver = Path("/proc/driver/nvidia/version")
        if driver.exists():
            found["NVIDIA driver"] = driver.read_text(encoding="utf-8").splitlines()[0]
    return found


def hashes(config: RunConfig, manifests: Iterable[Path]) -> dict[str, str]:
    """Of what must be the same on every node: manifests, token files; tokenizer, configuration, weights of the model.

    Token files and weights are too long to be read whole: their length, and blocks at fixed places, stand for them.
    What differs in a block nobody looked at stays unseen; of token files `syne data stats --verify` sees it.
    """
    found: dict[str, str] = {}
    for path in manifests:
        try:
            manifest = read_manifest(path)
        except UserError as error:
            found[str(path)] = str(error)
            continue
        found |= _token_files(manifest)
    if config.init.source == "hf" and config.init.path is not None:
        for file in sorted(config.init.path.glob("*.json")) + sorted(config.init.path.glob("tokenizer*")):
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        try:
            weights = HfFolder(config.init.path).sampled_hashes()
        except UserError as error:
            weights = {"weights": str(error)}
        found |= {str(config.init.path / name): digest for name, digest in weights.items()}
    return found


def _token_files(manifest: DatasetManifest) -> dict[str, str]:
    found = {}
    for source in manifest.sources:
        for shard in source.shards:
            for suffix, size in (("bin", shard.bin_size_bytes), ("idx", shard.idx_size_bytes)):
                file = manifest.folder / f"{shard.prefix}.{suffix}"
                try:
                    actual = file.stat().st_size
                    found[str(file)] = sampled_sha256(file) if actual == size else f"{actual} bytes, not {size}"
                except OSError as error:
                    found[str(file)] = error.strerror or str(error)
                except UserError as error:
                    found[str(file)] = str(error)
    return found


def matmul_tflops(device: Device) -> float:
    """Best of five square products in the training's precision."""
    size, dtype = (8192, torch.bfloat16) if device.is_cuda else (512, torch.float32)
    left = torch.randn(size, size, device=device.torch_device, dtype=dtype)
    return 2 * size**3 / best_seconds(lambda: torch.mm(left, left), device) / 1e12


def memory_gbps(device: Device) -> float:
    """Best of five copies inside the device's memory, read and written bytes."""
    size_bytes = (1 << 30) if device.is_cuda else (1 << 25)
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    return 2 * size_bytes / best_seconds(lambda: target.copy_(source), device) / 1e9


def best_seconds(act: Callable[[], object], device: Device) -> float:
    """Of five calls, after one that warms up."""
    act()
    device.synchronize()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        act()
        device.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def write_mbps(folder: Path, name: str, *, size_bytes: int) -> float:
    """Rate of write, fsync and rename of one file, left at folder/name for other nodes to see. Errors: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(1 << 20)
    temporary = folder / f".{name}.tmp"
    started = time.perf_counter()
    with temporary.open("wb") as stream:
        for _ in range(max(1, size_bytes >> 20)):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(folder / name)
    return size_bytes / (time.perf_counter() - started) / 1e6


def checkpoint_bytes(plan: RunPlan) -> int:
    """Size of one checkpoint of the run: weights, two moments, and masters where the weights are bf16."""
    return plan.num_parameters * (2 + 8 + 4 if plan.dtype == "bf16" else 4 + 8)  # docs/checkpoint.md


def disk_fault(config: RunConfig, plan: RunPlan, num_checkpoints: int) -> str | None:
    """Whether the checkpoints that the run will hold at once fit beside those that are there."""
    keep = config.checkpoint.keep_last
    if keep is None:
        interval = plan.checkpoint_interval_iterations
        keep = 1 if interval is None else plan.train_iters // interval + 1
    elif config.stability.reach:
        keep += 1  # one that lies far enough back
    size = checkpoint_bytes(plan)
    needed = (keep + 1 - min(num_checkpoints, keep)) * size  # one more while it is written
    free = shutil.disk_usage(config.run.dir).free
    if free >= needed:
        return None
    return (
        f"run.dir={config.run.dir}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for {keep + 1} checkpoints "
        f"of {size / 1e9:.1f} GB; make room, or lower checkpoint.keep_last"
    )
