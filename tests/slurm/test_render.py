"""Job scripts as text: the committed ones are what their commands write; no value of a user reaches a shell."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.slurm.cluster import Cluster
from tools.slurm import scheduler
from tools.slurm.job import lead_time, seconds_of
from tools.slurm.options import Container, Environment, Evaluation, Resources
from tools.slurm.render import render_eval, settings_of

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "llama3_8b").glob("*.sbatch"))
# The lock's, or where it has none for the machine, Debian's.
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def rendered(*arguments: object, code: int = 0) -> str:
    done = tiny.syne("slurm", "render", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def shellcheck(script: str) -> None:
    if not SHELLCHECK and platform.machine() != "x86_64":
        pytest.skip("the lock has shellcheck for x86_64 alone: apt-get install shellcheck")
    assert SHELLCHECK, "requirements/cpu.lock brings it"
    done = subprocess.run([SHELLCHECK, "-S", "style", "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_stages_both_and_conversion_are_there_for_1_8_and_16_nodes() -> None:
    names = {path.stem for path in EXAMPLES}
    runs = {f"{run}_{nodes}_nodes" for run in ("run_recommended", "stage1", "stage2") for nodes in (1, 8, 16)}
    assert names == {*runs, "export"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_committed_script_is_what_its_command_writes(path: Path) -> None:
    text = path.read_text()
    command = re.search(r"^# Made by: syne slurm render (.*)$", text, re.MULTILINE)
    assert command
    assert rendered(*shlex.split(command[1])) == text
    shellcheck(text)


@pytest.mark.slurm
def test_sbatch_takes_the_committed_scripts(cluster: Cluster) -> None:
    """What asks for more than the two small nodes here gets less of it: the command line wins over the script."""
    for path in EXAMPLES:
        nodes = ("--nodes=2",) if re.search("_(8|16)_nodes", path.name) else ()
        memory = ("--mem=8G", "--cpus-per-task=8") if path.stem == "export" else ()
        said = cluster.run("sbatch", "--test-only", *nodes, *memory, path, cwd=ROOT).stderr
        assert re.search(r"Job \d+ to start at .* using \d+ processors on nodes node", said), said
        if nodes:  # and as they are written, only for want of nodes
            refusal = cluster.run("sbatch", "--test-only", path, cwd=ROOT, code=1).stderr
            assert "node configuration is not available" in refusal or "More nodes requested" in refusal, refusal


def test_kernels_are_compiled_beside_the_cards_and_not_in_a_shared_home() -> None:
    """Triton's cache lies in the home, where a node reads what another has just renamed: a rank dies, the rest hang."""
    known = {device: {name: value for name, value, _ in settings_of(device)} for device in ("cpu", "cuda")}
    assert known["cuda"]["TRITON_CACHE_DIR"] == "/tmp/triton-$RANDOM$RANDOM$RANDOM"
    assert "TRITON_CACHE_DIR" not in known["cpu"]


HOSTILE = ("run.name=x", "init.path=$(touch HERE); `touch HERE`", 'data.manifests=["a b", "\'; touch HERE #"]')


@pytest.mark.parametrize("container", [("none",), ("pyxis", "--image", "$(touch HERE) x.sqsh", "--mount", "/a b:/b")])
def test_what_a_user_writes_reaches_no_shell(tmp_path: Path, container: tuple[str, ...]) -> None:
    """The script runs with srun, scontrol and python as programs that write down what they get."""
    config = tmp_path / "a $(touch HERE) run.yaml"
    config.write_text((ROOT / "examples/llama3_8b/stage1.yaml").read_text())
    python = tmp_path / "bin" / "py thon"
    python.parent.mkdir()
    for name in ("srun", "scontrol", "py thon"):
        (python.parent / name).write_text(f'#!/bin/bash\nprintf "%s\\0" "{name}" "$@" "\n" >> {tmp_path}/calls\n')
        (python.parent / name).chmod(0o755)
    script = tmp_path / "job.sbatch"
    multi_line = 'data.stages=[{"name": "a\n$(touch HERE)", "tokens": 1, "languages": {"zh": 1.0}}]'
    overrides = (*HOSTILE, multi_line, f"run.dir={tmp_path}/run 'dir")
    rendered(
        "--config", config, "--container", *container, "--python", python, "--env", "LAB=$(touch HERE)'\"",
        "--out", script, *overrides,
    )  # fmt: skip
    shellcheck(script.read_text().replace("$(touch", "(touch").replace("`touch HERE`", ""))  # SC2016 is their meaning
    subprocess.run(
        ["bash", script],
        cwd=tmp_path,
        env={
            "PATH": f"{python.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "a",
            "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "8",
        },
        check=True,
    )  # fmt: skip
    assert not list(tmp_path.rglob("HERE"))
    calls = [call.split("\0")[:-1] for call in (tmp_path / "calls").read_text().split("\n\0")]
    [training] = [call for call in calls if "megatron_synE.train" in call]
    assert training[training.index("megatron_synE.train") + 1 :] == [str(config), *overrides]
    assert str(python) in training
    if container[0] == "pyxis":
        assert "--container-image=$(touch HERE) x.sqsh" in training
        assert f"--container-mounts={tmp_path}:{tmp_path},/a b:/b" in training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--time", "a day"), "--time 'a day'"),
        (("--time", "5"), "a save needs 600 s of it"),
        (("--sbatch", "signal=B:USR2@1"), "--sbatch signal: not an option that can be added"),
        (("--sbatch", "comment=a\n#SBATCH --uid=0"), "holds a character that cannot stand in a directive"),
        (("--sbatch", "nodes=4"), "--sbatch nodes: use --nodes"),
        (("--image", "x.sqsh"), "--container pyxis or apptainer needs --image"),
        (("--env", "A B=c"), "--env 'A B'"),
        (("run.dir=a%j",), "run.dir=a%j"),
        (('run.dir="a\\n#SBATCH --uid=0"',), "choose another folder"),
        (("run.name=a b",), "letters, digits"),
        (("--retries", "6"), "operations.restart_budget=5"),
    ],
)
def test_what_cannot_be_asked_for(arguments: tuple[str, ...], message: str) -> None:
    said = rendered("--config", ROOT / "examples/llama3_8b/stage1.yaml", *arguments, code=2)
    assert message in said
    assert "Traceback" not in said


def test_with_fewer_nodes_allowed_the_script_knows_which_numbers_fit() -> None:
    """8 GPUs a node, TP 4: data-parallel sizes 2 to 32; 512 sequences go into 2, 4, 8, 16 and 32 parts."""
    config = ROOT / "examples/llama3_8b/run_recommended.yaml"
    script = rendered("--config", config, "--nodes", 16, "--min-nodes", 3)
    assert "#SBATCH --nodes=4-16\n" in script
    assert "\nnode_counts=(16 8 4)\n" in script
    assert "ntasks-per-node=8\n" not in script  # Slurm would hold a restart to the tasks of the last start
    shellcheck(script)
    for arguments, cure in (
        (("--nodes", 16, "--min-nodes", 12), "use --min-nodes 8"),
        (("--nodes", 8, "--min-nodes", 8), "lower it, or leave it out"),
        (("--nodes", 7, "--min-nodes", 4), "use one of 504, 518"),
        (("--nodes", 2, "--min-nodes", 1, "parallel.pipeline_model_parallel_size=4"), "leave --min-nodes out"),
    ):
        assert cure in rendered("--config", config, *arguments, code=2)


@pytest.mark.parametrize(
    ("asked", "cores"), [((), "16"), (("--cpus-per-task", 3), "3"), (("--cpus-per-task", 3, "--min-nodes", 1), "16")]
)
def test_cores_of_the_job_that_submitted_this_one_are_not_its_own(
    tmp_path: Path, asked: tuple[object, ...], cores: str
) -> None:
    """Slurm sets SLURM_CPUS_PER_TASK where a job asks for it; else it is what the submitting shell had: 3."""
    for name in ("srun", "scontrol", "python"):
        (tmp_path / name).write_text(
            f'#!/bin/bash\necho "{name} $SRUN_CPUS_PER_TASK $OMP_NUM_THREADS" >> {tmp_path}/calls\n'
        )
        (tmp_path / name).chmod(0o755)
    script, config = tmp_path / "job.sbatch", ROOT / "examples/llama3_8b/run_recommended.yaml"
    rendered("--config", config, "--nodes", 2, *asked, "--out", script, f"run.dir={tmp_path}/run")
    given = {"JOB_ID": "1", "JOB_NODELIST": "a", "NTASKS_PER_NODE": "8", "CPUS_ON_NODE": "128", "CPUS_PER_TASK": "3"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | {f"SLURM_{key}": value for key, value in given.items()}
    subprocess.run(["bash", script], cwd=tmp_path, env=environment, check=True)
    assert f"srun {cores} {cores}" in (tmp_path / "calls").read_text().splitlines()


def test_sbatch_does_not_see_the_job_that_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/bash\nenv > {tmp_path}/seen\necho 12\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    outer = {"JOB_ID": "7", "RESTART_COUNT": "3", "GPUS_PER_TASK": "1", "CPUS_PER_TASK": "1", "STEP_ID": "0"}
    own = {"CONF": "/etc/slurm.conf", "JWT": "token"}  # of the user, wherever they are
    for key, value in (outer | own).items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    assert scheduler.submit(tmp_path / "job.sbatch") == "12"
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert {name.removeprefix("SLURM_"): seen[name] for name in seen if name.startswith("SLURM_")} == own
    assert seen["SBATCH_ACCOUNT"] == "lab"


@pytest.mark.parametrize("container", ["none", "pyxis", "apptainer"])
def test_the_evaluation_goes_on_behind_a_suite_that_fails(tmp_path: Path, container: Container) -> None:
    """The script runs with a python that writes down what it is asked and fails for one suite."""
    python = tmp_path / "bin" / "py thon"
    python.parent.mkdir()
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >> "{tmp_path}/calls"\n[[ "$*" != *paper* ]] || exit 3\n')
    python.chmod(0o755)
    for name, keeps in (("srun", "--container-workdir="), ("apptainer", "image.sif")):
        program = python.with_name(name)  # runs what stands behind its own options
        program.write_text(f'#!/bin/bash\nwhile [[ $1 != *thon ]]; do shift; done # {keeps}\nexec "$@"\n')
        program.chmod(0o755)
    image = None if container == "none" else "image.sif"
    text = render_eval(
        tmp_path / "a run", "name", Evaluation(suites=("paper", "$(touch HERE)"), data=Path("my data"), runs_code=True),
        Resources(nodes=16, gpus_per_node=8), Environment(python=str(python), container=container, image=image),
        ["syne"], on_gpu=True,
    )  # fmt: skip
    assert "#SBATCH --nodes=1\n" in text and "#SBATCH --gpus-per-node=1\n" in text
    shellcheck(text.replace("$(touch", "(touch"))
    environment = {"PATH": f"{python.parent}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 3
    assert not list(tmp_path.rglob("HERE"))
    run, options = tmp_path / "a run", "--offline --skip-missing --data my data --run-code"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"-m tools eval {run}/hf --out {run}/eval --suite {suite} {options}" for suite in ("paper", "$(touch HERE)")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--acceptance", "/"), "--acceptance /: is a folder"), (("--only", "tp3"), "--only 'tp3': no such layout")],
)
def test_an_acceptance_that_cannot_be(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = tiny.syne("slurm", "acceptance", "--out", tmp_path / "a.sbatch", *arguments)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:01", 7201), ("1-12", 129_600), ("1-0:30", 88_200), ("1-00:00:05", 86_405)],
)
def test_wall_times_are_read_as_sbatch_reads_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def test_the_lead_time_is_two_saves_a_step_and_a_validation_batch(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert lead_time(metrics)[0] == 600
    rows = [{"kind": "train", "iteration": n, "step_seconds": 9.5 if n == 3 else 8.0} for n in range(6)]
    rows += [{"kind": "checkpoint", "iteration": 5, "seconds": seconds} for seconds in (40.0, 71.3, 50.0)]
    metrics.write_text('cut": 1}\n' + "".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "trai')
    # 2 x 71.3 + 2 x 9.5 = 161.6
    assert lead_time(metrics)[0] == 170
