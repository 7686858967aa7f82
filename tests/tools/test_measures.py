"""Units, n-grams and measures against slow definitions that share no code with them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.data.measures import Measured
from tools.data.units import hashes_of, ngram_hashes, num_han, units_of


def _grams(units: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


def _share_of(units: list[str], starts: list[int], n: int) -> float:
    covered = {place for start in starts for place in range(start, start + n)}
    return sum(len(units[place]) for place in covered) / max(1, sum(map(len, units)))


def _slow_top(units: list[str], n: int) -> float:
    counts = Counter(_grams(units, n))  # most_common keeps the first of equals
    if not counts or counts.most_common(1)[0][1] < 2:
        return 0.0
    best = counts.most_common(1)[0][0]
    return _share_of(units, [i for i, gram in enumerate(_grams(units, n)) if gram == best], n)


def _slow_duplicates(units: list[str], n: int) -> float:
    grams = _grams(units, n)
    return _share_of(units, [i for i, gram in enumerate(grams) if gram in grams[:i]], n)


TEXTS = st.lists(
    st.sampled_from(["我", "们", "学", "数", " the ", " tree ", " a ", "，", "\n", " 12 "]), max_size=80
).map("".join)


@given(TEXTS, st.integers(1, 11))
def test_ngram_shares_are_those_of_their_definition(text: str, n: int) -> None:
    units = units_of(text)
    assert Measured(text).top_ngram_share(n) == pytest.approx(_slow_top(units, n))
    measured = Measured(text)
    shares = [measured.duplicate_ngram_share(length) for length in range(1, n + 1)]
    assert shares[-1] == pytest.approx(_slow_duplicates(units, n))
    assert shares == sorted(shares, reverse=True)  # what lets the rules skip longer n-grams
    assert measured.duplicate_ngram_share_bound(n + 3) == shares[-1]
    assert Measured(text).duplicate_ngram_share_bound(n) == 1.0


@given(TEXTS, st.integers(1, 13))
def test_equal_ngrams_and_only_they_have_equal_hashes(text: str, n: int) -> None:
    units = units_of(text)
    hashes = ngram_hashes(hashes_of(units), n).tolist()
    grams = _grams(units, n)
    assert len(hashes) == len(grams)
    assert len(dict(zip(grams, hashes, strict=True))) == len(set(hashes)) == len(set(grams))


def test_order_of_units_changes_the_hash() -> None:
    one, other = (ngram_hashes(hashes_of(units), 3) for units in (["a", "b", "c"], ["c", "b", "a"]))
    assert one[0] != other[0]


def test_units_are_characters_of_chinese_and_words_of_english_without_marks() -> None:
    text = "Ｌet x＝1, the 数学（Math）的 ＦＩＲＳＴ straße_2"
    assert units_of(text) == ["let", "x", "1", "the", "数", "学", "math", "的", "first", "strasse", "2"]
    assert num_han(["数", "の", "a", "1"]) == 2


def test_script_follows_the_majority_of_units() -> None:
    assert Measured("数学是 science").is_mostly_han
    assert not Measured("数学 is a science").is_mostly_han


def test_line_and_paragraph_shares_by_hand() -> None:
    text = (
        "one\ntwo two\none\n\none\n\none"  # lines one, two two, one, one, one; paragraphs 3, the last like the second
    )
    measured = Measured(text)
    assert measured.duplicate_line_share() == pytest.approx(3 / 5)
    assert measured.duplicate_line_character_share() == pytest.approx(9 / 19)
    assert measured.duplicate_paragraph_share() == pytest.approx(1 / 3)
    assert measured.duplicate_paragraph_character_share() == pytest.approx(3 / 21)


def test_lengths_by_hand() -> None:
    measured = Measured("数学 is fun!")
    assert measured.num_units == 4
    assert measured.mean_unit_length == pytest.approx((1 + 1 + 2 + 3) / 4)
    assert Measured("").mean_unit_length == 1.0  # nothing is divided by zero
