"""Lets unpatched megatron-core run on a CPU: its modules see a view of `torch` in which "cuda" means the CPU.

megatron-core names "cuda" literally (current_device, factories with device="cuda", RNG states, streams, tensor type
strings). An import hook hands every megatron.core module a copy of the torch module with those names redirected; the
rest of the process keeps the real torch, so transformers, DCP and inductor see a plain CPU build. Megatron-core's own
DDP, pipeline schedules and distributed optimizer then run over gloo. On CUDA nothing here is active.

Redirected for megatron.core alone: torch.cuda (class _CudaOnCpu below), torch.device, torch.autocast and the factories
of _FACTORIES. Process-wide, because they are methods: Tensor.cuda, Module.cuda, Tensor.pin_memory and
Tensor.record_stream become the identity (they would raise on a CPU), and Tensor.type() answers megatron.core callers,
and only them, with the CUDA spelling.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import logging
import os
import resource
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from data_mixers.errors import ConfigError

KNOWN_VERSIONS = ("0.16.1", "0.19.2")
"""megatron-core versions on which the parity tests were run; another one may name a new piece of CUDA silently."""

_PREFIX = "megatron.core"
_COMPILES = "megatron.core.jit"
"""It wraps each fused function in torch.compile, which imports torch's whole compiler: more than half of the start of
a process, for functions that are all switched off on a CPU (build.py, *_fusion)."""
_CPU = torch.device("cpu")
_FACTORIES = (
    "tensor", "zeros", "ones", "empty", "full", "rand", "randn", "randint", "arange",
    "zeros_like", "ones_like", "empty_like", "full_like", "as_tensor",
)  # fmt: skip
_IGNORED = ("set_device", "set_stream", "synchronize", "empty_cache", "_lazy_init", "manual_seed_all")
_NOISE = (
    # Said by megatron-core at import or every step, known and harmless here; every other warning stays visible.
    (UserWarning, r".*(Apex|Transformer Engine).* (is|are) not installed"),
    (UserWarning, r"The \.grad attribute of a Tensor that is not a leaf"),
    (UserWarning, r"When using (sequence parallelism|async grad allreduce) it is recommended to set"),
    (UserWarning, r".*full scope is deprecated"),
    (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),
    (FutureWarning, r".*_tensor.*deprecated"),
    (UserWarning, r"MimoModelConfig is experimental"),  # 0.19.2, at import
)
_NOISY_RECORDS = {
    # Logger -> how its record begins; as above. What 0.19.2 asks for here does not exist in 0.16.1.
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.transformer.transformer_layer": "Rewrapping ModuleSpec with module",
    "megatron.core.distributed.distributed_data_parallel": "DistributedDataParallel: full_param_layout not provided",
    # 0.19.2 imports this module; it speaks where nvcc is found and no GPU, as under `device: cpu`.
    "torch.utils.cpp_extension": "No CUDA runtime is found",
    # On a CPU the "CUDA" generator is the CPU generator, so this is true by construction and says nothing.
    "megatron.core.tensor_parallel.random": "CPU RNG state changed within GPU RNG context",
}
_IMPORTED = {"_lazy_call": "_lazy_call", "_lazy_init": "_lazy_init", "device_ctx_manager": "device"}
"""Name in a megatron.core module -> the name in torch.cuda from which it was imported (tensor_parallel/random.py)."""


class _Stream:
    """A CUDA stream or event of which nothing need be waited for."""

    cuda_stream = 0
    device = _CPU

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    wait_stream = wait_event = record_event = synchronize = record = wait = _nothing

    def query(self) -> bool:
        return True

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *args: object) -> None:
        pass


class _DeviceProperties:
    name = "cpu"
    major = minor = 0
    multi_processor_count = 1
    total_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Generators:
    def __getitem__(self, index: int) -> torch.Generator:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def _null_context(*args: object, **kwargs: object) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _peak_rss(*args: object) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _CudaOnCpu(types.ModuleType):
    """torch.cuda as megatron.core sees it; what is not redirected is the real one."""

    def __init__(self) -> None:
        super().__init__("torch.cuda")
        stream = _Stream()
        rng = types.SimpleNamespace(
            get_rng_state=lambda device="cuda": torch.get_rng_state(),
            set_rng_state=lambda state, device="cuda": torch.set_rng_state(state),
        )
        self.__dict__.update(
            is_available=lambda: False,
            device_count=lambda: 1,
            current_device=lambda: _CPU,
            get_device_properties=lambda *args: _DeviceProperties(),
            get_device_capability=lambda *args: (0, 0),
            Stream=_Stream,
            ExternalStream=_Stream,
            Event=_Stream,
            current_stream=lambda *args: stream,
            default_stream=lambda *args: stream,
            stream=_null_context,
            device=_null_context,
            default_generators=_Generators(),
            manual_seed=torch.default_generator.manual_seed,
            random=rng,
            get_rng_state=rng.get_rng_state,
            set_rng_state=rng.set_rng_state,
            nvtx=types.SimpleNamespace(range_push=_nothing, range_pop=_nothing, range=_null_context, mark=_nothing),
            memory_allocated=_peak_rss,
            max_memory_allocated=_peak_rss,
            memory_reserved=_peak_rss,
            _lazy_call=lambda call, **kwargs: call(),
            FloatTensor=torch.FloatTensor,
            HalfTensor=torch.HalfTensor,
            BFloat16Tensor=torch.BFloat16Tensor,
            **dict.fromkeys(_IGNORED, _nothing),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _DeviceMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.device)


class _Device(metaclass=_DeviceMeta):
    """torch.device as megatron.core sees it: "cuda[:n]" is the CPU."""

    def __new__(cls, device: Any = "cpu", *args: Any) -> torch.device:  # type: ignore[misc]  # it stands in for one
        return _CPU if _is_cuda(device) else torch.device(device, *args)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _is_cuda(device: object) -> bool:
    return (isinstance(device, torch.device) and device.type == "cuda") or (
        isinstance(device, str) and device.startswith("cuda")
    )


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return make


class _TorchOnCpu(types.ModuleType):
    """A copy of the torch module's dictionary, so that attribute access costs what it costs on torch itself."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.__dict__.update(torch.__dict__)
        self.__dict__.update(cuda=_CudaOnCpu(), device=_Device, autocast=_Autocast)
        self.__dict__.update({name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _ImportHook(importlib.abc.MetaPathFinder):
    """Rebinds `torch`, and what was imported from torch.cuda, in each megatron.core module after it has run."""

    def __init__(self, view: _TorchOnCpu) -> None:
        self._view = view

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            self._rebind(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this loader serves this module alone
        return spec

    def _rebind(self, module: types.ModuleType) -> None:
        names = module.__dict__
        if module.__name__ == _COMPILES:
            names["jit_fuser"] = names["noop_decorator"]
        if names.get("torch") is torch:
            names["torch"] = self._view
        for name, source in _IMPORTED.items():
            if name in names and names[name] is getattr(torch.cuda, source):
                names[name] = getattr(self._view.cuda, source)


def _type_with_cuda_spelling() -> Callable[..., Any]:
    original = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if isinstance(answer, str) and sys._getframe(1).f_globals.get("__name__", "").startswith(_PREFIX):
            # clip_grads.py and distrib_optimizer.py compare with 'torch.cuda.FloatTensor'.
            return answer.replace("torch.", "torch.cuda.")
        return answer

    return type_


def _return_self(self: Any, *args: object, **kwargs: object) -> Any:
    return self


def quiet() -> None:
    """Filter megatron-core's known import and per-step noise by message; all else stays visible."""
    for category, message in _NOISE:
        warnings.filterwarnings("ignore", message=message, category=category)
    for logger, beginning in _NOISY_RECORDS.items():
        logging.getLogger(logger).addFilter(functools.partial(_is_other, beginning))


def _is_other(beginning: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(beginning)


def install(version: str) -> None:
    """Activate the view. Must precede the first import of megatron.core.

    Errors: ConfigError for a megatron-core version on which nobody has compared the results with transformers.
    """
    if torch.cuda.is_available():
        raise AssertionError("cpu_compat is never installed over a real CUDA device")
    if any(name.startswith(_PREFIX) for name in sys.modules):
        raise AssertionError("megatron.core was imported before megatron_synE.runtime.mcore")
    if version not in KNOWN_VERSIONS:
        raise ConfigError(
            f"megatron-core {version} was never tried on a CPU; install one of {', '.join(KNOWN_VERSIONS)}"
        )
    sys.meta_path.insert(0, _ImportHook(_TorchOnCpu()))
    methods: dict[str, Any] = {"cuda": _return_self, "pin_memory": _return_self, "record_stream": _nothing}
    for name, method in methods.items():
        setattr(torch.Tensor, name, method)
    torch.nn.Module.cuda = _return_self  # type: ignore[method-assign]
    torch.Tensor.type = _type_with_cuda_spelling()  # type: ignore[method-assign]
