"""A stage does every task once, keeps what is done, and does not mix results of different options."""

import errno
import fcntl
import json
import multiprocessing
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_mixers.atomic import temporary_path
from data_mixers.errors import ConfigError, DataError
from tools.data.stage import Report, Stage, WorkerPool, only_one, results, run_stage, run_tasks


def _square(folder: Path, broken: int | None, task: int, report: Report) -> dict[str, Any]:
    if task == broken:
        raise DataError(f"task {task} is broken")
    with (folder / "calls").open("a") as stream:
        stream.write(f"{task}\n")
    report(1)
    return {"square": task * task}


def _stage(folder: Path, *, fingerprint: str = "a", broken: int | None = None) -> Stage:
    return Stage(
        name="square",
        work=folder / ".work",
        fingerprint=fingerprint,
        sizes=(1,) * 5,
        do=partial(_square, folder, broken),
    )


def _calls(folder: Path) -> list[int]:
    return sorted(int(line) for line in (folder / "calls").read_text().split())


SQUARES = [{"square": n} for n in (0, 1, 4, 9, 16)]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_tasks_for_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    assert run_stage(_stage(tmp_path), workers=workers) == SQUARES
    assert _calls(tmp_path) == [0, 1, 2, 3, 4]


def _process(task: int, report: Report) -> int:
    return os.getpid()


def _prepared(folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()


def test_one_pool_serves_one_stage_after_the_other_with_the_same_prepared_processes(tmp_path: Path) -> None:
    with WorkerPool(2) as pool:
        pool.prepare(partial(_prepared, tmp_path))
        stages = [
            Stage(name=name, work=tmp_path / name, fingerprint="a", sizes=(1,) * 6, do=_process) for name in ("a", "b")
        ]
        used = {process for stage in stages for process in run_stage(stage, workers=pool)}
        prepared = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert prepared and os.getpid() not in used
    assert len(used | prepared) <= 2


class _Counted:
    """Of a stage that is sent to a process it is known how often."""

    sent = 0

    def __call__(self, task: int, report: Report) -> int:
        return task

    def __reduce__(self) -> tuple[type["_Counted"], tuple[()]]:
        _Counted.sent += 1
        return _Counted, ()


def test_a_stage_is_sent_once_to_a_worker_however_many_tasks_it_has(tmp_path: Path) -> None:
    _Counted.sent = 0
    stage = Stage(name="many", work=tmp_path, fingerprint="a", sizes=(1,) * 50, do=_Counted())
    assert run_stage(stage, workers=2) == list(range(50))
    assert _Counted.sent == 2


def test_a_pool_goes_on_after_a_task_that_failed(tmp_path: Path) -> None:
    with WorkerPool(2) as pool:
        with pytest.raises(DataError, match="task 3 is broken"):
            run_stage(_stage(tmp_path, broken=3), workers=pool)
        assert run_stage(_stage(tmp_path), workers=pool) == SQUARES
    assert _calls(tmp_path) == [0, 1, 2, 3, 4]


def test_what_was_done_before_a_failure_is_not_done_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task 3 is broken"):
        run_stage(_stage(tmp_path, broken=3), workers=1)
    assert run_stage(_stage(tmp_path), workers=1) == SQUARES
    assert _calls(tmp_path) == [0, 1, 2, 3, 4]


def test_results_of_other_options_are_done_again(tmp_path: Path) -> None:
    run_stage(_stage(tmp_path), workers=1)
    run_stage(_stage(tmp_path, fingerprint="b"), workers=1)
    assert _calls(tmp_path) == sorted([0, 1, 2, 3, 4] * 2)


def test_ranks_of_an_array_share_the_tasks_and_a_missing_one_is_named(tmp_path: Path) -> None:
    run_tasks(_stage(tmp_path), 0, 2)
    with pytest.raises(DataError, match="task 1 of 5 is not done"):
        results(_stage(tmp_path))
    run_tasks(_stage(tmp_path), 1, 2)
    assert results(_stage(tmp_path)) == SQUARES
    assert _calls(tmp_path) == [0, 1, 2, 3, 4]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    run_stage(_stage(tmp_path), workers=1)
    (tmp_path / ".work" / "0000002.json").write_text(json.dumps({"square": 4})[:-3])
    with pytest.raises(DataError, match=r"0000002\.json"):
        results(_stage(tmp_path))


def _try_to_enter(folder: Path, answers: Any) -> None:
    try:
        with only_one(folder):
            answers.put("entered")
    except ConfigError as error:
        answers.put(str(error))


def test_what_a_killed_call_left_half_written_goes_when_the_folder_is_entered(tmp_path: Path) -> None:
    written = temporary_path(tmp_path / "report.json")
    left = written.with_name(written.name.replace(f".{os.getpid()}.", ".99999999."))  # no process has such a number
    left.touch()
    written.touch()
    with only_one(tmp_path):
        assert sorted(tmp_path.iterdir()) == [tmp_path / ".in_use", written]


def test_a_second_call_into_one_folder_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with only_one(tmp_path):
        process = context.Process(target=_try_to_enter, args=(tmp_path, answers))
        process.start()
        assert "another call is writing" in answers.get(timeout=240)
        process.join()


def test_a_file_system_without_locks_is_told_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # Lustre, mounted without flock

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ConfigError, match=r"has no locks .Function not implemented.*Lustre: option flock"),
        only_one(tmp_path),
    ):
        pass


def _onto_a_full_disk(task: int, report: Report) -> None:
    Path("/dev/full").write_text("x")


def test_a_full_disk_is_said_without_a_traceback_and_what_is_done_stays(tmp_path: Path) -> None:
    run_stage(replace(_stage(tmp_path), sizes=(1, 1)), workers=1)
    with pytest.raises(DataError, match=r"square: no space left for .*; free some and run the same command again"):
        run_stage(replace(_stage(tmp_path), do=_onto_a_full_disk), workers=1)
    assert run_stage(_stage(tmp_path), workers=1) == SQUARES
    assert _calls(tmp_path) == [0, 1, 2, 3, 4]
