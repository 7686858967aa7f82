"""Steps that leave the path, by a loss that is not finite or far above those before it, and what is done about them.

All of it is asked before the optimizer step, on values that are the same on every rank: the weights are still whole.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_synE.config.schema import StabilitySection
from megatron_synE.exit_codes import DivergedError


@dataclass(frozen=True)
class Anomaly:
    """What is wrong with a step."""

    kind: Literal["nan", "spike"]
    lm_loss: float
    grad_norm: float
    bound: float | None
    """Of a spike: the loss that was still allowed."""

    def __str__(self) -> str:
        if self.kind == "nan":
            return f"the loss is {self.lm_loss:g}, the gradient norm is {self.grad_norm:g}"
        return f"the loss is {self.lm_loss:.4f}, more than {self.bound:.4f}"

    def facts(self) -> dict[str, float | str | None]:
        """For metrics.jsonl and events: JSON has no word for what is not finite."""
        loss, norm = (value if math.isfinite(value) else str(value) for value in (self.lm_loss, self.grad_norm))
        return {"anomaly": self.kind, "lm_loss": loss, "grad_norm": norm, "bound": self.bound}


def find_anomaly(
    section: StabilitySection, recent_losses: Sequence[float], *, lm_loss: float, grad_norm: float
) -> Anomaly | None:
    """What is wrong with a step, if anything.

    recent_losses: of the steps before; a spike is one beyond their mean by spike_sigma standard deviations, once there
    are spike_window of them.
    """
    if not (math.isfinite(lm_loss) and math.isfinite(grad_norm)):
        return Anomaly("nan", lm_loss, grad_norm, None)
    if section.on_spike == "ignore" or len(recent_losses) < section.spike_window:
        return None
    bound = statistics.fmean(recent_losses) + section.spike_sigma * statistics.stdev(recent_losses)
    return Anomaly("spike", lm_loss, grad_norm, bound) if lm_loss > bound else None


@dataclass(frozen=True)
class Remedy:
    """The data of iterations first..last is left out; rollback: after going back to a checkpoint before them."""

    action: Literal["skip", "rollback"]
    first: int
    last: int


class Stability:
    """Decides about one run's bad steps, and counts what was done."""

    def __init__(self, section: StabilitySection) -> None:
        self.section = section
        self._last_bad = 0
        self._recoveries = 0

    def good(self, iteration: int) -> None:
        """A step was taken; beyond the last bad one the count begins anew."""
        if iteration >= self._last_bad:
            self._recoveries = 0

    def action(self, anomaly: Anomaly) -> str:
        """What the configuration says to do."""
        return self.section.on_nan if anomaly.kind == "nan" else self.section.on_spike

    def remedy(self, anomaly: Anomaly, *, iteration: int) -> Remedy:
        """What to do about iteration `iteration`. Errors: DivergedError if the run is to stop, or has tried enough."""
        action, limit = self.action(anomaly), self.section.max_recoveries
        self._recoveries, self._last_bad = self._recoveries + 1, max(iteration, self._last_bad)
        if action in ("stop", "ignore") or self._recoveries > limit:
            tried = f", after {limit} recoveries in a row" if self._recoveries > limit else ""
            raise DivergedError(
                f"{anomaly} at iteration {iteration}{tried}; the weights are untouched. "
                "Lower optimizer.lr, look at the samples of this iteration, and start again from the last checkpoint"
            )
        if action == "skip":
            return Remedy("skip", iteration, iteration)
        return Remedy("rollback", iteration - self.section.rollback_steps + 1, iteration)

    def losses_after(self, recent: tuple[float, ...], lm_loss: float, *, ends_stage: bool) -> tuple[float, ...]:
        """What the next step is compared with; nothing where spikes are not looked for."""
        if self.section.on_spike == "ignore" or ends_stage:
            return ()
        return (*recent, lm_loss)[-self.section.spike_window :]
