"""Twenty fp32 losses of a run against the same run in float64: transformers, and AdamW written out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_mixers.manifest import read_manifest
from data_mixers.schedule import Schedule
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from tests import tiny
from tests.parity.test_training import sample_nll

STEPS, BATCH, SEQ_LENGTH = 20, 8, 32
WARMUP, DECAY, TOTAL = 512, 512, STEPS * BATCH * SEQ_LENGTH
BETA1, BETA2, EPS, DECAY_RATE, CLIP = 0.9, 0.95, 1e-8, 0.1, 1.0


class Float64Norm(torch.nn.Module):
    """RMSNorm without the detour through fp32 that transformers' own takes."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def float64_model(folder: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).train()
    for layer in model.model.layers:
        layer.input_layernorm = Float64Norm(layer.input_layernorm)
        layer.post_attention_layernorm = Float64Norm(layer.post_attention_layernorm)
    model.model.norm = Float64Norm(model.model.norm)
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())
    return model


def rate(consumed_tokens: int) -> float:
    if consumed_tokens < WARMUP:
        return 1e-4 + (1e-3 - 1e-4) * consumed_tokens / WARMUP
    left = TOTAL - consumed_tokens
    return 1e-3 if left >= DECAY else 1e-3 * (1 - math.sqrt(1 - left / DECAY))


def float64_losses(model: torch.nn.Module, dataset: ScheduledDataset) -> list[float]:
    """AdamW after arXiv 1711.05101, algorithm 2, with the gradient clipped to norm 1 beforehand."""
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    losses = []
    for step in range(1, STEPS + 1):
        samples = range(BATCH * (step - 1), BATCH * step)
        loss = torch.stack([sample_nll(model, dataset[index]) for index in samples]).sum() / (BATCH * SEQ_LENGTH)
        assert loss.dtype == torch.float64
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        scale = min(1.0, CLIP / (norm + 1e-6))  # the 1e-6 is megatron-core's and torch's
        lr = rate((step - 1) * BATCH * SEQ_LENGTH)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(BETA1).add_(g * scale, alpha=1 - BETA1)
                v.mul_(BETA2).add_((g * scale).square(), alpha=1 - BETA2)
                if p.dim() > 1:
                    p.mul_(1 - lr * DECAY_RATE)
                p.sub_(lr * (m / (1 - BETA1**step)) / ((v / (1 - BETA2**step)).sqrt() + EPS))
    return losses


def test_twenty_losses_are_those_of_float64(tmp_path: Path) -> None:
    stages = [{"name": "adapt", "tokens": TOTAL, "languages": {"zh": 0.2, "en": 0.8}}]
    config = tiny.prepared(tmp_path, data={"stages": stages}, validation={"manifests": []})
    tiny.train(config)
    run = tmp_path / "run"
    schedule = Schedule.from_json((run / "schedule.json").read_text())
    dataset = ScheduledDataset(schedule, [read_manifest(tmp_path / "train")])
    tokens = np.stack([dataset[index].tokens for index in range(STEPS * BATCH)])
    # Both sides of an EOS count, as label and as input: the mask that leaves out EOS after EOS takes nothing else away.
    assert min((tokens[:, 1:] == tiny.EOS).sum(), (tokens[:, :-1] == tiny.EOS).sum()) > 100
    expected = float64_losses(float64_model(tmp_path / "hf"), dataset)
    rows = tiny.rows(run, "train")
    assert [row["learning_rate"] for row in rows] == pytest.approx([rate(256 * step) for step in range(STEPS)])
    assert expected[0] - expected[-1] > 0.05  # it learns, so twenty losses are twenty facts
    # Four units in the last place of a loss near 5.5; a single wrong constant is orders above it.
    assert [row["lm_loss"] for row in rows] == pytest.approx(expected, abs=2e-6)
