"""A whole model of random weights with optimizer and synthetic rows: what a figure of a step needs of the trainer.

The same functions build it as build a run's; only samples come from a random generator instead of token files.
"""

import gc
from dataclasses import dataclass
from typing import Any, Literal

import torch

from megatron_synE.alone import planned_alone
from megatron_synE.build import Model, build_chunks, build_model, build_optimizer, transformer_config
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import ModelSection, RunConfig, TrainingSection
from megatron_synE.data.batch import MicroBatch, micro_batch
from megatron_synE.kernels.choice import Asked
from megatron_synE.kernels.float8 import Format, Recipe
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.layer_spec import choose
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.runtime.device import Device
from megatron_synE.trainer import forward_step


@dataclass(frozen=True, kw_only=True)
class Options:
    """What differs between figures."""

    seq_length: int
    precision: Literal["bf16", "fp32"] = "bf16"
    recompute: Literal["none", "selective", "full"] = "none"
    kernels: Asked = "auto"
    fp8: Format | None = None
    fp8_recipe: Recipe = "tensorwise"


def prepared(architecture: LlamaArchitecture, options: Options, device: Device) -> tuple[RunConfig, RunPlan]:
    """One sequence a step, in a process group of one."""
    training = TrainingSection(
        seq_length=options.seq_length, global_batch_size=1, precision=options.precision, recompute=options.recompute,
        fp8=options.fp8, fp8_recipe=options.fp8_recipe,
    )  # fmt: skip
    model = ModelSection(attention="native", kernels=options.kernels)
    return planned_alone(architecture, training, model, device)


@dataclass(frozen=True)
class TrainedModel:
    """Model and optimizer as a run has them."""

    model: Model
    optimizer: Any
    seq_length: int

    def gradients(self, batch: MicroBatch) -> torch.Tensor:
        """Forward and backward over one row; [sum of NLL, tokens], for which the host does not wait."""
        for module in self.model.ddp:
            module.zero_grad_buffer()
        self.optimizer.zero_grad()
        (loss,) = self.model.run(forward_step, [batch], row=self.seq_length)
        totals: torch.Tensor = loss["nll_and_tokens"]
        return totals

    def step(self, batch: MicroBatch) -> float:
        """The whole step: gradients, clipping, AdamW; the mean loss, read when all of it is on its way."""
        totals = self.gradients(batch)
        self.optimizer.step()
        nll, tokens = totals.tolist()
        return float(nll / tokens)


def trained_model(architecture: LlamaArchitecture, options: Options, device: Device) -> TrainedModel:
    """As megatron_synE.train builds it."""
    config, plan = prepared(architecture, options, device)
    model = build_model(config, plan, device)
    return TrainedModel(model, build_optimizer(config, plan, model), options.seq_length)


def forget(device: Device) -> None:
    """Give back the memory of a model that nobody holds any more, and count the peak anew.

    Hooks and closures of megatron-core's data parallelism are cycles: without a collection the next model is built
    beside the last one.
    """
    gc.collect()
    if device.is_cuda:
        torch.cuda.reset_peak_memory_stats()


def bare_model(architecture: LlamaArchitecture, options: Options, device: Device) -> LlamaModel:
    """Without gradient buffers and masters: weights alone, in the run's precision."""
    config, plan = prepared(architecture, options, device)
    core_config = transformer_config(config, plan, device)
    layers = choose(
        "native", device,
        dtype=options.precision, kernels=options.kernels, fp8=options.fp8, fp8_recipe=options.fp8_recipe,
    )  # fmt: skip
    (model,) = build_chunks(core_config, config, plan, layers, device)
    return model


def row_of_documents(
    architecture: LlamaArchitecture, *, seq_length: int, mean_document: int | None, device: Device, seed: int = 0
) -> MicroBatch:
    """Random tokens. mean_document: of exponentially distributed lengths; None: one document."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, architecture.vocab_size, (1, seq_length + 1), generator=random)
    bounds = [0]
    while mean_document is not None and bounds[-1] < seq_length:
        share = float(torch.rand(1, generator=random))
        bounds.append(bounds[-1] + 1 + int(-mean_document * torch.tensor(1 - share).log()))
    inner = [bound for bound in bounds[1:] if bound < seq_length]
    mask = torch.ones(1, seq_length)
    return micro_batch(ids[:, :-1], ids[:, 1:], mask, (0, *inner, seq_length), device=device.torch_device)
