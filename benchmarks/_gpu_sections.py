"""The sections of the GPU suite: each a function of the setting that gives plain values."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.model.presets import ARCHITECTURES


@dataclass(frozen=True)
class Setting:
    """Where, and how large."""

    device_kind: Literal["cpu", "cuda"]
    tiny: bool

    @cached_property
    def device(self) -> Any:
        from megatron_synE.runtime import device as devices

        return devices.select(self.device_kind, local_rank=0)

    @property
    def seq_length(self) -> int:
        return 64 if self.tiny else 8192

    @property
    def mean_document(self) -> int:
        """About that of web pages in Llama-3's tokens. Ours."""
        return self.seq_length // 8

    def architecture(self, preset: str) -> LlamaArchitecture:
        """The preset, or its shape shrunk: the same ties, groups and rotation."""
        full = ARCHITECTURES[preset]
        if not self.tiny:
            return full
        return replace(
            full, num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2,
            kv_channels=16, vocab_size=256,
        )  # fmt: skip


def numerics(setting: Setting) -> dict[str, Any]:
    """Relative errors against plain torch in float64, beside what is allowed; names of what failed; what was used."""
    from benchmarks._gpu_numerics import errors, used

    found = errors(setting.device, tiny=setting.tiny)
    return {
        "errors": [asdict(error) for error in found],
        "failed": [error.name for error in found if not error.error <= error.allowed],
        "used": used(setting.device),
    }


def kernels(setting: Setting) -> dict[str, Any]:
    """benchmarks/kernels.py."""
    from benchmarks.kernels import run

    return run(tiny=setting.tiny, device=setting.device)


def block_stack(setting: Setting) -> dict[str, Any]:
    """Eight layers of 8B's shape with a head of next to nothing, forward and backward, in bf16 and FP8.

    Eight: 17 GB of weights, gradients and masters and 13 of activations fit any card this is for, and are a stack.
    """
    from benchmarks._bench_model import Options, forget, row_of_documents, trained_model
    from benchmarks._timing import seconds_of
    from megatron_synE.model.flops import training_flops_per_token

    layers = replace(setting.architecture("llama3_8b"), num_layers=2 if setting.tiny else 8, vocab_size=256)
    flops = training_flops_per_token(layers, seq_length=setting.seq_length) * setting.seq_length
    found = {}
    ways: dict[str, dict[str, Any]] = {
        "bf16": {},
        "bf16, torch kernels": {"kernels": "torch"},
        "FP8 tensorwise": {"fp8": "hybrid"},
        "FP8 rowwise": {"fp8": "e4m3", "fp8_recipe": "rowwise"},
    }
    for name, way in ways.items():
        if "fp8" in way and not setting.device.has_fp8:
            continue
        trained = trained_model(layers, Options(seq_length=setting.seq_length, **way), setting.device)
        for masked in (False, True):
            mean = setting.mean_document if masked else None
            row = row_of_documents(layers, seq_length=setting.seq_length, mean_document=mean, device=setting.device)
            seconds = seconds_of(lambda trained=trained, row=row: trained.gradients(row), setting.device)
            kind = "masked" if masked else "unmasked"
            found[f"{name}, {kind}"] = _rates(setting.seq_length, seconds, flops, kind)
        del trained
        forget(setting.device)
    return found


def whole_step(preset: str, setting: Setting) -> dict[str, Any]:
    """A whole step, head and optimizer too, with and without document masks; with recomputation where it must be."""
    import torch

    from benchmarks._bench_model import forget

    recomputes: tuple[Literal["none", "full"], ...] = ("none", "full")
    found: dict[str, Any] = {}
    for recompute in recomputes:
        try:
            return found | _whole_step(setting, preset, recompute)
        except torch.OutOfMemoryError as error:
            found[f"recompute {recompute}"] = f"out of memory: {error}"[:300]
        forget(setting.device)  # after the handler, whose error holds every frame and with them the model
    return found


def _whole_step(setting: Setting, preset: str, recompute: Literal["none", "full"]) -> dict[str, Any]:
    from benchmarks._bench_model import Options, row_of_documents, trained_model
    from benchmarks._timing import seconds_of
    from megatron_synE.model.flops import training_flops_per_token

    architecture = setting.architecture(preset)
    options = Options(seq_length=setting.seq_length, recompute=recompute)
    trained = trained_model(architecture, options, setting.device)
    flops = training_flops_per_token(architecture, seq_length=setting.seq_length) * setting.seq_length
    found: dict[str, Any] = {"recompute": recompute}
    for name, mean in (("unmasked", None), ("masked", setting.mean_document)):
        row = row_of_documents(architecture, seq_length=setting.seq_length, mean_document=mean, device=setting.device)
        first = trained.step(row)
        seconds = seconds_of(lambda row=row: trained.step(row), setting.device)
        losses = {"first_loss": first, "last_loss": trained.step(row)}
        found[name] = _rates(setting.seq_length, seconds, flops, name) | losses
    return found | {"peak_bytes": setting.device.peak_memory_bytes()}


def ppl_scoring(setting: Setting) -> dict[str, Any]:
    """Scored tokens per second of documents of web-like lengths, against full rows of one document."""
    import numpy as np

    from benchmarks._bench_model import Options, bare_model
    from megatron_synE.scoring import Scorer

    architecture = setting.architecture("tinyllama_1.1b")
    scorer = Scorer(
        bare_model(architecture, Options(seq_length=setting.seq_length), setting.device).eval(),
        setting.device, seq_length=setting.seq_length, overlap=0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    rows = 2 if setting.tiny else 40
    lengths = 2 + random.exponential(setting.mean_document, size=rows * 8).astype(int)
    mixes = {"web-like": lengths, "full rows": np.full(rows, setting.seq_length + 1)}
    found = {}
    for name, mix in mixes.items():
        documents = [random.integers(3, architecture.vocab_size, size=int(length)) for length in mix]
        scorer.score([np.full(setting.seq_length + 1, 3)])  # a whole row: the first mix does not pay for its memory
        setting.device.synchronize()
        started = time.perf_counter()
        scores = scorer.score(documents)
        seconds = time.perf_counter() - started
        found[name] = {"tokens_per_second": float(scores.num_tokens.sum() / seconds), "seconds": seconds}
    ratio = found["web-like"]["tokens_per_second"] / found["full rows"]["tokens_per_second"]
    return {**found, "web-like over full rows": ratio}


def checkpoint_save(setting: Setting) -> dict[str, Any]:
    """The training state of Llama-3.2-1B written to the temporary folder's disk, and the snapshot that blocks."""
    from benchmarks._bench_model import Options, row_of_documents, trained_model
    from megatron_synE.checkpoint.dcp import save_chunks
    from megatron_synE.checkpoint.training_state import chunks_to_save

    architecture = setting.architecture("llama3.2_1b")
    trained = trained_model(architecture, Options(seq_length=setting.seq_length), setting.device)
    row = row_of_documents(architecture, seq_length=setting.seq_length, mean_document=None, device=setting.device)
    trained.step(row)
    setting.device.synchronize()
    started = time.perf_counter()
    trained.step(row)
    setting.device.synchronize()
    step_seconds = time.perf_counter() - started
    chunks = chunks_to_save(trained.model, trained.optimizer)
    started = time.perf_counter()
    copies = [chunk.tensor().detach().to("cpu", copy=True) for chunk in chunks]  # as checkpoint/save.py
    snapshot_seconds = time.perf_counter() - started
    size = sum(copy.numel() * copy.element_size() for copy in copies)
    del copies
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        save_chunks(Path(folder) / "state", chunks)
        seconds = time.perf_counter() - started
    return {
        "bytes": size, "seconds": seconds, "gb_per_second": size / seconds / 1e9,
        "snapshot_seconds": snapshot_seconds, "step_seconds": step_seconds,
    }  # fmt: skip


def llama3_8b_full(setting: Setting) -> dict[str, Any]:
    """All parameters of Llama-3-8B trained on the one card, in bf16 alone: a figure, not a recipe."""
    from benchmarks._one_card import train

    return train(setting)


def _rates(tokens: int, seconds: float, flops: float, kind: str) -> dict[str, float]:
    """flops: of attention within the causal square, also where documents are masked and less is done."""
    name = "tflops" if kind == "unmasked" else "tflops_as_if_unmasked"
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, name: flops / seconds / 1e12}


SECTIONS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "numerics": numerics,
    "kernels": kernels,
    "block_stack": block_stack,
    "step_llama3_2_1b": partial(whole_step, "llama3.2_1b"),
    "llama3_8b_full": llama3_8b_full,
    "step_llama3_2_3b": partial(whole_step, "llama3.2_3b"),
    "step_tinyllama": partial(whole_step, "tinyllama_1.1b"),
    "step_smollm2_135m": partial(whole_step, "smollm2_135m"),
    "ppl_scoring": ppl_scoring,
    "checkpoint_save": checkpoint_save,
}
"""In the order of what is wanted most: a card may be there for minutes. Last what waits for a disk."""
