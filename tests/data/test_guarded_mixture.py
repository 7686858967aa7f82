"""A guard whose language has no more text than the plan reads: training goes on as planned."""

from dataclasses import replace
from fractions import Fraction

import pytest

from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import TopicLosses
from data_mixers.exhaustion import window_limits
from data_mixers.guard import GuardObservation, GuardSettings
from data_mixers.mixture import PlannedPhase
from data_mixers.sampling import Sampler
from megatron_synE.mixing import Answer, GuardAnswer, Mixture
from tests.data_mixers.orders import index_of
from tests.data_mixers.test_curriculum import entry

SUMS = (30.0, 40.0, 50.0, 36.0, 33.0, 28.0, 47.0, 31.0)
LOSSES = TopicLosses(nll_sums=SUMS, tokens=(10,) * 8)
WORSE = TopicLosses(nll_sums=tuple(nll + 5 + number % 2 for number, nll in enumerate(SUMS)), tokens=(10,) * 8)


def mixture(english_windows: int, *, renormalizes: bool) -> Mixture:
    """400 samples, of which 96 are English."""
    sources = [entry("law", None), entry("news", None, language="en", tokens=64 * english_windows + 1)]
    entries = {source.name: source for source in sources}
    weights = dict(zip(entries, (Fraction(76, 100), Fraction(24, 100)), strict=True))
    return Mixture(
        planned=(PlannedPhase(name="s", stage="s", num_samples=400, weights=weights),),
        entries=entries,
        seed=1,
        seq_length=64,
        samples_per_iteration=8,
        skips=(),
        limits=window_limits(entries, seq_length=64, max_epochs=1.0),
        renormalizes=renormalizes,
        settings=ControllerSettings(),
        groups=(),
        stages=None,
        guard_settings=GuardSettings(action="raise", step=0.02),
    )


def second_answer(mixture: Mixture) -> GuardAnswer:
    first = mixture.guarded(GuardObservation(consumed_tokens=0, losses=LOSSES, answers=None))
    later = mixture.after(Answer(groups={}, guard=first))
    return later.guarded(GuardObservation(consumed_tokens=64 * 8, losses=WORSE, answers=None))


@pytest.mark.parametrize("renormalizes", [True, False])
def test_a_rise_that_the_text_does_not_last_for_is_not_taken(renormalizes: bool) -> None:
    plenty = second_answer(mixture(200, renormalizes=renormalizes))
    assert plenty.decision.worse == ("loss",)
    assert plenty.shift is not None
    assert (plenty.shift.start_sample, plenty.shift.rise) == (24, 0.02)  # decided at 8, two iterations of 8 later
    short = second_answer(mixture(100, renormalizes=renormalizes))  # 24 * 0.24 + 376 * 0.26 = 103.5
    assert short.decision.worse == ("loss",)
    assert (short.shift, short.decision.state.rise) == (None, 0.0)
    assert "data.max_epochs" in short.decision.notes[-1]


def test_when_another_language_is_guarded_the_shares_are_the_planned_ones_again() -> None:
    run = mixture(200, renormalizes=False)
    run = run.after(Answer(groups={}, guard=second_answer(run)))
    other = replace(run, guard_settings=replace(run.guard_settings, language="zh"))
    answer = other.guarded(GuardObservation(consumed_tokens=64 * 40, losses=LOSSES, answers=None))
    weights = [dict(phase.weights) for phase in other.after(Answer(groups={}, guard=answer)).schedule.phases]
    assert [found["en/web/news"] / 2**32 for found in weights] == pytest.approx([0.24, 0.26, 0.24])


def test_where_the_language_guarded_before_cannot_go_back_the_other_takes_nothing_over() -> None:
    """Law has no more text than is read beside the raised share."""
    run = mixture(200, renormalizes=False)
    run = run.after(Answer(groups={}, guard=second_answer(run)))
    law, _ = run.entries
    schedule = run.schedule
    read = Sampler(schedule).cursors(400)[index_of(schedule, law)]
    short = replace(run, limits={**run.limits, law: int(read)})
    other = replace(short, guard_settings=replace(run.guard_settings, language="zh"))
    answer = other.guarded(GuardObservation(consumed_tokens=64 * 40, losses=LOSSES, answers=None))
    assert answer.shift is None and "data.max_epochs" in answer.decision.notes[-1]
    later = replace(other.after(Answer(groups={}, guard=answer)), limits=run.limits)
    again = later.guarded(GuardObservation(consumed_tokens=64 * 48, losses=WORSE, answers=None))
    assert again.shift is not None and (again.shift.language, again.shift.rise) == ("zh", 0.0)
