"""A run in a terminal: no wider than it, the same without colour, and it ends when the run does."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from data_mixers.errors import DataError
from data_mixers.ratios import WEIGHT_UNIT
from tests.report import run_folders
from tools.report.live import MetricsTail
from tools.report.watch import BARS, sparkline, watch_run

HOLDER = {"token": "abcd", "job": None, "restart_count": 0, "host": "node1", "pid": 17}


class Terminal:
    """What was written to it, of one width, without colour; its clock goes on by what was slept."""

    def __init__(self, width: int, *acts: Callable[[], None]) -> None:
        self.out = io.StringIO()
        self.console = Console(file=self.out, width=width, force_terminal=False, color_system=None)
        self._acts, self._now = list(acts), 0.0

    def watch(self, folder: Path, *, once: bool = False) -> int:
        return watch_run(
            folder, once=once, interval_seconds=2, patience_seconds=60, console=self.console, sleep=self._sleep,
            clock=lambda: self._now,
        )  # fmt: skip

    def _sleep(self, seconds: float) -> None:
        self._now += seconds
        if self._acts:
            self._acts.pop(0)()

    @property
    def text(self) -> str:
        return self.out.getvalue()


def unfinished(folder: Path, *, steps: int = 30, of: int = 40) -> Path:
    run_folders.write(folder, steps)
    (folder / "schedule.json").write_text(run_folders.schedule(of).to_json() + "\n")
    return folder


def hold(folder: Path) -> None:
    (folder / "lease.json").write_text(json.dumps(HOLDER))
    (folder / ".alive-abcd").touch()


def add_steps(folder: Path, *steps: int) -> None:
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(run_folders.train_row(step)) + "\n" for step in steps)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_one_look_shows_everything_within_the_width_without_an_escape_sequence(tmp_path: Path, width: int) -> None:
    folder = unfinished(tmp_path / "run")
    terminal = Terminal(width)
    assert terminal.watch(folder, once=True) == 0
    assert max(map(len, terminal.text.splitlines())) <= width
    assert "\x1b" not in terminal.text
    words = " ".join(terminal.text.split())
    for part in ("step 30 / 40", "tokens 7.68 k", "loss 2.1826", "goodput 80.0 %", "left 5.0 s", "75 %"):
        assert part in words, part
    (loss,) = [line for line in terminal.text.splitlines() if line.startswith("loss ") and BARS[0] in line]
    assert sum(sign in BARS for sign in loss) == (8 if width == 30 else 30)  # a bar a step, or a few of them
    if width >= 80:  # no wider than 80: three quarters of the 73 signs before the number
        assert f"{'█' * 55}{'░' * 18}   75 %" in map(str.rstrip, terminal.text.splitlines())


@pytest.mark.parametrize("steps", [5, 15, 25, 35])
def test_the_phase_that_is_read_is_told_whichever_it_is(tmp_path: Path, steps: int) -> None:
    folder = unfinished(tmp_path / "run", steps=steps)
    made = run_folders.schedule(10)
    for number in (2, 3, 4):
        zh, en = run_folders.SHARES
        weights = {zh: WEIGHT_UNIT // 8 * number, en: WEIGHT_UNIT // 8 * (8 - number)}
        made = made.append_weights(f"stage {number}", num_samples=10 * run_folders.BATCH, weights=weights)
    (folder / "schedule.json").write_text(made.to_json() + "\n")
    terminal = Terminal(200)
    assert terminal.watch(folder, once=True) == 0
    told = [
        "phase 1 (stage, adapt): the run begins; zh/web/law 50.00 %, en/web/computing 50.00 %",
        "phase 2 (stage, stage 2): the plan's next stage begins; zh/web/law 50.00 % → 25.00 %, ",
        "phase 3 (stage, stage 3): the plan's next stage begins; zh/web/law 25.00 % → 37.50 %, ",
        "phase 4 (stage, stage 4): the plan's next stage begins; zh/web/law 37.50 % → 50.00 %, ",
    ][steps // 10]
    assert told in " ".join(terminal.text.split())


def test_it_follows_the_run_and_ends_with_it(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    hold(folder)
    terminal = Terminal(
        80,
        lambda: add_steps(folder, 31, 32),
        lambda: add_steps(folder, *range(33, 41)),
        lambda: (folder / ".alive-abcd").unlink(),  # after its last row it still saves
    )
    assert terminal.watch(folder) == 0
    assert "step 40 / 40" in terminal.text
    assert not terminal._acts


def test_it_leaves_a_run_that_nobody_goes_on_with_and_says_so(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    hold(folder)  # a holder that was killed: its sign of life stays and is never touched again
    terminal = Terminal(80)
    assert terminal.watch(folder) == 7
    assert terminal._now == pytest.approx(62)
    assert "nobody has written to" in terminal.text.replace("\n", " ")


def test_a_requeued_run_is_waited_for(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    hold(folder)

    def requeued() -> None:
        (folder / ".alive-abcd").unlink()

    def started_again() -> None:
        (folder / "lease.json").write_text(json.dumps(HOLDER | {"token": "ef"}))
        (folder / ".alive-ef").touch()

    def finished() -> None:
        add_steps(folder, *range(31, 41))
        (folder / ".alive-ef").unlink()

    nothing = [lambda: None] * 10
    assert Terminal(80, requeued, *nothing, started_again, *nothing, finished).watch(folder) == 0


def test_control_c_leaves_quietly(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    folder = unfinished(tmp_path / "run")
    assert Terminal(80, interrupt).watch(folder) == 0


def test_no_name_of_a_run_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "run")
    name = "\x1b]0;title\x07en/web/\x1b[31m"
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(run_folders.validation_row(30, f"{name}@holdout", 2.0)) + "\n")
        guard = {
            "kind": "guard",
            "iteration": 30,
            "set": name,
            "consumed_tokens": 7680,
            "worse": ["loss"],
            "change": 0.1,
        }
        stream.write(json.dumps(guard) + "\n")
    terminal = Terminal(200)
    assert terminal.watch(folder, once=True) == 0
    assert "en/web/" in terminal.text
    assert not set(terminal.text) & {"\x1b", "\x07"}


def test_a_folder_without_anything_yet_is_shown_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    terminal = Terminal(60)
    assert terminal.watch(tmp_path / "run", once=True) == 0
    assert "not begun" in terminal.text
    with pytest.raises(DataError, match="no such folder"):
        terminal.watch(tmp_path / "nowhere")


def test_only_whole_lines_are_taken_and_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = MetricsTail(file)
    tail.look()
    assert tail.metrics.num_steps == 0
    row = json.dumps(run_folders.train_row(1)) + "\n"
    file.write_text(row + row[:20])
    tail.look()
    assert (tail.metrics.num_steps, tail.metrics.num_bad) == (1, 0)
    with file.open("a") as stream:
        stream.write(row[20:])
    tail.look()
    assert (tail.metrics.num_steps, tail.metrics.num_bad) == (2, 0)
    replacement = tmp_path / "new"
    replacement.write_text(row * 5)  # longer than what was there: only the file itself tells it from growth
    replacement.rename(file)
    tail.look()
    assert tail.metrics.num_steps == 5
    file.write_text(row)  # cut in place
    tail.look()
    assert tail.metrics.num_steps == 1
    file.unlink()
    tail.look()
    assert tail.metrics.num_steps == 1  # away for a moment: what was seen stands
    file.write_text(row * 3)
    tail.look()
    assert tail.metrics.num_steps == 3
    tail.close()


def test_a_spark_line_goes_from_the_lowest_to_the_highest() -> None:
    import numpy as np

    assert sparkline(np.array([0.0, 3.5, 7.0])) == "▁▅█"
    assert sparkline(np.array([2.0, 2.0])) == "▁▁"
