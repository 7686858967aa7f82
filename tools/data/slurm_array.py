"""A stage as a SLURM job array, through datatrove's executor: submit, or find the array that is there; wait; be told.

    run_array ─ sbatch ─> elements: launch_pickled_pipeline ─ run_tasks(stage, rank, world_size) ─> <work>/<task>.json
        └─ squeue, and the results that are there ─> live line; the array's end
Only ranks with tasks to do are submitted. An array is known by its job name, a hash of stage and folder; so a second
call, or one after a crash of the first, attaches to it, and the cluster alone knows what runs.
"""

import hashlib
import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError, UserError
from tools.data.progress import LiveProgress
from tools.data.slurm_options import SlurmArray
from tools.data.stage import Stage, missing_tasks, run_tasks

try:
    from datatrove.executor.slurm import SlurmPipelineExecutor
except ModuleNotFoundError as absent:
    raise ConfigError(f"a SLURM job array needs datatrove ({absent}); pip install 'megatron-synE[data]'") from absent

logger = logging.getLogger(__name__)

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0  # between two calls of squeue


def run_array(stage: Stage, array: SlurmArray, progress: LiveProgress, missing: list[int]) -> None:
    """Has the missing tasks done and returns when they are; an array of this stage that is queued already does them.

    Errors: ConfigError if SLURM refuses the array; DataError, naming the logs, if it has ended with tasks undone.
    """
    name, logs = _names(stage)
    left = missing
    if elements := _queued(name):
        job = elements[0][0]
        logger.info("%s: SLURM job array %s is doing this already", stage.name, job)
        left = _wait(stage, name, job, progress, left)
    if left:  # it may have begun before what ended it, or left out what was done then
        job = _submit(_Share(stage, logs / "errors"), array, name, logs, left)
        logger.info("%s: SLURM job array %s submitted, logs in %s", stage.name, job, logs)
        left = _wait(stage, name, job, progress, left)
    if left:
        raise DataError(
            f"{stage.name}: SLURM job array {job} has ended, and {len(left)} of {len(stage.sizes)} tasks are not done"
            f"{_first_error(logs)}; logs in {logs}; the same command goes on from here"
        )


@dataclass(frozen=True)
class _Share:
    """The pipeline of one rank: its share of the stage's tasks."""

    stage: Stage
    errors: Path

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)  # into the element's log
        kept = self.errors / f"{rank:05d}"
        kept.unlink(missing_ok=True)
        try:
            run_tasks(self.stage, rank, world_size)
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            write_atomic(kept, text.encode())
            raise

    def __repr__(self) -> str:
        return f"{self.stage.name}, {len(self.stage.sizes)} tasks"  # datatrove writes it into every log


class _Executor(SlurmPipelineExecutor):
    """Submits the given ranks alone, asks for memory by element, and leaves datatrove's job of merged stats away."""

    def __init__(self, ranks: list[int], array: SlurmArray, **arguments: Any) -> None:
        super().__init__(tasks=array.tasks, time=array.time, partition=array.partition, **arguments)
        self.ranks, self.array = ranks, array

    def get_incomplete_ranks(self, ranks: Any = None, skip_completed: Any = None) -> list[int]:
        return self.ranks

    def is_rank_completed(self, rank: int) -> bool:
        return False  # its tasks' results say what is done

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        arguments = super().get_sbatch_args(max_array)
        del arguments["mem-per-cpu"]
        arguments["mem"] = f"{self.array.mem_gb}G"
        return {key: value for key, value in arguments.items() if value is not None}

    def launch_merge_stats(self) -> None:
        pass


def _submit(share: _Share, array: SlurmArray, name: str, logs: Path, missing: list[int]) -> str:
    from loguru import logger as datatrove_logger

    datatrove_logger.disable("datatrove")  # in this process alone: its lines say what ours say
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _slurm(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    limit = int(found[1]) if found else 1001  # Slurm's default
    if array.tasks > limit:
        raise ConfigError(f"--slurm-tasks {array.tasks} is above this cluster's MaxArraySize; use at most {limit}")
    shutil.rmtree(share.errors, ignore_errors=True)
    share.errors.mkdir(parents=True)
    executor = _Executor(
        sorted({task % array.tasks for task in missing}),
        array,
        pipeline=[share],
        cpus_per_task=array.cpus,
        gpus_per_task=array.gpus,
        job_name=name,
        qos=None,
        env_command=_environment(array.cpus),
        sbatch_args={"open-mode": "append"} | array.sbatch_args,  # else a requeued element drops its first log
        srun_args={"cpus-per-task": array.cpus},  # since Slurm 22.05 a step does not inherit it
        max_array_size=-1,
        logging_dir=str(logs),
        job_id_retriever=_job_id,
    )
    try:
        executor.launch_job()
    except subprocess.CalledProcessError as error:
        script = logs / "launch_script.slurm"
        raise ConfigError(f"sbatch refuses the job array (its reason stands above); the script is {script}") from error
    return str(executor.job_id)


def _wait(stage: Stage, name: str, job: str, progress: LiveProgress, missing: list[int]) -> list[int]:
    """The tasks without a result when all have one or the array has ended."""
    started = time.monotonic()
    try:
        while True:
            elements = _queued(name, answer_needed=False)  # before the results: what has ended has written its own
            left = missing_tasks(stage, missing)
            if len(left) < len(missing):
                progress.advance(sum(stage.sizes[task] for task in set(missing) - set(left)))
            missing = left
            if not missing or elements == []:
                return missing
            progress.note("SLURM does not answer" if elements is None else _state(elements))
            pause = (time.monotonic() - started) / 10
            time.sleep(min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nSLURM job array {job} goes on. The same command again waits for it; `scancel {job}` stops it.\n"
        )
        raise


def _queued(name: str, *, answer_needed: bool = True) -> list[list[str]] | None:
    """[job, state, reason] of what squeue has under this name; None if it fails and no answer is needed."""
    command = ["squeue", "--noheader", "--array", "--me", f"--name={name}", "--format=%F|%T|%r"]
    done = _slurm(command)
    if done.returncode != 0:
        if answer_needed:
            raise ConfigError(f"SLURM does not answer: {done.stderr.strip()}")
        return None
    return [line.split("|", 2) for line in done.stdout.splitlines()]


def _state(elements: list[list[str]]) -> str:
    """'12 running, 4 pending (Resources)'."""
    counts = Counter("running" if s == "RUNNING" else f"{s.lower()} ({reason})" for _, s, reason in elements)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), reverse=True))


def _slurm(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no {command[0]} on this machine; call from a login node of the cluster, or without --slurm-tasks"
        ) from error


def _names(stage: Stage) -> tuple[str, Path]:
    work = stage.work.resolve()
    digest = hashlib.sha256(f"{stage.fingerprint}\n{work}".encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", stage.name).strip("-")
    return f"syne-{stem}-{digest}", work / "slurm" / digest


def _environment(cpus: int) -> str:
    """A shell line that makes an element run in this interpreter's environment, on its own CPUs."""
    parallel = "true" if cpus > 1 else "false"
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "FASTOKENS_BPE_THREADS")
    threads = " ".join((*(f"{name}={cpus}" for name in names), f"TOKENIZERS_PARALLELISM={parallel}"))
    return f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH {threads}"


def _job_id(output: str) -> str:
    """From 'Submitted batch job 12' or, where a cluster is named, '... 12 on cluster x'."""
    found = re.search(r"\b(\d+)\b", output)
    if found is None:
        raise ConfigError(f"sbatch gave no job id: {output!r}")
    return found[1]


def _first_error(logs: Path) -> str:
    for path in sorted((logs / "errors").glob("[0-9]*")):
        return f" ({path.read_text(encoding='utf-8')})"
    return ""
