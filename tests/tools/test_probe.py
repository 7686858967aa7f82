"""`syne data probe`: items to the ids that another library gives, and bad items refused with their line."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import DataError
from megatron_synE.data.probe import Probe, ProbeItem, read_probe
from tests import tiny
from tests.tools import corpus
from tools.data.probe import make_probe

ITEMS = [
    {"context": "Water boils at", "choices": [" 100 degrees", " 10 degrees", " the court"], "answer": 0},
    {"context": "民法典规定家庭成员应当", "choices": ["互相帮助", "学习数学"], "answer": 1, "subject": "law"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.hf_folder(tmp_path_factory.mktemp("tokenizer"))


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def test_each_choice_is_its_whole_text_as_the_tokenizer_gives_it_and_eos(tokenizer: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    out = tmp_path / "probe.json"
    done = tiny.syne(
        "data", "probe", "--items", written(tmp_path / "items.jsonl", ITEMS), "--tokenizer", tokenizer, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "2 items, 5 choices" in done.stdout
    probe = read_probe(out)
    reference = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    eos = reference.token_to_id("<|end_of_text|>")
    for item, row in zip(probe.items, ITEMS, strict=True):
        wanted = [(*reference.encode(row["context"] + choice).ids, eos) for choice in row["choices"]]
        assert list(item.choices) == wanted
        assert item.answer == row["answer"]
    assert (probe.language, probe.num_documents) == ("en", 5)


def test_the_least_loss_is_the_answer_and_of_equal_ones_the_first() -> None:
    items = tuple(ProbeItem(choices=((3, 4), (3, 5)), answer=answer) for answer in (0, 1, 0, 1))
    identity = read_identity()
    probe = Probe(schema_version=1, language="en", tokenizer=identity, items=items)
    assert probe.answers([1.0, 2.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]).correct == (1, 0, 1, 0)
    with pytest.raises(DataError, match="outside 5"):
        Probe(schema_version=1, language="en", tokenizer=read_identity(vocab_size=5), items=items)


def read_identity(vocab_size: int = 9) -> Any:
    from data_mixers.manifest import TokenizerIdentity

    return TokenizerIdentity(digest="0" * 64, vocab_size=vocab_size, eos_id=2, bos_id=None)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"context": "", "choices": ["a", "b"], "answer": 0}, "context"),
        ({"context": "a", "choices": ["a"], "answer": 0}, "two or more choices"),
        ({"context": "a", "choices": ["b", "b"], "answer": 0}, "no two of them alike"),
        ({"context": "a", "choices": ["b", ""], "answer": 0}, "none empty"),
        ({"context": "a", "choices": ["b", "c"], "answer": 2}, "answer 2"),
        ({"context": "a", "choices": ["b", "c"], "answer": True}, "answer True"),
        ({"context": "a", "choices": ["b", "c"]}, "answer, choices, context"),
        ("text", "answer, choices, context"),
    ],
)
def test_a_bad_item_is_refused_with_its_line(tokenizer: Path, tmp_path: Path, row: Any, named: str) -> None:
    items, out = written(tmp_path / "items.jsonl", [ITEMS[0], row]), tmp_path / "probe.json"
    with pytest.raises(DataError, match=r"items\.jsonl line 2") as refused:
        make_probe(items, out, tokenizer_path=tokenizer)
    assert named in str(refused.value)
    assert not out.exists()


def test_a_file_that_is_no_probe_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"schema_version": 1, "items": []}'):
        (tmp_path / "probe.json").write_text(text)
        with pytest.raises(DataError, match=r"probe\.json") as refused:
            read_probe(tmp_path / "probe.json")
        assert str(refused.value).count("probe.json") == 1
    with pytest.raises(DataError, match="syne data probe"):
        read_probe(tmp_path / "nowhere.json")
