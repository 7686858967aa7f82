"""A rank that counts where a step waits for the device, on a CPU that stands in for it: argv = config, overrides.

Device tensors are told from host tensors by where they come from: all that are alive before the step, what is made with
an explicit device, what `moved` returns, and what is computed from any of these. Seen is what PyTorch itself waits for
on CUDA: a value read (`item`, `if`, `tolist`, `cpu`, `numpy`), a size that depends on values (`nonzero`, an index of
bools, `unique`, `repeat_interleave`), a host value put into a new device tensor (`torch.tensor(x, device=…)`), a copy
between the two that blocks.

Not seen: waits inside a kernel or a library (NCCL, Triton, flash-attn, Transformer Engine), `torch.cuda.synchronize`
and stream or event waits (nothing to wait for here; megatron-core synchronises around batched pipeline messages),
memory that has to be asked of the driver, and `.to("cpu")` through a variable.
"""

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.equal}
SIZES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
METHODS = {"cpu", "tolist", "numpy", "__array__"}


class Eyes:
    """What is on the device, and the waits seen so far, each with the line that asked."""

    def __init__(self) -> None:
        # A weak reference keeps the address from being given to another storage.
        self._on_device: dict[int, StorageWeakRef] = {}
        self.waits: list[str] = []

    def mark(self, values: Any) -> None:
        for tensor in _tensors(values):
            reference = StorageWeakRef(tensor.untyped_storage())
            self._on_device.setdefault(reference.cdata, reference)

    def sees(self, values: Any) -> bool:
        return any(tensor.untyped_storage()._cdata in self._on_device for tensor in _tensors(values))

    def note(self, what: str) -> None:
        here = [f"{f.filename}:{f.lineno} {f.line}" for f in traceback.extract_stack() if f.filename != __file__]
        self.waits.append("\n    ".join([what, *here[:-6:-1]]))

    @contextmanager
    def open(self) -> Iterator[None]:
        with _Operations(self), _Calls(self):
            yield


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class _Operations(TorchDispatchMode):
    """Every operation, also those of the backward pass."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self._eyes = eyes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, eyes, packet = kwargs or {}, self._eyes, func.overloadpacket
        uses_device = eyes.sees((args, kwargs))
        if uses_device and _waits(packet, args, kwargs):
            eyes.note(str(func))
        if packet is aten.copy_:
            target, source = args[:2]
            crosses = target.numel() and eyes.sees(target) != eyes.sees(source)
            if crosses and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking") and not _is_gloo():
                eyes.note("a copy between host and device that blocks")
            return func(*args, **kwargs)  # a host tensor stays one
        out = func(*args, **kwargs)
        if uses_device:
            eyes.mark(out)
            if func.namespace == "c10d":
                eyes.mark(args)
        return out


def _is_gloo() -> bool:
    """It copies from buffers of its own when its work is waited for; NCCL has none."""
    return any((frame.line or "").endswith(".wait()") for frame in traceback.extract_stack(limit=8))


def _waits(packet: Any, args: Any, kwargs: Any) -> bool:
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in INDEXED:
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return by_mask and (packet is aten.index or args[2].numel() > 1)  # one value is a masked fill
    return packet in READS or packet in SIZES


class _Calls(TorchFunctionMode):
    """Calls that never become an operation, because here both sides are the CPU."""

    def __init__(self, eyes: Eyes) -> None:
        super().__init__()
        self._eyes = eyes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, eyes = kwargs or {}, self._eyes
        name = getattr(func, "__name__", "")
        if name in METHODS and eyes.sees(args[:1]):
            eyes.note(name)
        if name == "to" and eyes.sees(args[:1]) and "cpu" in [*args[1:], *kwargs.values()]:
            eyes.note(name)
        has_device = kwargs.get("device") is not None
        if func in (torch.tensor, torch.as_tensor):
            for _ in filter(eyes.sees, _tensors(args)):
                eyes.note(f"torch.{name} of a value on the device")
            if has_device:
                eyes.note(f"torch.{name} of a host value on the device")
        out = func(*args, **kwargs)
        if has_device:
            eyes.mark(out)
        return out


def everything_alive(eyes: Eyes) -> None:
    eyes.mark([found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)])


def main(config: Path, overrides: list[str]) -> None:
    """Fails by an assertion."""
    from megatron_synE.runtime.environment import Ranks, hide_cuda, ranks_from_environment

    hide_cuda()
    from megatron_synE.config.load import load_config
    from megatron_synE.data import batch
    from megatron_synE.model import head, packed_row
    from megatron_synE.optim import gradients
    from megatron_synE.runtime import distributed, mcore
    from megatron_synE.train import build_trainer

    eyes, computed = Eyes(), []

    def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        copy = tensor.clone()
        eyes.mark(copy)
        return copy

    batch.moved = packed_row.moved = moved
    shipped_head = head._computed
    head._computed = lambda *given: computed.append(1) or shipped_head(*given)  # type: ignore[func-returns-value]
    trainer = build_trainer(load_config(config, overrides), config, ranks_from_environment() or Ranks(0, 1, 0))
    samples = trainer.samples()

    def waits_of_a_step() -> list[str]:
        everything_alive(eyes)
        eyes.waits.clear()
        with eyes.open():
            trainer.iterate(samples)
        return list(eyes.waits)

    trainer.iterate(samples)  # moments and moved frequencies are made once
    computed.clear()
    for _ in range(2):
        found = waits_of_a_step()
        assert len(found) == 1 and "total_norm.item()" in found[0], "\n".join(found)
    # The head's gradients come from its forward pass: behind DDP, schedule and hooks too it is computed once.
    assert len(computed) == 2 * trainer.plan.num_microbatches, len(computed)

    # As megatron-core ships: the norm of each parameter, and the number of tokens, are read by the host.
    from megatron.core.utils import local_multi_tensor_l2_norm

    mcore.mcore_clip_grads.l2_norm_impl = local_multi_tensor_l2_norm
    trainer.model.config.finalize_model_grads_func = gradients.finalize_model_grads
    found = waits_of_a_step()
    num_parameters = len(trainer.optimizer.get_main_grads_for_grad_norm())
    assert len(found) >= num_parameters + 2, "\n".join(found)
    assert any("num_tokens > 0" in wait for wait in found), "\n".join(found)
    trainer.metrics.close()
    distributed.shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
