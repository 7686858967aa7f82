"""What an answer states: equations that are surely wrong, and results compared by what they say."""

import time
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.synthesis import equations as equation_rules
from tools.synthesis.equations import equations, false_equation
from tools.synthesis.final_answers import agree, majority, normalised
from tools.synthesis.recompute import Recomputer
from tools.synthesis.sections import Sections, split_sections, stated_result


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so x + 3 = 5 and f(2) = 7", []),
        ("20% of 50 = 10, 3 mod 2 = 1, sin 30 = 0.5", []),
        ("x = 3 + 4 = 7 = 14/2", ["3 + 4 = 7", "7 = 14/2"]),
        ("17 ÷ 5 = 3……2", []),
        ("4 ÷ 2/5 = 10", ["4 ÷ (2/5) = 10"]),
        ("2 × 1500 = 3 thousand", []),
        ("共重 15 × 8 = 120 千克", []),
        ("总重为 15 × 8 = 120 千克", ["15 × 8 = 120"]),
        (r"\(\frac{1}{2} + 1 = 1.5\)", [r"\frac{1}{2} + 1 = 1.5"]),
        (r"$2^{4} \equiv 4^2 = 16 \equiv 2$", ["4^2 = 16"]),
        (r"$3 \times 4 &= 12$", [r"3 \times 4 = 12"]),
        ("- 3 + 4 = 7", ["3 + 4 = 7"]),
        ("8 · 2\n= 16", ["8 · 2 = 16"]),
        ("It pays 14 × 9 = $126 in all", ["14 × 9 = 126"]),
        ("1011_2 = 8 + 3, 11 = 1011_2", []),
        ("a 2 × 3 = 6", []),
        ("The change is $20 - $3 × 4 = $8.", []),
        (r"\$20 - \$3 \times 4 = \$8", []),
        ("so - $3 × 4 = 12$", ["3 × 4 = 12"]),
        ("20除以4+1=6，5乘以3 + 2 = 17", []),
        ("所以4+1=5", ["4+1 = 5"]),
        ("质量比是20：(20+80)=1：5。", []),
        ("17 ÷ 5 = 3 with a remainder of 2", []),
        ("25 ÷ 4 = 6 groups with 1 left over", []),
        ("3 × 5\n+ 2 × 4\n= 23", []),
        ("3 × 5\n- 2 × 4\n= 7", []),
        ("- 2 × 4 = 8\n- 3 × 4 = 12", ["2 × 4 = 8", "3 × 4 = 12"]),
        ("3 × 5 +\n2 × 4 = 23, so 2 × 4 = 8", ["2 × 4 = 8"]),
        ("(1) -\n3 × 4 = 12", []),
        ("5 × 4 = 20 -\n3 = 17", []),
        ("*x = 5*\n3 × 4 = 12", ["3 × 4 = 12"]),
        ("7 ÷ 3 1/2 = 2", ["7 ÷ 3 1/2 = 2"]),
        ("17 ÷ 5 = 3, with 2 left", []),
        ("17÷5=3，余2", []),
    ],
)
def test_only_what_is_surely_arithmetic_is_recomputed(text: str, found: list[str]) -> None:
    assert [str(equation) for equation in equations(text)] == found


@pytest.mark.parametrize(
    ("text", "is_false"),
    [
        ("10 / 3 = 3.33", False), ("10 / 3 = 3.34", False), ("10 / 3 = 3.36", True), ("10 / 3 = 3", True),
        ("3.33 × 3 = 10", False), ("3.3 × 3 = 12", True), ("22 / 7 ≈ 3.14", False), ("22 / 7 ≈ 3.5", True),
        (r"$\sqrt{2} \approx 1.414$", False), ("0.25 = 1/4 = 25%", False), ("2^0.5 = 1.4", False),
        ("(30/40) × 100 = 75%", False), ("(30/40) × 100 = 80%", True), ("100% × 0.5 = 50%", False),
        ("7 ÷ 3 1/2 = 2", False), ("2/70 = 2.9%", False), ("2/70 = 2.7%", True), ("5/1300 × 100 = 0.4%", False),
        ("5/1300 × 100 = 0.5%", True),
        ("25/100 = 25%", False), ("1011 + 1 = 1100", False), ("1 + 1 = 1", False), ("1 + 1 = 3", True),
        ("1 × 1 = 0", True), ("1100 - 1 = 1011", False), (r"$1\frac{1}{2} + 1 = 2\frac{1}{2}$", False),
        ("5 × 10^-5 / 0.3 = 1.7 × 10^-4", False), ("5 × 10^-5 / 0.3 = 1.9 × 10^-4", True),
        (r"5 \times 10^{-5} \div 0.3 = 1.66 \times 10^{-4}", False), ("5 × 10^-5 / 0.3 = 2 × 10^-4", True),
        ("1.5 × 10^2 = 155", True), ("30 × 5 = 1.6 × 10^2", True), ("6 × 50 = 2.9 × 10^2", True),
        ("17 × 11 = 1.8 × 10^2", False), ("17 × 11 = 1.9 × 10^2", False), ("17 × 11 = 2.0 × 10^2", True),
        ("5 × 10^-5 / 0.3 ≈ 2 × 10^-4", False), ("10 / 3 ≈ 3", False), ("11 / 3 ≈ 3", True), ("2 / 7 ≈ 29%", False),
        ("6 × 10^4 / 2 × 10^2 = 300", False), ("6 × 10^4 / 2 × 10^2 = 3 × 10^6", False),
        (r"6 \times 10^{4} \div 2.0 \times 10^{-2} = 3 \times 10^{6}", False), ("6 × 10^4 / 2 × 10^2 = 400", True),
        (r"1/3 = 0.\overline{3}", False), ("1/3 = 0.(3)", False), ("1/6 = 0.1(6)", False),
        ("1/3 = 0.(3) of it", False), (r"1/3 = 0. \overline{3}", False), (r"1/3 = 0.\dot{3}", False),
        (r"3 + 4 = 8.\quad", True), (r"3 + 4 = 8.\end{aligned}", True), ("3 + 4 = 8.(a) Next", True),
        ("12 / 2 × 10^2.5 = 7", True), ("12 / 2 × 10^2^2 = 7", True), ("1.5(2) = 7", False),
        ("12 / 2 × 10^{2 + 1} = 12/201", True), (r"\(1/3 = 0.\)", True), ("1/3 = 0.", True),
        ("2 × 10^400 = 2 × 10^400", False), ("2 × 10^400 = 3 × 10^400", True), ("2^0.5 × 10^400 = 7", False),
    ],
)  # fmt: skip
def test_rounded_values_hold_and_wrong_ones_do_not(text: str, is_false: bool) -> None:
    with Recomputer() as recomputer:
        assert (false_equation(text, recomputer) is not None) == is_false


@settings(deadline=None)  # the first example starts a process
@given(a=st.integers(1, 999), b=st.integers(1, 999), c=st.integers(1, 99), off=st.integers(-3, 3))
def test_an_equation_is_false_exactly_if_its_sides_differ(a: int, b: int, c: int, off: int) -> None:
    with_error = a * b - c + off
    assert (false_equation(f"we get {a} × {b} - {c} = {with_error} kg.", RECOMPUTER) is not None) == (off != 0)


RECOMPUTER = Recomputer()


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (r"\boxed{\frac{1}{2}}", "1/2", True), ("x = 0.5", r"\dfrac12", True), ("1,000", "1000", True),
        ("(B)", "B. 42 metres", True), ("选B", r"\text{(B)}", True), ("A", "B", False), ("50%", "0.5", True),
        ("0.33", "1/3", True), ("0.34", "1/3", False), ("5 cm", "5 m", False), ("5", "5 m", True),
        ("$x^2 + 1$", "x^2+1", True), ("-3", "−3", True), ("三", "3", False), ("2 H2 + O2", "2 H2", False),
        ("1e3", "1000", True), (r"90^\circ", "90°", True), ("3 + 4", "3", False),
        ("3 1/2", "3.5", True), (r"-3\frac{1}{2}", "-7/2", True), ("3½", "7/2", True), ("½", "0.5", True),
        ("3 1/2", "31/2", False), ("3½", "31/2", False), ("3 4/2", "3", False), ("12 34", "1234", False),
        ("5 cm²", r"5\ \text{cm}^{2}", True), ("5 cm²", "5 cm", False), ("x²", "x^{2}", True), ("x²", "x2", False),
        ("e^{2x}", "e^2 x", False), ("a^{bc}", "a^b c", False), ("2^{1}0", "2^{10}", False), ("e^{x}", "e^x", True),
        (r"\boxed{\$12}", "12", True), (r"\$1,200.50", "$1200.5", True), (r"9\pi", "9", False), ("9π", "9", False),
        (r"9 \pi", "9π", True), ("5i", "5", False), ("2x", "2", False), ("4!", "4", False), ("3 N", "3", True),
        ("10^6", "1,000,000", True), ("10^{-3}", "0.001", True), ("x = 10^6", "1e6", True), ("10^3x", "1000", False),
        ("-10^6", "-1,000,000", True), ("+10^6", "1e6", True), ("-10^6", "1e6", False), ("10**6", "1e6", True),
        ("10 ** 6", "106", False), ("**12**", "12", True), ("3 × 10**8", "3e8", True), ("2 pi", "2", False),
        (r"2\sin\theta", "2", False), (r"3\theta", "3", False), ("5∞", "5", False), ("5X", "5", False),
        (r"5\Omega", "5", True), ("3 pies", "3", True),
        ("10²", "102", False), ("10^3", "10", False), ("2^3", "2", False), ("10 000", "10,000", True),
        (r"1.2 \times 10^{3} \text{ J}", "1200 J", True), ("6.02×10²³", "6.02e23", True), ("3·10⁻²", "0.03", True),
        ("1.2 × 10^3", "1.2 × 10^4", False), ("6.02e23", "6.022e23", True), ("6.02e23", "6.04e23", False),
        ("25.0 m/s", "25 m/s", True), ("25 m/s", "25 km/h", False), ("25 %", r"25\%", True), ("25%", "25", False),
        (r"\frac{\pi}{2}", r"\pi/2", True), (r"2\frac{1}{3}x", r"\frac{21}{3}x", False), ("x ≈ 3.14", "约3.14", True),
    ],
)  # fmt: skip
def test_final_answers_are_compared_by_what_they_say(one: str, other: str, is_same: bool) -> None:
    assert agree(normalised(one), normalised(other)) == is_same
    assert agree(normalised(other), normalised(one)) == is_same


@given(value=st.fractions(-1000, 1000, max_denominator=500), decimals=st.integers(1, 6))
def test_a_number_agrees_with_itself_written_otherwise(value: Fraction, decimals: int) -> None:
    exact = normalised(f"\\frac{{{value.numerator}}}{{{value.denominator}}}")
    assert agree(exact, normalised(str(value)))
    assert agree(exact, normalised(f"{round(value * 10**decimals) / 10**decimals:.{decimals}f}"))
    assert not agree(exact, normalised(str(value + 1)))


def test_what_stands_far_before_an_equation_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each equation of a line all before it: the square of the line, 1,000 took 20 times as long."""
    searched: list[str] = []
    pattern = equation_rules._GOES_ON
    recorder = SimpleNamespace(search=lambda text: searched.append(text) or pattern.search(text))
    monkeypatch.setattr(equation_rules, "_GOES_ON", recorder)
    assert len(list(equations("1 + 1 = 2, " * 200))) == len(searched) == 200
    assert max(map(len, searched)) <= 100


def test_blanks_and_blank_lines_cost_no_square() -> None:
    started = time.process_time()
    found = split_sections(
        "[Problem]\nQ\n[Solution]\nA" + "\n" * 30_000 + "B\n---\n\n[/END]", ["Problem"], ["Solution"]
    )
    assert isinstance(found, Sections) and found.answer == "A" + "\n" * 30_000 + "B"
    assert list(equations("5 + " + " " * 200_000 + "x")) == []
    assert time.process_time() - started < 10  # milliseconds; each took a minute and more


def test_the_majority_is_the_largest_group() -> None:
    best, agrees = majority([normalised(text) for text in ("7", "12", "12.0", "7", r"$12$")])
    assert (best, agrees) == (1, [False, True, True, False, True])
    # By how many say it, not in how many ways.
    best, agrees = majority([normalised(text) for text in ("12", "12.0", "7", "7", "7")])
    assert (best, agrees) == (2, [False, False, True, True, True])


def test_the_result_that_is_stated_last_counts() -> None:
    assert stated_result(r"First \boxed{1}, then \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert stated_result("The answer is 3 at first.\nThe final answer is: **42**.") == "42"
    assert stated_result("所以……\n答案：B。") == "B"
    assert stated_result("Because of the tides.") is None
    assert stated_result("答案是 7。\n以上就是完整的解答过程。") == "7"
    assert stated_result("答案：5 m/s\n检验：结果正确，答案正确。") == "5 m/s"
    assert stated_result("结果为 6。") == "6"
    assert stated_result("**答**：x = 2") == "x = 2"
    assert stated_result("选项讨论如上，答案选B。") == "选B"
    assert stated_result("解答如下，回答完毕。") is None
