"""AdamW on bf16 weights with bf16 moments and no fp32 masters: eight bytes a parameter, gradient included.

What masters are for, stochastic rounding does: an update too small for bf16 moves the weight with the probability that
makes its mean right. For throughput on one card and for what does not fit otherwise; the recipe trains with masters.
"""

from collections.abc import Iterable
from typing import Any

import torch

ELEMENTS_AT_ONCE = 1 << 24
"""fp32 copies of so many at a time: 8B's embedding alone would need 2 GB for each of five. Ours."""


def round_stochastically(x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """fp32 -> bf16, up or down with the probability that makes the mean x; NaN and infinity stay what they are.

    bf16 is fp32 without its low 16 bits: adding a random number of 16 bits before cutting them off carries over into
    the 17th just as often as it should. In the topmost binade it may carry to infinity, as rounding to nearest may.
    """
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    rounded = ((x.view(torch.int32) + noise) & -65536).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


class Bf16Adam(torch.optim.Optimizer):
    """AdamW with decoupled weight decay and bias correction; state exp_avg and exp_avg_sq in bf16."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        seed: int = 1234,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seed, self._steps = seed, 0

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; norms and biases are not decayed."""
        self._steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.dtype != torch.bfloat16:
                    raise AssertionError(f"a weight in {parameter.dtype}; this optimizer is for bf16 alone")
                state = self.state[parameter]
                if not state:
                    state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                decay = group["weight_decay"] if parameter.dim() > 1 else 0.0
                parts = [
                    tensor.view(-1).split(ELEMENTS_AT_ONCE)
                    for tensor in (parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
                ]
                for weight, gradient, first, second in zip(*parts, strict=True):
                    self._update(weight, gradient, first, second, group, decay=decay)

    def _update(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        group: dict[str, Any],
        *,
        decay: float,
    ) -> None:
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        g = gradient.float()
        m = first.float().lerp_(g, 1 - beta1)
        v = second.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w = weight.float().mul_(1 - lr * decay)
        correction = (1 - beta2**self._steps) ** 0.5
        w.addcdiv_(m, (v.sqrt() / correction).add_(eps), value=-lr / (1 - beta1**self._steps))
        generator = self._generator(weight.device)
        for stored, value in ((weight, w), (first, m), (second, v)):
            stored.copy_(round_stochastically(value, generator))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]
