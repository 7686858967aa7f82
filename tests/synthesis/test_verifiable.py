"""Problems that no model made: right by another path, never twice, the same again, and a prefix of a longer list."""

import json
import re
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from tests.synthesis import independent
from tests.synthesis import independent_chemistry as chemistry
from tools.cli import main
from tools.data.readers import plan_tasks
from tools.synthesis.record import QaRecord, read_records
from tools.synthesis.verifiable import elements, wording
from tools.synthesis.verifiable.reactions import balance, equation, reactions
from tools.synthesis.verifiable.stream import item_space, items
from tools.synthesis.verifiable.topic import KINDS, Kind

LANGUAGES = ("zh", "en")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num", "seed"), [(500, 7), pytest.param(10_000, 11, marks=pytest.mark.slow)])
def test_every_answer_is_found_again_from_the_question_alone(kind: Kind, language: str, num: int, seed: int) -> None:
    seen: set[str] = set()
    for item in islice(items(kind, language, seed=seed), num):
        # Without the words, so that another phrasing does not count; what is bought has a name only.
        kept = item.question if "shopping" in item.id else re.findall(r"[A-Za-z0-9.^+*/()=-]+", item.question)
        seen.add(f"{item.generator} {kept}")
        assert independent.is_right(item), item
        assert independent.false_steps(item) == [], item
    assert len(seen) == num


@pytest.mark.parametrize(
    ("topic", "before", "after"),
    [
        ("gcd", r"\d+$", "0"),
        ("derivative", r"^", "1 + "),
        ("balancing", r" -> ", " -> 2 "),
        ("molar_mass", r"$", "1"),
        ("linear_equation", r"= ", "= 1"),
        ("subshell_electrons", r"^", "1"),
    ],
)
def test_the_other_path_notices_a_wrong_answer(topic: str, before: str, after: str) -> None:
    kind = next(kind for kind in KINDS if topic in item_space(kind))
    item = next(item for item in items(kind, "en", seed=1) if item.generator.endswith(f"/{topic}"))
    assert item.final_answer is not None
    assert independent.is_right(item)
    changed = QaRecord(**{**item.to_json(), "final_answer": re.sub(before, after, item.final_answer, count=1)})
    assert not independent.is_right(changed)


def test_a_wrong_step_is_noticed() -> None:
    item = next(items("arithmetic", "en", seed=1))
    assert independent.false_steps(item) == []
    changed = QaRecord(**{**item.to_json(), "answer": re.sub(r"= (\d+)\$", r"= 1\1$", item.answer, count=1)})
    assert len(independent.false_steps(changed)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_items_are_the_beginning_of_more(kind: Kind) -> None:
    many = list(islice(items(kind, "zh", seed=3), 200))
    assert list(islice(items(kind, "zh", seed=3), 60)) == many[:60]
    assert len({item.id for item in many}) == 200
    assert [item.id for item in islice(items(kind, "zh", seed=4), 60)] != [item.id for item in many[:60]]


@pytest.mark.parametrize("kind", KINDS)
def test_both_languages_ask_the_same_problems(kind: Kind) -> None:
    zh, en = (list(islice(items(kind, language, seed=5), 100)) for language in LANGUAGES)
    assert [item.final_answer for item in zh] == [item.final_answer for item in en]
    assert all(re.search("[一-鿿]", item.question + item.answer) for item in zh)
    assert not any(re.search("[一-鿿]", item.question + item.answer) for item in en)


def test_a_used_up_topic_leaves_the_others_going() -> None:
    space = item_space("chemistry")
    found = [item.generator for item in islice(items("chemistry", "en", seed=1), 3000)]
    assert found.count("verifiable:chemistry/electron_configuration") == space["electron_configuration"] == 102
    assert found.count("verifiable:chemistry/mass_of_amount") > 500


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_is_used_and_fits(kind: Kind) -> None:
    for language in LANGUAGES:
        content = json.loads((wording.FOLDER / f"{language}.json").read_text(encoding="utf-8"))
        for topic in item_space(kind):
            phrasings = content["topics"][topic]["questions"]
            assert len(set(phrasings)) == len(phrasings) >= 3
    shown = [item.question + item.answer for item in islice(items(kind, "en", seed=2), 300)]
    assert not any(re.search(r"\{[a-z_]+\}", text.replace(r"\frac", "")) for text in shown if "int_" not in text)


def test_the_page_states_the_number_of_problems() -> None:
    page = (Path(__file__).parents[2] / "docs/synthesis.md").read_text(encoding="utf-8")
    stated = {
        kind: int(number.replace(",", ""))
        for kind, number in re.findall(r"^\| (\w+) \| .* \| ([\d,]+) \|$", page, re.M)
    }
    assert stated == {kind: sum(item_space(kind).values()) for kind in KINDS}


def test_all_equations_balance_and_none_comes_twice() -> None:
    for sides in reactions():
        question, answer = equation(sides), equation(sides, balance(sides))
        item = QaRecord(
            id="1", discipline="chemistry", language="en", question=question, answer="", generator="x/balancing"
        )
        assert chemistry.balancing(item, answer), answer
    assert len({(frozenset(left), frozenset(right)) for left, right in reactions()}) == len(reactions()) > 300


def test_equations_balanced_by_hand() -> None:
    by_hand = {
        ("KMnO4 + HCl", "KCl + MnCl2 + Cl2 + H2O"): (2, 16, 2, 2, 5, 8),
        ("Cu + HNO3", "Cu(NO3)2 + NO + H2O"): (3, 8, 3, 2, 4),
        ("FeS2 + O2", "Fe2O3 + SO2"): (4, 11, 2, 8),
        ("Ca(OH)2 + H3PO4", "Ca3(PO4)2 + H2O"): (3, 2, 1, 6),
        ("C8H18 + O2", "CO2 + H2O"): (2, 25, 16, 18),
    }
    known = set(reactions())
    for (left, right), expected in by_hand.items():
        sides = (tuple(left.split(" + ")), tuple(right.split(" + ")))
        assert sides in known
        assert balance(sides) == expected


@pytest.mark.parametrize("sides", [(("H2", "O2"), ("H2O", "H2O2")), (("H2",), ("O2",)), (("C", "O2"), ("CO2", "N2"))])
def test_what_cannot_be_balanced_in_one_way_is_refused(sides: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"independent solutions|cannot be balanced"):
        balance(sides)


def test_masses_are_those_of_the_periodic_table() -> None:
    table = elements.elements()
    printed = {"H": "1.008", "C": "12.011", "N": "14.007", "O": "15.999", "Na": "22.990", "S": "32.060",
               "Cl": "35.450", "Fe": "55.845", "Cu": "63.546", "Ag": "107.868", "U": "238.029"}  # fmt: skip
    assert {symbol: str(table[symbol].mass) for symbol in printed} == printed
    assert str(elements.molar_mass("CuSO4·5H2O")) == "249.677"  # 63.546 + 32.060 + 9 x 15.999 + 10 x 1.008
    assert [element.symbol for element in table.values()] == chemistry.SYMBOLS


@pytest.mark.parametrize("formula", ["", "h2o", "Ca(OH", "CaOH)2", "H2O!", "2"])
def test_what_is_no_formula_is_refused_or_empty(formula: str) -> None:
    if formula in ("", "2"):
        assert elements.atoms(formula) == {}
        return
    with pytest.raises(ConfigError, match="no chemical formula"):
        elements.atoms(formula)


def test_chinese_element_names_fit_the_symbols() -> None:
    names = wording.words("zh", "elements")
    assert len(set(names)) == len(names) == elements.LAST_SURE
    place = {name: number for number, name in enumerate(names, start=1)}
    spot = dict(zip("氢氖钙锌锆锡钕镱汞钍镄", (1, *range(10, 101, 10)), strict=True))
    assert {name: place[name] for name in spot} == spot


def test_the_file_is_whole_and_the_same_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "algebra.jsonl.zst"
    command = ["synth", "verifiable", "--kind", "algebra", "--language", "zh", "--num", "50", "--seed", "9"]
    assert main([*command, "--out", str(out)]) == 0
    first = out.read_bytes()
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_bytes() == first
    records = list(read_records(plan_tasks([out])))
    assert records == list(islice(items("algebra", "zh", seed=9), 50))
    assert main([*command, "--out", str(tmp_path / "plain.jsonl")]) == 0
    lines = (tmp_path / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in records]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["algebra.jsonl.zst", "new", "plain.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--language", "fr"], "--language fr: there are wordings in en, zh"),
        (["--num", "99999999"], "chemistry has 113613 different problems"),
        (["--out", "x.txt"], "must end with .jsonl or .jsonl.zst"),
    ],
)
def test_a_wrong_option_is_refused(
    change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["synth", "verifiable", "--kind", "chemistry", "--num", "5", "--out", str(tmp_path / "a.jsonl")]
    assert main([*command, *change]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_mendeleev_chemistry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps mendeleev"):
        elements.data_file()


def test_the_dual_numbers_of_this_test_differentiate() -> None:
    assert independent.slope_at(r"\frac{1}{2} x^{4} - 3 x + 7", Fraction(2)) == 13  # 2 x 8 - 3
