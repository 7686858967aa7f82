"""The command line as a shell sees it: exit codes, messages, help, and what help must not import."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.config.tiny_dataset import write_dataset
from tools.cli import app, main

ROOT = Path(__file__).parents[2]
COMMAND = typer.main.get_command(app)


def syne(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tools", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def all_commands() -> list[list[str]]:
    paths: list[list[str]] = [[]]
    found = []
    while paths:
        path = paths.pop()
        found.append(path)
        command = COMMAND
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        paths += [[*path, name] for name in getattr(command, "commands", {})]
    return sorted(found)


def examples_of(path: list[str], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert main([*path, "--help"]) == 0
    text = capsys.readouterr().out
    after = text.partition("Example:\n")[2].replace("\\\n", " ")
    return [shlex.split(line) for line in after.splitlines() if line.strip().startswith(("syne ", "torchrun "))]


@pytest.mark.parametrize("path", all_commands(), ids=lambda path: " ".join(path) or "syne")
def test_every_help_has_an_example_that_parses(path: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    examples = examples_of(path, capsys)
    assert examples
    for example in examples:
        words, command = example[1:], COMMAND
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        if words != ["--help"]:
            command.make_context("syne", words)  # raises a usage error if anything is not understood


def test_the_example_of_plan_works_as_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = examples_of(["plan"], capsys)
    result = syne(*example[1:])
    assert result.returncode == 0, result.stderr


def test_doctor_finds_this_machine_ready() -> None:
    result = syne("doctor")
    assert result.returncode == 0, result.stdout
    for subject in ("python", "torch", "megatron-core", "attention", "norm", "optimizer", "tokenizer", "collective"):
        assert any(line[2:].startswith(subject) for line in result.stdout.splitlines()), subject
    assert result.stdout.endswith("\nready\n")


def test_help_is_quick_and_imports_no_torch() -> None:
    program = (
        "import sys; from tools.cli import main; code = main(['--help']); sys.exit(code or 'torch' in sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    # CPU time, which is the wall time of an idle machine: the tests' own machine may be busy.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["plan"],
        ["plan", "--config"],
        ["plan", "--config", "x", "--gpus-per-node", "0"],
        ["plan", "--confg", "x"],
        ["plan", "--config", "x", "--format", "xml"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_a_users_mistake_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: {nam: a}\n", encoding="utf-8")
    result = syne("plan", "--config", str(tmp_path / "run.yaml"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path}/run.yaml: ")
    assert "run.nam: unknown key; did you mean run.name?" in result.stderr
    assert "Traceback" not in result.stderr


def test_plan_prints_the_plan_and_then_every_fault(tmp_path: Path) -> None:
    result = syne(
        "plan", "--config", "examples/llama3_8b/run_paper.yaml", "--nodes", "16", "--no-data", "init.from=random",
        "init.path=null", "model.preset=llama3_8b", "parallel.virtual_pipeline_model_parallel_size=2",
        "optimizer.lr=1e-8",
    )  # fmt: skip
    assert result.returncode == 2
    assert "\n  parallel.virtual_pipeline_model_parallel_size: 2 model chunks per rank need a pipeline" in result.stderr
    assert "\n  lr_schedule.start_lr: 1e-07 is above the peak" in result.stderr
    assert "data_parallel_size: 32" in result.stdout


def test_plan_as_json_holds_the_three_views_and_the_faults() -> None:
    result = syne(
        "plan", "--config", "examples/llama3_8b/run_recommended.yaml", "--nodes", "16", "--no-data", "--format", "json",
        "init.from=random", "init.path=null", "model.preset=llama3_8b",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["faults"] == []
    assert report["user"]["preset"] == "syne_recommended"
    assert report["resolved"]["lr_schedule"]["decay_tokens"] == 8_000_000_000
    assert report["derived"]["tokens_per_iteration"] == 512 * 8192
    assert report["derived"]["num_microbatches"] == 16  # 512 / (128 ranks / TP 4)


def test_a_missing_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere.yaml: cannot be read (No such file")


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.doctor.run_doctor", interrupted)
    assert main(["doctor"]) == 130


def test_an_interrupt_inside_an_executed_string_exits_130_too(tmp_path: Path) -> None:
    """As in an import that makes a dataclass: Python itself would end by SIGINT, not with a code."""
    (tmp_path / "told.py").write_text(
        "import sys\nimport tools.cli\nimport tools.doctor\n"
        "tools.doctor.run_doctor = lambda: exec('raise KeyboardInterrupt')\n"
        "sys.exit(tools.cli.main(['doctor']))\n"
    )
    told = subprocess.run(
        [sys.executable, "-m", "told"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (130, "")


def test_a_closed_pipe_brings_no_traceback() -> None:
    arguments = shlex.split(
        f"{sys.executable} -m tools plan --config examples/llama3_8b/run_paper.yaml --nodes 16 --no-data"
        " init.from=random init.path=null model.preset=llama3_8b"
    )
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(timeout=240)


def test_a_terminal_that_is_not_utf_8_gets_escapes_and_no_traceback(tmp_path: Path) -> None:
    write_dataset(tmp_path, {("en", "ñ😀", "law"): 100})
    done = subprocess.run(
        [sys.executable, "-m", "tools", "data", "stats", "--data", str(tmp_path), "--format", "json"],
        cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "gbk"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["name"] == "en/ñ😀/law"  # escapes of JSON, too, not \xf1


def test_megatron_cores_import_says_nothing_beside_a_commands_lines() -> None:
    program = (
        "from tools.cli_options import log_to_stderr; log_to_stderr()\n"
        "import logging; logging.getLogger('megatron.core.distributed.fsdp').info('using Megatron-FSDP')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_exit_codes_page_names_every_code() -> None:
    import megatron_synE.exit_codes as codes

    page = (ROOT / "docs/exit_codes.md").read_text(encoding="utf-8")
    listed = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, flags=re.M)}
    defined = {name: value for name, value in vars(codes).items() if isinstance(value, int)}
    assert listed == defined
