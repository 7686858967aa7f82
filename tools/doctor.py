"""`syne doctor`: what is installed, which implementation each part will get and why, and whether ranks can talk."""

import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_mixers.errors import ConfigError
from megatron_synE.exit_codes import FINISHED, USER_ERROR

SUPPORTED_PAIRS = (("3.11", "0.16.1"), ("3.12", "0.19.2"), ("3.12", "0.16.1"))
"""(Python, megatron-core) that were tried together: docs/supported_pairs.md."""
PACKAGES = (
    "torch", "megatron-core", "transformers", "safetensors", "numpy", "fastokens", "tokenizers",
    "transformer-engine", "apex", "flash-attn", "triton",
)  # fmt: skip
OPTIONAL = {"fastokens", "transformer-engine", "apex", "flash-attn", "triton"}
UNDECLARED = {"psutil": "without it a checkpoint save hangs", "einops": "without it Megatron-FSDP fails"}
COLLECTIVE_TIMEOUT_SECONDS = 60
_PROBE = """
import json, sys
import torch, torch.distributed as dist
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=int(sys.argv[1]), world_size=2)
value = torch.tensor([float(sys.argv[1]) + 1.0])
dist.all_reduce(value)
print(json.dumps(value.tolist()))
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Finding:
    subject: str
    state: Literal["ok", "note", "fault"]
    text: str


def run_doctor() -> int:
    """Print every finding; 2 when one of them would stop a run."""
    faults = 0
    for examine in (_versions, _packages, _device, _implementations, _collective):
        if faults and examine in (_device, _implementations, _collective):
            break  # they import what may be missing
        for finding in examine():
            faults += finding.state == "fault"
            mark = {"ok": "  ", "note": "- ", "fault": "! "}[finding.state]
            sys.stdout.write(f"{mark}{finding.subject:<22} {finding.text}\n")
            sys.stdout.flush()
    sys.stdout.write(f"\n{'ready' if not faults else f'{faults} fault(s), marked with !'}\n")
    return USER_ERROR if faults else FINISHED


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    findings = [Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")]
    for package in PACKAGES:
        version = installed_version(package)
        if version is not None:
            findings.append(Finding(package, "ok", version))
        elif package in OPTIONAL:
            findings.append(Finding(package, "note", "not installed (optional)"))
        else:
            findings.append(Finding(package, "fault", "not installed; run `make env`"))
    for package, consequence in UNDECLARED.items():
        if installed_version(package) is None:
            findings.append(Finding(package, "fault", f"not installed: {consequence}; pip install {package}"))
    return findings


def _packages() -> list[Finding]:
    sbatch, datatrove = shutil.which("sbatch"), installed_version("datatrove")
    text = f"sbatch {sbatch or 'not found'}, datatrove {datatrove or 'not installed'}: --slurm-tasks of `syne data`"
    return [
        pair_finding(".".join(platform.python_version_tuple()[:2]), installed_version("megatron-core")),
        ownership_finding(Path(__file__).resolve().parent, Path.cwd()),
        Finding("job arrays", "ok" if sbatch and datatrove else "note", text),
    ]


def pair_finding(python: str, mcore: str | None) -> Finding:
    """Whether this Python and megatron-core were tried together."""
    pairs = ", ".join(f"megatron-core {m} on Python {p}" for p, m in SUPPORTED_PAIRS)
    if (python, mcore) in SUPPORTED_PAIRS:
        return Finding("supported pair", "ok", f"megatron-core {mcore} on Python {python}")
    return Finding("supported pair", "note", f"megatron-core {mcore} on Python {python} was not tried; tried: {pairs}")


def ownership_finding(ours: Path, working_folder: Path) -> Finding:
    """Whether `import tools`, a common name, gives this package, in every place from which it may be started."""
    spec = importlib.util.find_spec("tools")
    locations = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
    if locations != [ours]:
        found = ", ".join(map(str, locations)) or "nothing"
        return Finding("tools", "fault", f"`import tools` finds {found}, not {ours}; remove the other package")
    other = working_folder / "tools"
    if other.is_dir() and other.resolve() != ours:
        return Finding("tools", "note", f"{other} hides our tools for `python -m tools` in this folder; use `syne`")
    return Finding("tools", "ok", f"ours ({ours})")


def _device() -> list[Finding]:
    from megatron_synE.config.derive import resolve_dtype
    from megatron_synE.runtime import device
    from megatron_synE.runtime.cpu_features import cpu_flags, cpu_has_bf16

    try:
        chosen = device.select("auto", local_rank=0)
    except (ConfigError, RuntimeError) as error:
        return [Finding("device", "fault", str(error))]
    dtype = resolve_dtype("auto", chosen.kind)
    flags = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16"})
    bf16 = "bf16 in hardware" if cpu_has_bf16() else "no bf16 in hardware"
    return [
        Finding("device", "ok", f"{chosen.name}, collectives over {chosen.backend}"),
        Finding("cpu", "ok", f"{bf16} ({' '.join(flags) or 'none of the known flags'})"),
        Finding("precision: auto", "ok", f"means {dtype} here"),
    ]


def _implementations() -> list[Finding]:
    from megatron_synE.optim.fused_adam import install_where_needed

    fast = installed_version("fastokens")
    tokenizer = (
        "fastokens, after a self-check against transformers" if fast else "transformers (fastokens not installed)"
    )
    return [
        *_layers(),
        Finding("optimizer", "ok", install_where_needed()),
        Finding("tokenizer", "ok" if fast else "note", tokenizer),
    ]


def _layers() -> list[Finding]:
    from megatron_synE.kernels.choice import PLAIN
    from megatron_synE.model.layer_spec import choose
    from megatron_synE.model.native_layers import NativeAttention
    from megatron_synE.runtime import device

    found = device.select("auto", local_rank=0)
    try:
        layers = choose("auto", found)
    except ConfigError as error:
        return [Finding("layers", "fault", str(error))]
    if layers.name == "transformer_engine":
        attention, norm = "Transformer Engine's fused attention", "Transformer Engine's RMSNorm"
    else:
        attention = NativeAttention.source(found.is_cuda)
        norm = f"{layers.kernels.names} rms_norm" if layers.kernels is PLAIN else layers.kernels.names
    return [
        Finding("attention", "ok", f"{attention} ({layers.reason})"),
        Finding("norm", "ok", f"{norm} ({layers.reason})"),
    ]


def _collective() -> list[Finding]:
    with tempfile.TemporaryDirectory(prefix="syne-doctor-") as folder:
        return [try_collective(Path(folder) / "store", timeout_seconds=COLLECTIVE_TIMEOUT_SECONDS)]


def try_collective(store: Path, *, timeout_seconds: float) -> Finding:
    """Two processes add 1 and 2 through a gloo all_reduce; both must see 3."""
    command = [sys.executable, "-c", _PROBE]
    ranks = [
        subprocess.Popen([*command, str(rank), str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout_seconds) for rank in ranks]
    except subprocess.TimeoutExpired:
        text = f"no answer from a two-process all_reduce within {timeout_seconds:g} s; check the loopback interface"
        return Finding("collective", "fault", text)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    for rank, (out, err) in zip(ranks, outputs, strict=True):
        if rank.returncode != 0 or json.loads(out) != [3.0]:
            last = (err.strip().splitlines() or ["no message"])[-1]
            return Finding("collective", "fault", f"a two-process gloo all_reduce failed: {last}")
    return Finding("collective", "ok", "two processes, gloo all_reduce")
