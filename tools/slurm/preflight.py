"""`syne slurm preflight`, one process a rank: what would make the run fail, hang or crawl, found before it starts.

    each rank measures (preflight_checks) ─ gathered over gloo ─> rank 0 judges (preflight_judge) ─> report, exit code
Under two minutes: arithmetic, memory and network are measured for a second each, token files are looked into.
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from data_mixers.errors import ConfigError, UserError
from megatron_synE import exit_codes
from megatron_synE.checkpoint import layout
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.examine import examine, manifest_paths
from megatron_synE.config.fault import require
from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.runtime import device as devices
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.environment import ALONE, Ranks, ranks_from_environment
from tools.slurm import preflight_checks as checks
from tools.slurm.preflight_judge import CPU_LIMITS, Limits, RankFacts, judge

_TIMEOUT = timedelta(seconds=110)


def run_preflight(config_path: Path, overrides: Sequence[str] = ()) -> int:
    """Check the nodes of this job; 2 with a sentence for each fault. Collective: every rank of the job.

    Writes <run.dir>/slurm/preflight.json. Errors: UserError for a faulty configuration.
    """
    started = time.monotonic()
    config = load_config(config_path, list(overrides)).resolved
    ranks = ranks_from_environment() or ALONE
    examination = examine(config, world_size=ranks.world_size)
    require(examination.faults, where=str(config_path))
    device = devices.select(config.device, local_rank=ranks.local_rank)
    _start_group(ranks, device)
    facts = _measure(config, ranks, device)
    gathered: list[RankFacts | None] = [None] * ranks.world_size
    dist.all_gather_object(gathered, facts)
    everyone = [entry for entry in gathered if entry is not None]
    faults = judge(everyone, Limits() if device.is_cuda else CPU_LIMITS)
    if ranks.rank == 0:
        assert examination.plan is not None
        faults += [fault for fault in [_room(config, examination.plan)] if fault]
        _report(config, everyone, faults, rate=_all_reduce_gbps(device, None), seconds=time.monotonic() - started)
    else:
        _all_reduce_gbps(device, None)
    outcome: list[list[str]] = [faults]
    dist.broadcast_object_list(outcome, src=0)
    dist.destroy_process_group()
    return exit_codes.USER_ERROR if outcome[0] else exit_codes.FINISHED


def _start_group(ranks: Ranks, device: Device) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    store = torch._C._distributed_c10d.HashStore() if ranks.world_size == 1 else None
    # Both: objects go over gloo, what is measured over the backend that will train.
    backend = "cpu:gloo,cuda:nccl" if device.is_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=_TIMEOUT)


def _measure(config: RunConfig, ranks: Ranks, device: Device) -> RankFacts:
    node = os.uname().nodename
    nodes: list[str] = [""] * ranks.world_size
    dist.all_gather_object(nodes, node)
    first_of_node = {name: nodes.index(name) for name in nodes}
    is_first = first_of_node[node] == ranks.rank
    if not device.is_cuda:
        torch.set_num_threads(1)
    write, fault = _shared_files(config.run.dir, first_of_node, node, is_first=is_first)
    dist.barrier()
    rate, copies = checks.matmul_tflops(device), checks.memory_gbps(device)
    pairs = _pairs(device, first_of_node, node, ranks.rank)
    manifests = (*manifest_paths(config), *config.validation.manifests)
    found = checks.hashes(config, manifests) if is_first else None
    shared: list[dict[str, str] | None] = [None] * ranks.world_size
    dist.all_gather_object(shared, found)
    dist.barrier()
    return RankFacts(
        rank=ranks.rank,
        node=node,
        clock=time.time(),
        versions=checks.software(),
        hashes=shared[first_of_node[node]] or {},
        matmul_tflops=rate,
        memory_gbps=copies,
        write_mbps=write,
        file_fault=fault,
        pairs_gbps=pairs,
    )


def _shared_files(
    run_dir: Path, first_of_node: dict[str, int], node: str, *, is_first: bool
) -> tuple[float | None, str | None]:
    """Each node writes a file into the run's folder and looks for those of the others. Collective: every rank."""
    folder, write, fault = run_dir / "slurm" / "preflight", None, None
    if is_first:
        size_bytes = (1 << 28) if torch.accelerator.is_available() else (1 << 23)
        try:
            write = checks.write_mbps(folder, node, size_bytes=size_bytes)
        except OSError as error:
            fault = f"{folder}: cannot be written ({error.strerror})"
    dist.barrier()
    if is_first and fault is None:
        seen = {path.name for path in folder.iterdir()}  # NFS: opening the folder asks the server, a name may be cached
        unseen = [name for name in first_of_node if name not in seen]
        if unseen:
            fault = f"run.dir={run_dir} is not the same folder on all nodes: no file of {', '.join(unseen)} in it"
    dist.barrier()
    if write is not None:
        for left in folder.iterdir():  # of a preflight that was killed, too
            left.unlink(missing_ok=True)
    return write, fault


def _pairs(device: Device, first_of_node: dict[str, int], node: str, rank: int) -> dict[str, float]:
    """All-reduce between the first ranks of neighbouring nodes, in a ring: even links at once, then odd ones.

    Collective: every rank, because groups are made by all.
    """
    names = list(first_of_node)
    links = list(zip(names, names[1:], strict=False)) + ([(names[-1], names[0])] if len(names) > 2 else [])
    groups = {link: dist.new_group([first_of_node[name] for name in link]) for link in links}
    rates: dict[str, float] = {}
    for parity in (0, 1):
        dist.barrier()
        for link in links[parity::2]:
            if node in link and rank == first_of_node[node]:
                other = link[1] if link[0] == node else link[0]
                rates[other] = _all_reduce_gbps(device, groups[link])
    return rates


def _all_reduce_gbps(device: Device, group: dist.ProcessGroup | None) -> float:
    """Bus bandwidth, as nccl-tests count it: 2 (n - 1) / n x bytes / seconds. Collective: the group."""
    count = (1 << 26) if device.is_cuda else (1 << 20)
    values = torch.ones(count, dtype=torch.float32, device=device.torch_device)
    best = checks.best_seconds(lambda: dist.all_reduce(values, group=group), device)
    size = dist.get_world_size(group)
    return 2 * (size - 1) / size * 4 * count / best / 1e9


def _room(config: RunConfig, plan: RunPlan) -> str | None:
    if not config.run.dir.is_dir():
        return None  # it could not be made, which is said already
    complete = layout.complete_checkpoints(config.run.dir / layout.CHECKPOINTS)
    return checks.disk_fault(config, plan, len(complete))


def _report(config: RunConfig, ranks: list[RankFacts], faults: list[str], *, rate: float, seconds: float) -> None:
    nodes = list(dict.fromkeys(rank.node for rank in ranks))
    document = {
        "schema_version": 1,
        "nodes": nodes,
        "faults": faults,
        "all_reduce_gbps": rate,
        "seconds": seconds,
        "ranks": [asdict(rank) | {"hashes": len(rank.hashes)} for rank in ranks],
    }
    with contextlib.suppress(OSError):  # a folder that cannot be written is among the faults
        layout.write_json(config.run.dir / "slurm" / "preflight.json", document)
    slowest, fastest = min(rank.matmul_tflops for rank in ranks), max(rank.matmul_tflops for rank in ranks)
    sys.stderr.write(
        f"preflight of {len(ranks)} ranks on {', '.join(nodes)}: matmul {slowest:.3g} to {fastest:.3g} TFLOP/s, "
        f"all-reduce {rate:.3g} GB/s, {seconds:.0f} s\n"
    )
    sys.stderr.writelines(f"error: {fault}\n" for fault in faults)


def main(arguments: Sequence[str]) -> int:
    """CONFIG [KEY=VALUE]... as one rank under srun."""
    try:
        return run_preflight(Path(arguments[0]), arguments[1:])
    except UserError as error:
        if os.environ.get("SLURM_PROCID", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except (RuntimeError, OSError) as error:
        # cuBLAS's faults, and of a driver that does not start, are plain RuntimeErrors; NCCL's begin with its name.
        if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or str(error).startswith("CUDA "):
            what, cure = "its card fails", "look at nvidia-smi there, or leave the node out with --sbatch exclude=NODE"
        else:  # what torch.distributed raises when a peer is not there
            what = "the ranks do not reach each other"
            cure = "over another interface they may: --env GLOO_SOCKET_IFNAME=NAME --env NCCL_SOCKET_IFNAME=NAME"
        fault = ConfigError(f"{os.uname().nodename}: {what} ({error}); {cure}")
        sys.stderr.write(f"error: {fault}\n")
        return fault.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # Not through destructors, which may wait for peers that have failed.
    os._exit(code)
