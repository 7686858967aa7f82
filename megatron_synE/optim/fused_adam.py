"""AdamW with the FusedAdam contract of apex and Transformer Engine, for where neither is installed.

megatron-core's distributed optimizer treats torch.optim.AdamW differently from FusedAdam, and that path resumes with
one step counter shared by all parameters (84 instead of 6 after a few steps, MCORE trap S2; still so in 0.19.2). Here
the counter lives in the parameter group and the state holds exp_avg and exp_avg_sq alone, as on GPUs.
"""

from collections.abc import Iterable
from typing import Any

import torch

from megatron_synE.runtime.mcore import mcore_distrib_optimizer, mcore_optimizer


class FusedAdam(torch.optim.Optimizer):
    """AdamW by torch's fused kernel (CPU and CUDA); decoupled weight decay, bias correction."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        bias_correction: bool = True,
        **_: object,
    ) -> None:
        if not (adam_w_mode and bias_correction):
            raise AssertionError("only bias-corrected AdamW is built")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            group["step"] = int(group.get("step", 0)) + 1
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            # The kernel only reads the counters, so all parameters may share one tensor. Filled on the device: to put a
            # host value there (torch.tensor) the host would wait until all that is queued is done.
            step = torch.full((), float(group["step"]), dtype=torch.float32, device=params[0].device)
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                [step] * len(params),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=None,
            )


def install_where_needed() -> str:
    """Make megatron-core build our FusedAdam unless apex or Transformer Engine brings one; what it will use."""
    if not mcore_optimizer.USING_PYTORCH_OPTIMIZER and mcore_optimizer.Adam is not FusedAdam:
        return f"{mcore_optimizer.Adam.__module__}.{mcore_optimizer.Adam.__name__}"
    mcore_optimizer.Adam = FusedAdam
    mcore_optimizer.USING_PYTORCH_OPTIMIZER = False
    mcore_distrib_optimizer.Adam = FusedAdam
    mcore_distrib_optimizer.HAVE_APEX_OR_TE = True
    mcore_distrib_optimizer.USING_APEX_OPTIMIZER = True
    return "torch fused AdamW (FusedAdam contract)"
