"""How generate asks: never more at once, never faster, waits as told, and stops at a signal without a loss."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_mixers.errors import ConfigError, DataError
from tests.openai_server import ROOT, served
from tests.rows import read
from tests.synthesis.test_generate import HERE, num_lines, options, write_seeds
from tools.data.chat import asked_wait_seconds
from tools.synthesis import generate as module
from tools.synthesis.answers import key
from tools.synthesis.asking import Question, ask_all
from tools.synthesis.generate import generate
from tools.synthesis.own_server import own_server
from tools.synthesis.prompts import read_prompts
from tools.synthesis.text_generator import Completion, HttpGenerator

SERVER = HERE / "faulty_model_server.py"
COMMAND = [sys.executable, "-m", "tools", "synth", "generate", "--model", "m"]


def requests(log: Path) -> list[tuple[str, float, int]]:
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def interruptible(command: Sequence[str | Path]) -> "subprocess.Popen[str]":
    """As a shell starts it; what runs in a shell's background, even these tests, ignores SIGINT and hands that on."""
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_questions_are_drawn_no_faster_than_they_are_answered(tmp_path: Path) -> None:
    import asyncio

    drawn = answered = most_ahead = 0

    def questions() -> Iterator[Question]:
        nonlocal drawn, most_ahead
        for number in range(300):
            drawn += 1
            most_ahead = max(most_ahead, drawn - answered)
            text = [{"role": "user", "content": f"plain {number}"}]
            yield Question(f"{number:032x}", 0, text, {"max_tokens": 5})

    def on_answer(question: Question, answer: Completion | str) -> None:
        nonlocal answered
        answered += 1

    async def ask(url: str) -> None:
        given = options(tmp_path, tmp_path, concurrency=8)
        generator = HttpGenerator((url,), given)
        await ask_all(questions(), generator, given, on_answer)
        await generator.close()

    with served(SERVER, tmp_path / "log", 0.01, 8) as url:
        asyncio.run(ask(url))
    assert drawn == answered == 300
    assert most_ahead <= 2 * 8 + 1  # the eight asked, the queue, the one that waits to be put into it
    assert max(num_open for _, _, num_open in requests(tmp_path / "log")) == 8


def test_a_rate_limit_holds_for_every_stretch(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(30)])
    with served(SERVER, tmp_path / "log") as url:
        begun = time.monotonic()  # the same clock in all processes
        generate(options(seeds, tmp_path / "out", url, per_second=20.0))
    came = sorted(when - begun for _, when, _ in requests(tmp_path / "log"))
    assert all(when >= place / 20 for place, when in enumerate(came))


def test_retry_after_is_waited_for_and_retries_are_spread(tmp_path: Path) -> None:
    texts = [f"FAULT wait {i}" for i in range(2)] + [f"FAULT 503 {i}" for i in range(20)]
    seeds = write_seeds(tmp_path / "seeds.jsonl", texts)
    with served(SERVER, tmp_path / "log") as url:
        report = generate(options(seeds, tmp_path / "out", url))
    assert report["pairs"] == 22 and report["last_call"]["retried"] == 44
    waits: dict[str, list[float]] = {}
    for text in texts:
        times = [time for name, time, _ in requests(tmp_path / "log") if name == text]
        waits.setdefault(text[6:10], []).extend(later - before for before, later in pairwise(times))
    assert min(waits["wait"]) >= 2
    first = waits["503 "][::2]
    assert min(first) >= 0.25 - 0.01  # half of the first wait of 0.5 s, and a clock's grain
    assert len({round(wait, 2) for wait in first}) > 5  # not all at the same moment again


def test_questions_that_always_fail_do_not_hold_up_a_server_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.synthesis.asking.FIRST_WAIT_SECONDS", 0.01)
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["FAULT always empty 1", "FAULT always 500 2"])
    with served(SERVER, tmp_path / "log") as url:  # nothing else is asked: it must be found out that it answers others
        report = generate(options(seeds, tmp_path / "out", url, give_up_seconds=60.0))
    assert report["failed"] == {"empty answer": 1, "status 500": 1}


def test_a_server_that_thinks_of_a_plain_question_only_is_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.synthesis.asking.FIRST_WAIT_SECONDS", 0.01)
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["FAULT always 500 1"])
    with served(SERVER, tmp_path / "log", SYNE_TEST_PLAIN="length") as url:
        report = generate(options(seeds, tmp_path / "out", url, give_up_seconds=20.0))
    assert report["failed"] == {"status 500": 1}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2.0), ("1.5", 1.5), ("3600", 300.0), ("", 0.0), ("-5", 0.0), ("nan", 0.0), ("soon", 0.0), ("²", 0.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 21 Oct 2199 07:28:00 GMT", 300.0)],
)  # fmt: skip
def test_retry_after_is_a_number_of_seconds_or_a_date(header: str, seconds: float) -> None:
    assert asked_wait_seconds(header) == seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    texts = [f"plain {i}" for i in range(40)]
    seeds = write_seeds(tmp_path / "seeds.jsonl", [*texts[:30], "HOLD", *texts[30:]])
    out, log = tmp_path / "out", tmp_path / "log"
    with served(SERVER, log) as url:
        command = [*COMMAND, "--seeds", str(seeds), "--out", str(out), "--endpoint", url, "--concurrency", "4"]
        running = interruptible(command)
        while num_lines(out) < 40:  # one is never answered: it is in the middle of its work
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)  # the signal's moment is an amount of answers, not a time
        running.send_signal(number)
        printed, said = running.communicate(timeout=240)
    assert running.returncode == 130, said
    assert "Traceback" not in said and printed == ""
    assert "40 answers" in said and said.splitlines()[-1].endswith("the same command goes on")
    assert not (out / "report.json").exists()
    write_seeds(tmp_path / "seeds.jsonl", [*texts[:30], "now it is", *texts[30:]])
    with served(SERVER, log) as url:
        command[command.index("--endpoint") + 1] = url
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["last_call"]["requests"] == 1
    found = read(out / "pairs.jsonl.zst")
    assert Counter(row["seed_hash"] for row in found) == Counter(f"{i:032x}" for i in range(41))
    assert set(Counter(name for name, _, _ in requests(log)).values()) == {1}


def test_a_server_that_is_always_too_busy_is_asked_a_few_times_and_given_up(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"FAULT always 429 {i}" for i in range(100)])
    with served(SERVER, tmp_path / "log") as url, pytest.raises(DataError, match=r"status 429.* run the same command"):
        generate(options(seeds, tmp_path / "out", url, concurrency=8, give_up_seconds=3.0))
    # Two rounds of eight, those then under way, and one at a time with growing pauses.
    assert len(requests(tmp_path / "log")) <= 2 * 8 + 8 + 4


def test_a_full_disk_is_said_and_what_was_written_is_kept(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [f"plain {i}" for i in range(20)])
    command = [*COMMAND, "--seeds", str(seeds), "--out", str(tmp_path / "out"), "--concurrency", "2"]
    with served(SERVER, tmp_path / "log") as url:
        command += ["--endpoint", url]
        full = subprocess.run(["prlimit", "--fsize=4000", *command], cwd=ROOT, capture_output=True, text=True)
        assert full.returncode == 3, full.stderr
        assert "run the same command again" in full.stderr and "Traceback" not in full.stderr
        kept = num_lines(tmp_path / "out")
        assert 5 < kept < 20
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["last_call"]["requests"] == 20 - kept
    assert Counter(row["seed_hash"] for row in read(tmp_path / "out" / "pairs.jsonl.zst")) == Counter(
        f"{i:032x}" for i in range(20)
    )


def test_the_live_line_says_speed_acceptance_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_NOTES", 0.0)
    monkeypatch.setattr("tools.data.progress.SECONDS_BETWEEN_LINES", 0.0)
    texts = [f"plain {i}" for i in range(3)] + ["FAULT always 400 1"]
    seeds = write_seeds(tmp_path / "seeds.jsonl", texts)
    with caplog.at_level("INFO"), served(SERVER, tmp_path / "log") as url:
        generate(options(seeds, tmp_path / "out", url, concurrency=1))
    notes = [line for line in caplog.messages if "tokens/s" in line]
    assert "4 answers, " in notes[-1] and "QA/s" in notes[-1] and notes[-1].endswith("75 % accepted")
    ends = [line for line in caplog.messages if "projected end" in line]
    assert ends[1].startswith("generate: 50 % (") and "QA/s, projected end " in ends[1]


def test_a_server_of_its_own_ends_with_a_call_that_is_killed(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    script = tmp_path / "server.py"
    script.write_text(
        "import http.server, os, sys, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getpid()}}\\n')\n"
        "http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), http.server.BaseHTTPRequestHandler).serve_forever()\n"
    )
    server = f"{sys.executable} {script} {{host}} {{port}}"
    command = [*COMMAND, "--seeds", str(seeds), "--out", str(tmp_path / "out"), "--server-command", server]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while not (tmp_path / "pid").exists() or "\n" not in (tmp_path / "pid").read_text():
        assert running.poll() is None
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    running.kill()
    running.communicate()
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.01)  # it is told by the kernel, and ends at its own pace


def test_a_server_of_its_own_that_wants_a_key_is_shown_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "import sys\nfrom tests.openai_server import Handler, serve\n\n"
        "class Keyed(Handler):\n    def do_GET(self):\n"
        "        self.reply({}, 200 if self.headers.get('Authorization') == 'Bearer k' else 401)\n\n"
        "serve(Keyed, port=int(sys.argv[1]))\n"
    )
    command = f"env PYTHONPATH={ROOT} {sys.executable} {script} {{port}}"
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with own_server(command, wait_seconds=60.0) as url:
        assert url.endswith("/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(ConfigError, match=r"answers 401: set OPENAI_API_KEY"), own_server(command, wait_seconds=60.0):
        pass


def test_ctrl_c_while_its_server_is_not_ready_ends_both_with_one_line(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", ["A stone falls."])
    server = f"sh -c 'echo begun > {tmp_path / 'begun'}; exec sleep 3600' {tmp_path} {{port}}"
    command = [*COMMAND, "--seeds", str(seeds), "--out", str(tmp_path / "out"), "--server-command", server]
    running = interruptible(command)
    while not (tmp_path / "begun").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=240)
    assert running.returncode == 130, said
    assert "Traceback" not in said and said.endswith(
        "0 answers, 0.00 QA/s, 0 tokens/s, 0 % accepted; the same command goes on\n"
    )


def test_what_is_kept_of_a_seed_is_small() -> None:
    tracemalloc.start()
    keys = {key(f"{number:032x}", 0) for number in range(100_000)}
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(keys) == 100_000 and size / len(keys) < 110


def test_other_seeds_in_an_arrays_folder_are_asked(tmp_path: Path) -> None:
    fingerprints: set[Any] = set()
    prompts = read_prompts()
    for texts in (["a", "b"], ["a", "b"], ["a", "c"]):
        rows = [
            {"text": t, "seed_id": t, "seed_hash": t * 32, "discipline": "physics", "language": "en"} for t in texts
        ]
        (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = options(tmp_path / "seeds.jsonl", tmp_path / "out", "http://h/v1")
        fingerprints.add(module._fingerprint(asked, 2, module._count(asked, prompts)[1]))
    assert len(fingerprints) == 2
