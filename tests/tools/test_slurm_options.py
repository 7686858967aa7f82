"""The --slurm-... options: what they give, and what is refused before anything is submitted."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from data_mixers.errors import ConfigError
from tools.cli_options import takes
from tools.data.slurm_options import OnSlurm, SlurmArray
from tools.data.stage import Report, Stage, run_stage

received: list[tuple[Path, int, SlurmArray | None]] = []


@takes(OnSlurm)
def command(
    slurm: OnSlurm,
    out: Annotated[Path, typer.Option()],
    workers: Annotated[int, typer.Option()] = 1,
) -> None:
    received.append((out, workers, slurm.array))


def array_of(*options: str) -> SlurmArray | None:
    app = typer.Typer()
    app.command()(command)
    received.clear()
    CliRunner().invoke(app, ["--out", "folder", "--workers", "3", *options], catch_exceptions=False)
    [(out, workers, array)] = received
    assert (out, workers) == (Path("folder"), 3)
    return array


def test_without_slurm_options_there_is_no_array() -> None:
    assert array_of() is None


def test_every_option_arrives() -> None:
    options = (
        "--slurm-tasks 8 --slurm-partition cpu --slurm-time 4:00:00 --slurm-cpus 2 --slurm-mem-gb 6 --slurm-gpus 1"
    )
    more = ("--slurm-args", "account=lab", "--slurm-args", "exclusive", "--slurm-args", "comment=a=b, c")
    assert array_of(*options.split(), *more) == SlurmArray(
        tasks=8,
        partition="cpu",
        time="4:00:00",
        cpus=2,
        mem_gb=6,
        gpus=1,
        sbatch_args={"account": "lab", "exclusive": "", "comment": "a=b, c"},
    )
    assert array_of("--slurm-tasks", "8") == SlurmArray(tasks=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--slurm-partition cpu", "no effect without --slurm-tasks"),
        ("--slurm-gpus 0", "no effect without --slurm-tasks"),
        ("--slurm-tasks 2 --slurm-args --qos=low", "without its dashes"),
        ("--slurm-tasks 2 --slurm-args mem-per-cpu=2G", "use --slurm-mem-gb"),
        ("--slurm-tasks 2 --slurm-args array=0-3", "use --slurm-tasks"),
        ("--slurm-tasks 2 --slurm-args output=x", "set by the stage itself"),
    ],
)
def test_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        array_of(*options.split())


def _nothing(task: int, report: Report) -> Any:
    return task


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    stage = Stage(name="s", work=tmp_path / "work", fingerprint="a", sizes=(1, 1), do=partial(_nothing))
    with pytest.raises(ConfigError, match=r"no squeue on this machine; .* without --slurm-tasks"):
        run_stage(stage, workers=1, array=SlurmArray(tasks=2))


def test_an_array_without_anything_to_do_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(name="s", work=tmp_path / "work", fingerprint="a", sizes=(1, 1), do=partial(_nothing))
    assert run_stage(stage, workers=1) == [0, 1]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_stage(stage, workers=1, array=SlurmArray(tasks=2)) == [0, 1]
