"""A card without a card: this process's CUDA is a device of torch whose memory is the host's (device.cpp).

What runs is the CUDA branch of the trainer and the tools, with streams, pinned copies and NCCL's groups in name.
Tensors of the host and of the device are told apart by torch itself, and what CUDA refuses of them is refused. What
does not run is any kernel of CUDA, and nothing overlaps. Attention's kernel is replaced by products written out.

`make_card` must run before megatron-core is imported.
"""

import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_synE.runtime import cpu_compat

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "card"


def built(folder: Path) -> Path:
    """The device's library, compiled against this torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    root, target = Path(spec.submodule_search_locations[0]), folder / "device.so"
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    command = ["g++", "-O0", "-std=c++20", "-fPIC", "-shared", "-w", *includes, SOURCE, *libraries, "-o", target]
    subprocess.run(list(map(str, command)), check=True)
    return target


def make_card(library: Path) -> torch.device:
    """From here on torch.cuda, megatron-core's view of it and NCCL are the device of the library."""
    import torch._dynamo
    import transformers  # noqa: F401  # both walk through torch's functions when imported, and want them as they were
    from torch.utils._device import _device_constructors

    _device_constructors()  # likewise, at its first call: what `with torch.device(…)` gives its device to

    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    card = torch.device(NAME, 0)
    torch._register_device_module(NAME, _module(card))
    view = _megatron_view(card)
    _replace_methods(card)
    _replace_torch_cuda(view)
    _replace_nccl()
    _replace_the_device(card)
    _replace_attention()
    return card


class _Stream(cpu_compat._Stream):
    """A stream or an event; one that was recorded knows when."""

    seconds = 0.0

    def record(self, *args: object, **kwargs: object) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, other: "_Stream") -> float:
        return 1000 * (other.seconds - self.seconds)


def _module(card: torch.device) -> types.ModuleType:
    """What torch asks of a device's module."""
    module = types.ModuleType(f"torch.{NAME}")
    module.__dict__.update(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, set_device=lambda device: None,
        _is_in_bad_fork=lambda: False, manual_seed=lambda seed: None, manual_seed_all=lambda seed: None,
        synchronize=lambda *given: None, empty_cache=lambda: None, get_amp_supported_dtype=lambda: [torch.bfloat16],
        get_rng_state=lambda *given: torch.get_rng_state(),
        set_rng_state=lambda state, *given: torch.set_rng_state(state),
    )  # fmt: skip
    return module


def _megatron_view(card: torch.device) -> types.ModuleType:
    """cpu_compat's view of torch for megatron-core, in which "cuda" is the card in place of the CPU."""
    cpu_compat._CPU = card
    cpu_compat.install(importlib.metadata.version("megatron-core"))
    hook = next(finder for finder in sys.meta_path if isinstance(finder, cpu_compat._ImportHook))
    view = hook._view.cuda
    for name, dtype in (("Float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16)):
        setattr(view, f"{name}Tensor", functools.partial(torch.tensor, dtype=dtype, device=card))
    stream = _Stream()
    view.__dict__.update(
        is_available=lambda: True, get_device_capability=lambda *given: (9, 0), memory_stats=lambda *given: {},
        Stream=_Stream, ExternalStream=_Stream, Event=_Stream,
        current_stream=lambda *given: stream, default_stream=lambda *given: stream,
    )  # fmt: skip
    return view


def _replace_methods(card: torch.device) -> None:
    spelt, to = torch.Tensor.type, torch.Tensor.to

    def pinned(self: torch.Tensor, *args: object) -> torch.Tensor:
        if self.device.type != "cpu":
            raise RuntimeError(f"cannot pin a tensor of {self.device}: only dense CPU tensors can be pinned")
        return self.clone()

    def to_(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args, named = (card if cpu_compat._is_cuda(each) else each for each in args), kwargs.get("device")
        return to(self, *args, **(kwargs | {"device": card} if cpu_compat._is_cuda(named) else kwargs))

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = spelt(self, *args, **kwargs)
        # As cpu_compat spells it for megatron-core, and as torch does.
        return re.sub(rf"^torch\.(cuda\.)?{NAME}\.", "torch.cuda.", answer) if isinstance(answer, str) else answer

    replaced: dict[str, Any] = {
        "to": to_,
        "cuda": lambda self, *args, **kwargs: self.to(card),
        "pin_memory": pinned,
        "type": type_,
        "is_cuda": property(lambda self: self.device.type == NAME),
    }
    for name, value in replaced.items():
        setattr(torch.Tensor, name, value)
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self.to(card)
    torch.nn.Module._apply = _moving_in_place(torch.nn.Module._apply)


def _moving_in_place(shipped: Any) -> Any:
    """Between CPU and CUDA a module's parameters keep their marks (`sequence_parallel`) and their other holders.

    torch makes new ones where the device is PrivateUse1 (c10, TensorImpl::has_compatible_shallow_copy_type).
    """

    def apply(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
        before = dict(self._parameters)
        shipped(self, function, recurse)
        for name, old in before.items():
            new = self._parameters[name]
            if old is not None and new is not None and new is not old:
                marks = dict(vars(old))
                torch.utils.swap_tensors(old, new)
                vars(old).update(marks)
                self._parameters[name] = old
        return self

    return apply


def _replace_torch_cuda(view: types.ModuleType) -> None:
    """For what is not megatron-core: the functions of torch.cuda themselves, and of torch that make tensors."""
    for name in (
        "is_available", "device_count", "current_device", "get_device_properties", "get_device_capability", "Stream",
        "Event", "current_stream", "default_stream", "stream", "synchronize", "set_device", "empty_cache",
        "memory_allocated", "max_memory_allocated", "memory_reserved", "memory_stats",
    ):  # fmt: skip
        setattr(torch.cuda, name, getattr(view, name))
    for name in cpu_compat._FACTORIES:
        setattr(
            torch, name, cpu_compat._on_cpu(getattr(torch, name))
        )  # takes pin_memory away: there is nothing to pin for
    torch.cuda.get_device_name = lambda *given: "a card without a card"
    torch.cuda.is_bf16_supported = lambda *given, **named: True
    torch.cuda._sleep = lambda cycles: None
    memory = view.get_device_properties().total_memory
    torch.cuda.mem_get_info = lambda *given: (memory // 2, memory)
    torch.cuda.max_memory_reserved = torch.cuda.memory_reserved
    torch.cuda.reset_peak_memory_stats = lambda *given: None


class _Group(dist.ProcessGroup):
    """Gloo on the bytes of the device; refuses what NCCL refuses."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(dist.PrefixStore(NAME, store), rank, size, timeout)

    def _host(self, given: Any) -> Any:
        if not isinstance(given, torch.Tensor):
            return [self._host(each) for each in given]
        assert given.device.type == NAME, "NCCL takes no tensors of the host"
        assert given.is_contiguous(), "NCCL takes contiguous tensors alone"
        return torch.ops.standin.host(given)

    def allreduce(self, tensors: Any, options: Any = None) -> Any:
        hosts, is_mean = self._host(tensors), options is not None and options.reduceOp == dist.ReduceOp.AVG
        if options is None or is_mean:
            options = dist.AllreduceOptions()
        work = self._gloo.allreduce(hosts, options)
        if is_mean:
            work.wait()
            for host in hosts:
                host.div_(self.size())
        return work

    def allreduce_coalesced(self, tensors: Any, options: Any = None) -> Any:
        return [self.allreduce([tensor], options) for tensor in tensors][-1]

    def broadcast(self, tensors: Any, options: Any = None) -> Any:
        return self._gloo.broadcast(self._host(tensors), options)

    def allgather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._gloo.allgather(self._host(outputs), self._host(inputs))

    def all_gather_single(self, output: Any, given: Any, options: Any = None) -> Any:
        return self._gloo._allgather_base(self._host(output), self._host(given).clone())

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return [self.all_gather_single(*pair, options) for pair in zip(outputs, inputs, strict=True)][-1]

    def reduce_scatter_single(self, output: Any, given: Any, options: Any = None) -> Any:
        total, out = self._host(given).clone(), self._host(output)
        work = self._gloo.allreduce([total])
        work.wait()
        part = total.view(-1).chunk(self.size())[self.rank()]
        is_mean = options is not None and options.reduceOp == dist.ReduceOp.AVG
        out.view(-1).copy_(part / self.size() if is_mean else part)
        return work

    def reduce_scatter_single_coalesced(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return [self.reduce_scatter_single(*pair, options) for pair in zip(outputs, inputs, strict=True)][-1]

    def all_to_all_single(self, output: Any, given: Any, out_sizes: Any, in_sizes: Any, options: Any = None) -> Any:
        return self._gloo.alltoall_base(self._host(output), self._host(given), out_sizes, in_sizes)

    # As older versions of torch call them.
    _allgather_base, _reduce_scatter_base, alltoall_base = all_gather_single, reduce_scatter_single, all_to_all_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def gather(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._gloo.gather(self._host(outputs), self._host(inputs), options)

    def scatter(self, outputs: Any, inputs: Any, options: Any = None) -> Any:
        return self._gloo.scatter(self._host(outputs), self._host(inputs), options)

    def send(self, tensors: Any, target: int, tag: int = 0) -> Any:
        return self._gloo.send(self._host(tensors), target, tag)

    def recv(self, tensors: Any, source: int, tag: int = 0) -> Any:
        return self._gloo.recv(self._host(tensors), source, tag)

    def barrier(self, opts: Any = None) -> Any:
        return self._gloo.barrier()


def _replace_nccl() -> None:
    from torch.distributed import distributed_c10d

    dist.Backend.register_backend(NAME, _Group, devices=[NAME])
    start, device_of = dist.init_process_group, distributed_c10d._get_object_coll_device

    def init_process_group(backend: str, *args: Any, device_id: object = None, **kwargs: Any) -> None:
        start({"nccl": NAME, "cpu:gloo,cuda:nccl": f"cpu:gloo,{NAME}:{NAME}"}.get(backend, backend), *args, **kwargs)

    def device_of_objects(group: Any = None) -> str:
        is_ours = isinstance(group or distributed_c10d._get_default_group(), _Group)
        return NAME if is_ours else device_of(group)

    dist.init_process_group = init_process_group
    distributed_c10d._get_object_coll_device = device_of_objects


def _replace_the_device(card: torch.device) -> None:
    from megatron_synE.runtime import device

    shipped = device.select

    def select(kind: Any, *, local_rank: int) -> device.Device:
        if kind == "cpu":
            return shipped(kind, local_rank=local_rank)
        return device.Device("cuda", card, "nccl", torch.cuda.get_device_name())

    device.select = select


def _replace_attention() -> None:
    from megatron_synE.kernels import attention

    def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: Any, scale: float) -> torch.Tensor:
        assert all(border.is_cuda and border.dtype == torch.int32 for border in borders[:2])
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1).float() for x in (k, v))  # [s, np, hn]
        rows, keys = (border.cpu().tolist() for border in borders[:2])
        parts = []
        for start, stop, first, last in zip(rows, rows[1:], keys, keys[1:], strict=False):
            num_queries, num_keys = stop - start, last - first
            assert num_queries <= borders[2] and num_keys <= borders[3]
            scores = torch.einsum("thd,shd->hts", q[start:stop].float(), k[first:last]) * scale
            seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).tril(num_keys - num_queries)
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            parts.append(torch.einsum("hts,shd->thd", weights, v[first:last]).to(q.dtype))
        return torch.cat(parts)

    attention._by_torch = by_torch
