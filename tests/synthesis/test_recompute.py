"""Written arithmetic is worth what Python's fractions say, and a text can do nothing but be arithmetic."""

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.synthesis import independent
from tools.synthesis import expression
from tools.synthesis.expression import NotAnExpressionError, parse
from tools.synthesis.recompute import Recomputer
from tools.synthesis.verifiable.stream import items

Written = tuple[str, Fraction]


@pytest.fixture(scope="module")
def recomputer() -> Iterator[Recomputer]:
    with Recomputer() as made:
        yield made


def written() -> st.SearchStrategy[Written]:
    """(text, value) in many spellings, every part in brackets of some kind."""
    texts = st.one_of(
        st.integers(0, 10**6).map(str),
        st.integers(1000, 10**9).map("{:,}".format),
        st.tuples(st.integers(0, 999), st.integers(0, 99)).map(lambda parts: f"{parts[0]}.{parts[1]:02}"),
    )
    number = texts.map(lambda text: (text, Fraction(text.replace(",", ""))))

    def larger(parts: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
        signs = st.sampled_from(["+", "-", "−", "*", "×", r"\times ", r"\cdot ", "·"])
        two = st.tuples(parts, signs, parts).map(
            lambda p: (f"({p[0][0]} {p[1]} {p[2][0]})", _joined(p[0][1], p[1], p[2][1]))
        )
        over = st.tuples(parts, st.sampled_from(["/", "÷", r" \div ", "frac"]), parts.filter(lambda p: p[1] != 0)).map(
            lambda p: (
                rf"\frac{{{p[0][0]}}}{{{p[2][0]}}}" if p[1] == "frac" else rf"\left({p[0][0]}{p[1]}{p[2][0]}\right)",
                p[0][1] / p[2][1],
            )
        )
        power = st.tuples(parts, st.integers(0, 3)).map(lambda p: (f"({p[0][0]})^{{{p[1]}}}", p[0][1] ** p[1]))
        percent = parts.map(lambda p: (rf"({p[0]})\%", p[1] / 100))
        minus = parts.map(lambda p: (f"(-{p[0]})", -p[1]))
        return st.one_of(two, over, power, percent, minus)

    return st.recursive(number, larger, max_leaves=8)


def _joined(left: Fraction, sign: str, right: Fraction) -> Fraction:
    return left + right if sign == "+" else left - right if sign in "-−" else left * right


@settings(max_examples=300, deadline=None)
@given(written())
def test_the_value_is_that_of_fractions(recomputer: Recomputer, pair: Written) -> None:
    text, value = pair
    if len(text) > expression.MAX_CHARACTERS:
        with pytest.raises(NotAnExpressionError):
            parse(text)
        return
    assert recomputer.value(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("2 - 3 - 4", -5),
        ("24 / 4 / 2", 3),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2^-1", Fraction(1, 2)),
        ("2**10", 1024),
        ("(1 + 2)(3 + 4)", 21),
        (r"3 \times \frac{1}{2}", Fraction(3, 2)),
        (r"(3)\frac{1}{2}", Fraction(3, 2)),
        (r"\frac12 + \frac1{3}", Fraction(5, 6)),
        (r"\sqrt{16} + √9", 7),
        ("sqrt(2) * sqrt(2)", 2),
        ("50% × 8", 4),
        ("$1,234.50$", Fraction(2469, 2)),
        ("（2＋3）".replace("＋", "+"), 5),
        (".5", Fraction(1, 2)),
        ("1/3 + 1/6", Fraction(1, 2)),
        ("１２", 12),
    ],
)
def test_values_worked_by_hand(recomputer: Recomputer, text: str, value: Fraction) -> None:
    assert recomputer.value(text) == value


def test_irrational_values_are_floats(recomputer: Recomputer) -> None:
    found = recomputer.value(r"1 + \sqrt{2}")
    assert isinstance(found, float)
    assert found == pytest.approx(1 + math.sqrt(2), abs=1e-15)


@pytest.mark.parametrize("text", ["1/0", "0/0", "0^-1", "sqrt(-1)", "(-1)^0.5", "9^9^9", "(2^9999)^9999", "2^9999"])
def test_undefined_and_enormous_values_are_none(recomputer: Recomputer, text: str) -> None:
    assert recomputer.value(text) is None
    assert recomputer.value("1 + 1") == 2


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "x + 1", "3 4", "1 +", "(1", "1)", "1e5", "()", "1 = 1", "lambda: 1", "open('{}', 'w')",
        "__import__('os').system('touch {}')", "(1).__class__", "2 if 1 else 3", "[].append(1)", "f'{1}'", "1;2",
        "exec", "\\input{/etc/passwd}", "1" * 100, "(" * 100 + "1" + ")" * 100, "-" * 200 + "1", "1+" * 400 + "1", "oo",
        "pi", "factorial(9)",
        r"3\frac{1}{2}", r"-3 \dfrac12",  # mixed numbers, which are not told from products
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_none_and_nothing_is_executed(
    recomputer: Recomputer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recomputer.value(text.replace("{}", str(tmp_path / "witness"))) is None
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text)
    except NotAnExpressionError:
        return


def test_a_question_that_takes_too_long_costs_its_time_and_no_more() -> None:
    with Recomputer(seconds=0.2) as recomputer:
        assert recomputer.value("1 + 1") == 2
        before = recomputer._child
        assert recomputer.value("(7^9999)^9999 * (3^9999)^9999") is None
        assert recomputer.value("1 + 2") == 3
        assert before is not None and (recomputer._child is before or before.returncode is not None)


def test_a_child_that_died_is_replaced_and_none_is_left() -> None:
    with Recomputer() as recomputer:
        assert recomputer.value("2 * 3") == 6
        child = recomputer._child
        assert child is not None
        child.kill()
        child.wait()
        assert recomputer.value("2 * 3") is None
        assert recomputer.value("2 * 4") == 8
        last = recomputer._child
    assert last is not None and last.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(last.pid, 0)


def test_the_expressions_of_verifiable_problems_are_read(recomputer: Recomputer) -> None:
    for item in islice(items("arithmetic", "zh", seed=2), 60):
        if item.id.split("/")[1] in ("precedence", "brackets", "fractions"):
            assert item.final_answer is not None
            assert recomputer.value(independent.maths(item.question)[0]) == Fraction(item.final_answer)
