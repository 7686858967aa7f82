"""The learning rate at chosen tokens, worked by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.config.schema import LrScheduleSection
from megatron_synE.optim.lr_schedule import LrSchedule

LR, TOTAL = 1e-3, 10_000


def schedule(**fields: Any) -> LrSchedule:
    return LrSchedule(LrScheduleSection(**({"start_lr": 1e-4} | fields)), lr=LR, total_tokens=TOTAL)


def rates(made: LrSchedule, *tokens: int) -> list[float]:
    return [made.at(token) for token in tokens]


def test_warm_up_is_linear_from_the_start_rate() -> None:
    made = schedule(warmup_tokens=1000)
    assert rates(made, 0, 250, 500, 999, 1000, 1001) == pytest.approx([1e-4, 3.25e-4, 5.5e-4, 9.991e-4, 1e-3, 1e-3])


def test_the_published_warm_up_of_ten_billion_tokens() -> None:
    section = LrScheduleSection(start_lr=1e-7, warmup_tokens=10_000_000_000)
    made = LrSchedule(section, lr=1e-5, total_tokens=92_500_000_000)
    assert rates(made, 0, 5_000_000_000, 10_000_000_000, 92_499_999_999) == pytest.approx([1e-7, 5.05e-6, 1e-5, 1e-5])


@pytest.mark.parametrize(
    ("style", "at_quarter", "at_half", "at_three_quarters"),
    [
        ("linear", 0.75, 0.5, 0.25),
        ("cosine", 0.8535533906, 0.5, 0.1464466094),  # (1 + cos(pi/4)) / 2 = (2 + sqrt 2) / 4
        ("1-sqrt", 0.5, 0.2928932188, 0.1339745962),  # 1 - 1/2, 1 - sqrt(1/2), 1 - sqrt(3)/2
    ],
)
def test_the_decay_of_wsd(style: str, at_quarter: float, at_half: float, at_three_quarters: float) -> None:
    made = schedule(style="wsd", warmup_tokens=1000, decay_tokens=2000, decay_style=style, min_lr=2e-4)
    expected = [2e-4 + 8e-4 * left for left in (1.0, at_quarter, at_half, at_three_quarters, 0.0)]
    assert rates(made, 8000, 8500, 9000, 9500, 10_000) == pytest.approx(expected)
    assert rates(made, 1000, 5000, 7999) == [LR, LR, LR]


def test_wsd_without_a_decay_stays() -> None:
    assert rates(schedule(style="wsd"), 0, 5000, 9999, 10_000) == [LR] * 4


def test_cosine_decays_over_everything_after_the_warm_up() -> None:
    made = schedule(style="cosine", warmup_tokens=2000, min_lr=0.0)
    assert rates(made, 2000, 4000, 6000, 8000, 10_000) == pytest.approx([1e-3, 8.535534e-4, 5e-4, 1.464466e-4, 0.0])


def test_constant_keeps_the_peak() -> None:
    assert rates(schedule(style="constant", warmup_tokens=100), 0, 50, 100, 10_000) == pytest.approx(
        [1e-4, 5.5e-4, 1e-3, 1e-3]
    )


def test_past_the_last_token_the_lowest_rate_stays() -> None:
    assert schedule(style="wsd", decay_tokens=1000, min_lr=3e-5).at(20_000) == pytest.approx(3e-5)
    assert schedule(style="cosine", min_lr=3e-5).at(20_000) == pytest.approx(3e-5)


def test_warm_up_may_meet_the_decay() -> None:
    made = schedule(style="wsd", warmup_tokens=6000, decay_tokens=4000, decay_style="linear")
    assert rates(made, 5999, 6000, 6001) == pytest.approx([1e-4 + 9e-4 * 5999 / 6000, 1e-3, 1e-3 * 3999 / 4000])


@given(
    style=st.sampled_from(["wsd", "cosine", "constant"]), decay_style=st.sampled_from(["linear", "cosine", "1-sqrt"]),
    warmup=st.integers(0, 5000), decay=st.integers(0, 5000), tokens=st.integers(0, 10_000),
)  # fmt: skip
def test_up_then_never_up_again_and_always_between_the_bounds(
    style: str, decay_style: str, warmup: int, decay: int, tokens: int
) -> None:
    made = schedule(style=style, decay_style=decay_style, warmup_tokens=warmup, decay_tokens=decay, min_lr=5e-5)
    now, later = made.at(tokens), made.at(min(tokens + 7, TOTAL))
    assert 5e-5 <= now <= LR * (1 + 1e-12)
    if tokens >= warmup:
        assert later <= now * (1 + 1e-12)
    elif tokens + 7 <= warmup:
        assert later > now
