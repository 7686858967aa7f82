"""Learning rate as a pure function of tokens consumed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from megatron_synE.config.schema import LrScheduleSection

_DECAYS: dict[str, Callable[[float], float]] = {
    # progress in [0, 1] -> how much of (lr - min_lr) is left
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


@dataclass(frozen=True)
class LrSchedule:
    """Warm-up from start_lr, then stable, cosine or constant, with the final decay of WSD.

    Unit: tokens since the start of the run. Source: WSD of arXiv 2407.18743; 1-sqrt from 2412.17743.
    """

    section: LrScheduleSection
    lr: float
    total_tokens: int

    def at(self, consumed_tokens: int) -> float:
        """The rate of the step that begins after this many tokens."""
        section = self.section
        if consumed_tokens < section.warmup_tokens:
            return section.start_lr + (self.lr - section.start_lr) * consumed_tokens / section.warmup_tokens
        if section.style == "constant":
            return self.lr
        if section.style == "cosine":
            start, length, left = section.warmup_tokens, self.total_tokens - section.warmup_tokens, _DECAYS["cosine"]
        else:
            start = self.total_tokens - section.decay_tokens
            length, left = section.decay_tokens, _DECAYS[section.decay_style]
        if length <= 0 or consumed_tokens <= start:
            return self.lr
        progress = min(1.0, (consumed_tokens - start) / length)
        return section.min_lr + (self.lr - section.min_lr) * left(progress)
