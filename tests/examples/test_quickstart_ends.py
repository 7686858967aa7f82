"""What the quickstart asks of a run, and reads of its own metrics, which end with the row of a checkpoint."""

import errno
import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from data_mixers.errors import ConfigError
from examples.quickstart import __main__ as quickstart
from examples.quickstart import steps
from examples.quickstart.__main__ import OUT, asked_tokens, fitted_tokens, run, say_unequal, say_where, write_config
from examples.quickstart.score import SetScore
from examples.quickstart_synth.__main__ import conclude
from examples.surrogate import decay
from examples.surrogate import prepare as surrogate
from megatron_synE.config.load import load_config
from tests import tiny
from tests.config.tiny_dataset import write_dataset

STEP = 8 * 512  # sequences of a step, tokens of a sequence


def test_the_next_command_asks_for_as_many_tokens_as_a_real_run_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.train(tiny.prepared(tmp_path))
    run_dir = tmp_path / "run"
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert "consumed_tokens" not in last  # else this shows nothing
    say_where(OUT, "bilingual", run_dir, tmp_path / "hf", 60.0)
    printed = capsys.readouterr().out
    assert "finished after 1.0 minutes" in printed
    assert "--arm chinese_only --tokens 1280\n" in printed  # 5 steps of 8 samples of 32 tokens
    # 1e9 s: no more than the most that the example trains on.
    assert fitted_tokens(run_dir, left=1e9) == 50 * STEP

    say_where(tmp_path / "a folder", "bilingual", run_dir, tmp_path / "hf", 60.0)
    words = shlex.split(capsys.readouterr().out.partition("next: ")[2])
    assert words[-2:] == ["--out", str(tmp_path / "a folder")]


def test_both_arms_read_the_tokens_that_were_asked_for(tmp_path: Path) -> None:
    sources = {("en", "web", "a"): 3000, ("en", "python_stdlib", "b"): 2000}
    write_dataset(tmp_path / "data/train", sources)
    for arm, expected in (("bilingual", [37 * STEP, 13 * STEP]), ("chinese_only", [50 * STEP])):
        file = tmp_path / f"{arm}.yaml"
        write_config(file, arm, tmp_path, tmp_path / "hf", 204_800)  # type: ignore[arg-type]
        stages = yaml.safe_load(file.read_text())["data"]["stages"]
        assert [stage["tokens"] for stage in stages] == expected


def test_tokens_are_rounded_up_to_a_step_which_is_said_and_too_few_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bilingual.yaml"
    assert asked_tokens(10 * STEP, config, tmp_path) == 10 * STEP
    assert capsys.readouterr().out == ""
    assert asked_tokens(100_000, config, tmp_path) == 102_400
    assert "102,400, which are 25 whole steps" in capsys.readouterr().out
    for few in (-1, 0, 4 * STEP - 1):
        with pytest.raises(ConfigError, match=rf"--tokens {few}: .*16,384"):
            asked_tokens(few, config, tmp_path)


def test_the_fewest_tokens_are_those_that_hold_warm_up_and_decay(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data/train", {("en", "web", "a"): 3000, ("en", "python_stdlib", "b"): 2000})
    file = tmp_path / "bilingual.yaml"
    for tokens, is_refused in ((3 * STEP, True), (4 * STEP, False)):
        write_config(file, "bilingual", tmp_path, tmp_path / "hf", tokens)
        rates = load_config(file).resolved.lr_schedule
        assert (rates.warmup_tokens + rates.decay_tokens > tokens) == is_refused  # as validate.py asks
        file.unlink()
        with pytest.raises(ConfigError) if is_refused else nullcontext():
            asked_tokens(tokens, file, tmp_path)


def test_other_tokens_than_those_of_the_run_that_is_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "prepared", lambda _: pytest.fail("goes on"))  # which would fetch from the network
    stages = [{"tokens": 150_000}, {"tokens": 50_000}]  # 37 and 13 steps
    (tmp_path / "bilingual.yaml").write_text(yaml.safe_dump({"data": {"stages": stages}}))
    with pytest.raises(ConfigError, match=r"--tokens 400000: .*bilingual\.yaml reads 204,800; remove"):
        run("bilingual", tmp_path, 400_000)
    assert asked_tokens(204_800, tmp_path / "bilingual.yaml", tmp_path) == 204_800


def test_arms_that_read_another_number_of_tokens_are_not_compared_unsaid(capsys: pytest.CaptureFixture[str]) -> None:
    say_unequal({"2:8": 204_800, "Chinese only": 204_800})
    assert capsys.readouterr().out == ""
    say_unequal({"2:8": 204_800, "Chinese only": 49_152})
    assert "CAUTION: the arms did not read as many tokens: 204,800 (2:8), 49,152" in capsys.readouterr().out


def test_a_full_disk_and_a_path_that_is_refused_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/quickstart/text")

    assert steps.exit_code_of(full) == 3
    assert capsys.readouterr().err.startswith("error: runs/quickstart/text: No space left on device; make room")
    (tmp_path / "file").touch()
    assert steps.exit_code_of((tmp_path / "file").mkdir) == 3
    assert f"error: {tmp_path}/file: File exists" in capsys.readouterr().err


def test_text_that_has_changed_is_scored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = iter(([SetScore("a", 1.0, 1, 1)], [SetScore("a", 2.0, 1, 1)]))
    monkeypatch.setattr(steps, "score_hf", lambda *_, **__: next(scored))
    (tmp_path / "model.safetensors").touch()
    text, cache = tmp_path / "a.jsonl", tmp_path / "scores.json"
    found = []
    for content in ("one", "one", "two"):
        text.write_text(content)
        found.append(steps.timed_scores(tmp_path, [text], cache)[0][0].nll_sum)
    assert found == [1.0, 1.0, 2.0]


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: as a full disk does, it leaves what was written before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_cut_short_is_not_taken_for_scores_or_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "score_hf", lambda *_, **__: [SetScore("a", 1.0, 1, 1)])
    write_dataset(tmp_path / "data/train", {("en", "web", "a"): 3000, ("en", "python_stdlib", "b"): 2000})
    for file in ("model.safetensors", "a.jsonl"):
        (tmp_path / file).touch()
    scores, config = tmp_path / "scores.json", tmp_path / "bilingual.yaml"
    with room_for(20), pytest.raises(OSError, match="File too large"):
        steps.timed_scores(tmp_path, [tmp_path / "a.jsonl"], scores)
    with room_for(20), pytest.raises(OSError, match="File too large"):
        write_config(config, "bilingual", tmp_path, tmp_path / "hf", 10 * STEP)
    assert not scores.exists() and not config.exists()


def test_a_terminal_that_is_not_utf_8_gets_escapes_from_an_example_too() -> None:
    program = "from examples.quickstart.steps import exit_code_of; exit_code_of(lambda: print('†'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny.ROOT, env={**os.environ, "PYTHONIOENCODING": "gbk"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "\\u2020\n"  # the mark of the quickstart's table


def test_what_to_run_after_the_judging_names_the_folders_of_this_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "my out/audit_pages/sheet.csv"
    sheet.parent.mkdir(parents=True)
    sheet.touch()
    rate = {"value": 0.5, "low": 0.4, "high": 0.6}
    conclude(tmp_path / "my out", tmp_path / "q", rate, None, 1.0)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "-m examples.quickstart_synth" in line)
    assert shlex.split(line)[3:] == [
        "--out", str(tmp_path / "my out"), "--quickstart", str(tmp_path / "q"), "--filled", str(sheet)
    ]  # fmt: skip


def test_token_files_of_the_small_studies_that_a_killed_call_did_not_come_to_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "data/web", {("zh", "web", "law"): 500})  # of three calls the first
    for file in ("text/corpora.json", "tokenizer/tokenizer.json", "data/made_sorted/manifest.json",
                 "data/pairs_sorted/manifest.json", "data/made/manifest.json"):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(surrogate.assets, "fetch", lambda _: None)
    monkeypatch.setattr(
        surrogate, "preprocess", lambda options: made.append((options.language, options.source))
    )  # fmt: skip
    surrogate.prepare(tmp_path, starts=())
    assert made == [("en", "web"), ("en", "code"), ("synthetic", "human")]


@pytest.mark.parametrize("word", ["--help", "--seeds=1"])
def test_a_decay_is_not_begun_by_a_word_that_it_does_not_know(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["decay", word])
    monkeypatch.setattr(decay, "run", pytest.fail)
    with pytest.raises(SystemExit) as left:
        decay.main()
    assert left.value.code == (0 if word == "--help" else 2)
