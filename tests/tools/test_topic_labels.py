"""Labelled documents: what is refused, and that a test source is a source training has not seen."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_mixers.errors import ConfigError, DataError
from tests.rows import write
from tools.data.topic_labels import Labelled, near_copies, read_labelled, read_topics, split_by_source

ROW = {"text": "a page", "topic": "others", "source": "web", "language": "en"}


def labelled(source: str, topic: str, count: int = 20) -> list[Labelled]:
    return [Labelled(f"{source}-{topic}-{i}", f"{topic} {source} {i}", "en", topic, source) for i in range(count)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topic": "astrology"}, "unknown topic 'astrology'"),
        ({"topic": None}, "'topic' must be text"),
        ({"source": ""}, "'source' must be text"),
        ({"language": "fr"}, "language 'fr' has no topics"),
    ],
)
def test_a_label_that_cannot_be_is_refused_with_its_place(
    tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | change | {"id": "second"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"rows.jsonl, document second.*{message}"):
        read_labelled([str(file)], topics=read_topics(None), text_key="text")


def test_lines_that_are_no_document_are_counted_by_reason(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [ROW, ROW | {"text": "  "}])
    found, left_out = read_labelled([str(file)], topics=read_topics(None), text_key="text")
    assert [d.id for d in found] == ["rows.jsonl:0"]
    assert left_out == {"text is empty": 1}
    empty = write(tmp_path / "empty.jsonl", [ROW | {"text": ""}])
    with pytest.raises(DataError, match="no labelled document"):
        read_labelled([str(empty)], topics=read_topics(None), text_key="text")


def test_topics_of_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "topics.json"
    file.write_text('{"en": {"sport": "Sport"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match='language en has no topic "others"'):
        read_topics(file)
    file.write_text('["sport"]', encoding="utf-8")
    with pytest.raises(ConfigError, match="language -> topic -> title"):
        read_topics(file)
    file.write_text('{"en": {"arts/music": "Music", "others": "Others"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"topics\.json: language en: 'arts/music' cannot be part of a source name"):
        read_topics(file)
    file.write_text('{"en": {"sport": "Sport", "others": "Others"}}', encoding="utf-8")
    assert list(read_topics(file)["en"]) == ["sport", "others"]


def test_whole_sources_are_tested_and_topics_of_one_source_are_named() -> None:
    documents = [
        *labelled("courts", "law_and_policy", 60), *labelled("contracts", "law_and_policy"),
        *labelled("clinics", "medicine_and_health", 60), *labelled("contracts", "medicine_and_health"),
        *labelled("shop", "economics_and_business"),
    ]  # fmt: skip
    split = split_by_source(documents)
    assert split.test_sources == ("contracts",)
    assert {d.source for d in split.test} == {"contracts"}
    assert {d.source for d in (*split.train, *split.dev)} == {"courts", "clinics", "shop"}
    assert split.untested == {"en/economics_and_business": "one source only (shop)"}
    assert 0 < len(split.dev) < len(split.train)


def test_a_text_of_training_is_not_in_the_test() -> None:
    documents = [*labelled("a", "others"), *labelled("a", "law_and_policy"), *labelled("b", "others", 5)]
    copy = Labelled("copy", documents[0].text.upper() + " ", "en", "others", "b")
    split = split_by_source([*documents, copy], test_sources=["b"])
    assert split.num_duplicates == 1
    assert "copy" not in {d.id for d in split.test}


def test_a_near_copy_in_training_is_counted_by_its_source() -> None:
    """A page with another heading, in both languages; neither a turn of phrase nor a page beside it counts."""
    words = {"en": " ".join(f"word{n}" for n in range(60)), "zh": "".join(chr(0x4E00 + 7 * n) for n in range(60))}
    documents = [*labelled("a", "others", 40), *labelled("a", "law_and_policy", 40), *labelled("b", "others", 5)]
    for language, text in words.items():
        pages = {"a": f"Seen elsewhere. {text}", "b": text, "c": text[: len(text) // 6] + " and something else"}
        documents += [Labelled(f"{s}-{language}", page, language, "others", s) for s, page in pages.items()]
    split = split_by_source(documents, test_sources=["b"])
    assert near_copies(split) == {"a": 2}
    assert len(split.test) == 7 and not near_copies(replace(split, test=[]))


def test_a_text_of_training_is_not_in_dev() -> None:
    """Temperature and threshold are chosen there: copies of what was learnt would make them too sure."""
    copied = [
        Labelled(f"{t}{i}", f"{t} {i % 20}", "en", t, "a") for t in ("others", "law_and_policy") for i in range(90)
    ]
    documents = [*copied, *labelled("a", "others", 200), *labelled("b", "others", 5)]
    split = split_by_source(documents, test_sources=["b"])
    texts = {d.text for d in split.train}
    assert split.dev and not {d.text for d in split.dev} & texts
    assert len(split.train) + len(split.dev) + split.num_dev_copies == len(documents) - 5
    assert split.num_dev_copies > 5


def test_dev_sources_and_what_is_refused() -> None:
    documents = [
        *labelled("a", "others"), *labelled("a", "law_and_policy"), *labelled("b", "law_and_policy"),
        *labelled("c", "others"),
    ]  # fmt: skip
    split = split_by_source(documents, test_sources=["c"], dev_sources=["b"])
    assert {d.source for d in split.dev} == {"b"}
    assert split.untested == {"en/law_and_policy": "no test source (its sources: a, b)"}
    with pytest.raises(ConfigError, match="--test-source d is no source; there are a, b, c"):
        split_by_source(documents, test_sources=["d"])
    with pytest.raises(ConfigError, match=r"share \['b'\]"):
        split_by_source(documents, test_sources=["b"], dev_sources=["b"])
    with pytest.raises(ConfigError, match="left to train on"):
        split_by_source(documents, test_sources=["a", "c"])
    with pytest.raises(DataError, match="all 20 documents have the topic 'others'"):
        split_by_source(labelled("a", "others"))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["others", "law_and_policy", "history_and_geography"])),
        min_size=1, max_size=60,
    ),
    st.integers(0, 3),
)  # fmt: skip
def test_no_document_is_lost_or_on_both_sides(pairs: list[tuple[str, str]], seed: int) -> None:
    documents = [Labelled(str(i), f"text {i}", "en", topic, source) for i, (source, topic) in enumerate(pairs)]
    try:
        split = split_by_source(documents, seed=seed)
    except (ConfigError, DataError):
        return
    train, dev, test = ({d.id for d in part} for part in (split.train, split.dev, split.test))
    assert not train & dev and not train & test and not dev & test
    assert not {d.source for d in (*split.train, *split.dev)} & set(split.test_sources)
    learned = {d.topic for d in split.train}
    for document in documents:
        if document.id not in train | dev | test:
            assert document.topic not in learned
    tested = {f"en/{d.topic}" for d in split.test}
    assert tested | set(split.untested) == {f"en/{topic}" for _, topic in pairs}
    assert not tested & set(split.untested)
