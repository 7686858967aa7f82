"""Made-up validations for the tests of topic controllers: losses of a given PPL, and a run over several of them."""

import math
from collections.abc import Mapping

from hypothesis import strategies as st

from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import Decision, Observation, TopicLosses, decide

TOKENS = (100, 300, 50, 250)
ELEVEN = tuple(f"topic {index}" for index in range(11))
PPL = st.floats(1.5, 60.0)


def losses(ppl: float) -> TopicLosses:
    """Four documents of PPL `ppl` each."""
    return TopicLosses(nll_sums=tuple(math.log(ppl) * count for count in TOKENS), tokens=TOKENS)


def observation(ppl: Mapping[str, float], consumed: int = 0) -> Observation:
    return Observation(
        consumed_tokens=consumed,
        losses={topic: losses(value) for topic, value in ppl.items()},
        tokens_by_topic=dict.fromkeys(ppl, consumed // max(len(ppl), 1)),
    )


def run(
    controller: ControllerSettings, ratios: Mapping[str, float], *checks: Mapping[str, float], every: int = 1_000_000
) -> Decision:
    """The last decision over these validations, one PPL per topic each."""
    decision = decide(controller, ratios, None, observation(checks[0]))
    for index, ppl in enumerate(checks[1:], 1):
        decision = decide(controller, decision.ratios, decision.state, observation(ppl, index * every))
    return decision


def free(name: str, **others: object) -> ControllerSettings:
    """This controller's bare rule, no guard."""
    off = {"floor": 0.0, "ceiling": math.inf, "max_shift": 1.0, "ema": 1.0, "noise_level": 0.0}
    return ControllerSettings(name=name, **{**off, **others})  # type: ignore[arg-type]
