"""Shares to weights: nested, in tokens, exact, and refused by key."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.errors import ConfigError
from data_mixers.manifest import Role, ShardEntry, SourceEntry
from data_mixers.ratios import quantise, stage_weights


def entry(name: str, tokens: int, *, role: Role = "train") -> SourceEntry:
    language, source, topic, *bucket = name.split("@")[0].split("/")
    shard = ShardEntry(
        prefix="x", num_documents=1, num_tokens=tokens, text_bytes=1, bin_size_bytes=1, idx_size_bytes=1, bin_sha256="",
        idx_sha256="",
    )  # fmt: skip
    return SourceEntry(
        name=name, language=language, source=source, topic=topic, bucket=bucket[0] if bucket else None, role=role,
        shards=(shard,),
    )  # fmt: skip


ENTRIES = [
    entry("zh/web/law", 300),
    entry("zh/web/math", 100),
    entry("zh/book/novel", 400),
    entry("en/web/medicine", 60),
    entry("en/web/computing/easy", 30),
    entry("en/web/computing/hard", 10),
    entry("en/web/medicine@holdout", 60, role="validation"),
    entry("code/web/python@validation", 60, role="validation"),
]


def test_languages_alone_divide_the_rest_by_tokens() -> None:
    assert stage_weights({"zh": 0.2, "en": 0.8}, {}, {}, ENTRIES) == {
        "zh/web/law": Fraction(2, 10) * Fraction(300, 800),
        "zh/web/math": Fraction(2, 10) * Fraction(100, 800),
        "zh/book/novel": Fraction(2, 10) * Fraction(400, 800),
        "en/web/medicine": Fraction(8, 10) * Fraction(60, 100),
        "en/web/computing/easy": Fraction(8, 10) * Fraction(30, 100),
        "en/web/computing/hard": Fraction(8, 10) * Fraction(10, 100),
    }


def test_every_level_that_is_written_is_obeyed() -> None:
    weights = stage_weights(
        {"zh": 0.7, "en": 0.3},
        {"zh": {"web": 0.9, "book": 0.1}},
        {"zh": {"web": {"law": 0.25, "math": 0.75}}, "en": {"web": {"computing": 1}}},
        ENTRIES,
    )
    assert weights == {
        "zh/web/law": Fraction(63 * 25, 10_000),
        "zh/web/math": Fraction(63 * 75, 10_000),
        "zh/book/novel": Fraction(7, 100),
        "en/web/medicine": 0,
        "en/web/computing/easy": Fraction(3, 10) * Fraction(30, 40),
        "en/web/computing/hard": Fraction(3, 10) * Fraction(10, 40),
    }


@pytest.mark.parametrize(
    ("languages", "sources", "topics", "message"),
    [
        ({"zh": 0.2, "en": 0.7}, {}, {}, r"data\.stages\[1\]\.languages sum to 0\.9"),
        ({"zh": 0.2, "fr": 0.8}, {}, {}, r"data\.stages\[1\]\.languages\.fr has no data.*en, zh"),
        ({"zh": 0.2, "code": 0.8}, {}, {}, r"languages\.code has only held-out"),
        ({"zh": 1.0}, {"zh": {"forum": 1.0}}, {}, r"data\.stages\[1\]\.sources\.zh\.forum has no data.*book, web"),
        ({"zh": 1.0}, {"en": {"web": 1.0}}, {}, r"data\.stages\[1\]\.sources\.en divides"),
        (
            {"zh": 1.0},
            {},
            {"zh": {"web": {"art": 1.0}}},
            r"data\.stages\[1\]\.topics\.zh\.web\.art has no data.*law, math",
        ),
        ({"zh": 1.0}, {}, {"zh": {"wiki": {"law": 1.0}}}, r"data\.stages\[1\]\.topics\.zh\.wiki divides"),
        ({"zh": 1.5, "en": -0.5}, {}, {}, r"languages\.en=-0\.5 is not a share"),
        ({"zh": math.nan, "en": 1.0}, {}, {}, r"languages\.zh=nan is not a share"),
        ({"zh": math.inf, "en": 1.0}, {}, {}, r"languages\.zh=inf is not a share"),
        ({"zh": 0.0, "en": 0.0}, {}, {}, r"languages sum to 0, not 1"),
        ({"zh": 1.0}, {"zh": {"web": 0.0}}, {}, r"sources\.zh sum to 0, not 1"),
    ],
)
def test_a_share_that_fits_no_data_is_refused_by_key(
    languages: dict[str, float],
    sources: dict[str, dict[str, float]],
    topics: dict[str, dict[str, dict[str, float]]],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        stage_weights(languages, sources, topics, ENTRIES, where="data.stages[1]")


@pytest.mark.parametrize("weights", [[1, -1, 1], [0, 0, 0]])
def test_weights_below_zero_or_all_zero_are_refused(weights: list[int]) -> None:
    with pytest.raises(ConfigError, match="at least 0 and not all 0"):
        quantise({str(index): Fraction(weight) for index, weight in enumerate(weights)})


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=200).filter(lambda shares: sum(shares) > 0))
def test_quantised_weights_sum_to_the_unit_and_are_off_by_less_than_one(shares: list[float]) -> None:
    exact = {str(index): Fraction(share) for index, share in enumerate(shares)}
    total = sum(exact.values())
    whole = quantise(exact)
    assert sum(whole.values()) == 1 << 32
    assert all((whole[name] > 0) == (share > 0) for name, share in exact.items())
    # one unit for rounding; a largest one may also give one unit for each weight that was lifted to 1
    largest = max(exact.values())
    for name, share in exact.items():
        assert abs(whole[name] - share * (1 << 32) / total) <= (len(shares) if share == largest else 1)
