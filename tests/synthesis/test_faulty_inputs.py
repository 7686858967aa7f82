"""What a person gets wrong at the command line: one message, exit code 2 or 3, nothing replaced or half-written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError
from tests.openai_server import served
from tests.rows import read
from tests.rows import write as write_rows
from tests.synthesis.test_generate import HERE, options, write_seeds
from tools.cli import main
from tools.synthesis.generate import generate
from tools.synthesis.options import PROMPTS

PAIR = {
    "id": "1", "discipline": "physics", "language": "en", "generator": "m",
    "question": "How far does the stone fall in two seconds?", "answer": "It falls 2 + 2 = 4 metres.\nThe answer is 4.",
}  # fmt: skip


def write(path: Path, *given: dict[str, Any]) -> str:
    return str(write_rows(path, given))


def said(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one message, with its lines of faults, of a call that must end with this code."""
    assert main(["synth", *arguments]) == code
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    (first,) = (number for number, line in enumerate(lines) if line.startswith("error: "))
    assert "Traceback" not in printed.err and printed.out == ""
    return "\n".join(lines[first:])


def test_seeds_do_not_replace_their_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = write(tmp_path / "pages.jsonl", {"id": "1", "text": "A planet moves around the star. " * 100})
    before = (tmp_path / "pages.jsonl").read_bytes()
    message = said(capsys, 2, "seeds", "--input", pages, "--discipline", "physics", "--out", pages)
    assert message.endswith("is an input; name another file")
    assert (tmp_path / "pages.jsonl").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["", "\n\n"])
@pytest.mark.parametrize("command", ["seeds", "corrupt", "check"])
def test_files_that_hold_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, content: str
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    more = ["--share", "0.5"] if command == "corrupt" else []
    message = said(capsys, 3, command, "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "o.jsonl"), *more)
    assert f"in {tmp_path / 'in.jsonl'}" in message and "there is no " in message
    assert not (tmp_path / "o.jsonl").is_file()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": " \n "}, "answer is empty"),
        ({"answer": "It falls 4 \0 metres."}, "answer holds a NUL character"),
        ({"usage": {"completion_tokens": "9"}}, "usage.completion_tokens is no number"),
        ({"sampling": {"max_tokens": None}}, "sampling.max_tokens is no number"),
        ({"discipline": ["physics"]}, "discipline is not text"),
    ],
)
def test_a_pair_that_is_none_is_put_aside_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], reason: str
) -> None:
    bad = {**PAIR, "id": "2", **change}
    source = write(tmp_path / "in.jsonl", PAIR, bad)
    assert main(["synth", "check", "--input", source, "--out", str(tmp_path / "out")]) == 0
    assert [row["id"] for row in read(tmp_path / "out")] == ["1"]
    assert reason in (tmp_path / "out" / "quarantine.jsonl").read_text()
    capsys.readouterr()
    alone = write(tmp_path / "alone.jsonl", bad)
    assert reason in said(capsys, 3, "check", "--input", alone, "--out", str(tmp_path / "alone"))
    assert not (tmp_path / "alone" / "report.json").exists()
    assert reason in said(capsys, 3, "audit", "--input", alone, "--out", str(tmp_path / "audit"))


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000/v1", "http://[::1/v1", "http://h:99999/v1", "http://h:x/v1", "ftp://h/v1", "http:///v1",
        "http://a..b/v1",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    asked = ["--model", "m", "--out", str(tmp_path / "out")]
    assert f"--endpoint {url!r} is no URL" in said(capsys, 2, "generate", "--seeds", str(seeds), "--endpoint", url,
                                                   *asked)  # fmt: skip
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR | {"id": "2", "corruption": {}})
    judge = ["--input", pairs, "--calibration", pairs, "--url", url, *asked[:2], "--out", str(tmp_path / "audit")]
    assert f"--url {url!r} is no URL" in said(capsys, 2, "audit", *judge)


def test_several_samples_without_a_temperature_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    call = ["generate", "--seeds", str(seeds), "--model", "m", "--endpoint", "http://127.0.0.1:1/v1"]
    call += ["--samples", "4", "--temperature", "0", "--out", str(tmp_path / "out")]
    assert "raise --temperature, or take --samples 1" in said(capsys, 2, *call)


@pytest.mark.parametrize("command", ["generate", "audit"])
def test_help_says_where_the_key_is_read_from(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", command, "--help"]) == 0
    assert "OPENAI_API_KEY" in capsys.readouterr().out


def test_a_folder_without_a_chat_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    call = ["generate", "--seeds", str(seeds), "--model", "m", "--out", str(tmp_path / "out"), "--local"]
    assert "it has no config.json" in said(capsys, 2, *call, "HuggingFaceTB/SmolLM2-135M-Instruct")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "llama"}')
    assert f"--local {tmp_path / 'hf'}: " in said(capsys, 2, *call, str(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"focus": ["physics"]}, "focus: "), ({"focus": {"physics": 3}}, "focus.physics: "),
        ({"system": 5}, "system: "), ({"markers": [1, 2]}, "markers.0: "), ({"markers": ["[a]", "[a]"]}, "must differ"),
        ({"examples": "abc"}, "examples: "), ({"user": None}, "user: "), ({"user": "no place for it"}, "need {text}"),
        ({"code": {}}, "code.marker: "),
    ],
)  # fmt: skip
def test_prompts_that_do_not_fit_are_refused_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], fault: str
) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    content = json.loads((PROMPTS / "en.json").read_text("utf-8"))
    (tmp_path / "en.json").write_text(json.dumps(content | change))
    call = ["--seeds", str(seeds), "--model", "m", "--endpoint", "http://127.0.0.1:1/v1", "--prompts", str(tmp_path)]
    message = said(capsys, 2, "generate", *call, "--out", str(tmp_path / "out"))
    assert str(tmp_path / "en.json") in message and fault in message


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("call.json", "x", 2), ("call.json", "[]", 2), ("parts/0.jsonl", "x\n", 3), ("parts/0.jsonl", "{}\n", 3),
        ("parts/0.jsonl", "[]\n", 3),
    ],
)  # fmt: skip
def test_a_folder_that_holds_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, code: int
) -> None:
    seeds, path = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."]), tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    call = ["--seeds", str(seeds), "--model", "m", "--endpoint", "http://127.0.0.1:1/v1"]
    assert str(path) in said(capsys, code, "generate", *call, "--out", str(tmp_path / "out"))
    assert path.read_text() == content


def test_a_kept_verdict_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(tmp_path / "pairs.jsonl", PAIR, PAIR | {"id": "2", "corruption": {}})
    (tmp_path / "audit").mkdir()
    judge = ["--input", pairs, "--calibration", pairs, "--url", "http://127.0.0.1:1/v1", "--model", "m"]
    (tmp_path / "audit" / "verdicts.jsonl").write_text('{"key": 1}\n')
    assert "holds a line that is no verdict" in said(capsys, 3, "audit", *judge, "--out", str(tmp_path / "audit"))


def test_answers_of_two_writers_are_one_each_and_samples_differ_in_their_seed(tmp_path: Path) -> None:
    """A part that a second host wrote, of the same seeds: the first answer counts, the other is counted as left out."""
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(5)])
    out = tmp_path / "out"
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        generate(options(seeds, out, url, samples=2))
    [part] = (out / "parts").iterdir()
    (out / "parts" / "00001-of-00002.other.jsonl").write_bytes(part.read_bytes())
    report = generate(options(seeds, out, "http://127.0.0.1:1/v1", samples=2))
    assert (report["asked"], report["pairs"], report["not_asked_for"]) == (10, 10, 10)
    assert report["accepted_tokens"] == 10 * 7
    rows = read(out / "pairs.jsonl.zst")
    assert len({(row["seed_hash"], row["sample"]) for row in rows}) == len(rows) == 10
    assert len({row["sampling"]["seed"] for row in rows}) == 10


def test_prompts_seed_and_sampling_decide_whose_folder_it_is(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["plain 1"])
    content = json.loads((PROMPTS / "en.json").read_text("utf-8"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "en.json").write_text(json.dumps(content | {"system": "Be brief."}))
    sent = {}
    with served(HERE / "faulty_model_server.py", tmp_path / "log") as url:
        for number in (1, 2):
            generate(options(seeds, tmp_path / str(number), url, seed=number))
            [row] = read(tmp_path / str(number) / "pairs.jsonl.zst")
            sent[number] = row["sampling"]["seed"]
        changes = {"prompts": tmp_path / "other", "seed": 2, "top_p": 0.5, "max_tokens": 9, "model": "n"}
        for name, value in changes.items():
            with pytest.raises(ConfigError, match=f"another {name}"):
                generate(replace(options(seeds, tmp_path / "1", url, seed=1), **{name: value}))
    assert sent[1] != sent[2]
