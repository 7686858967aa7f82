"""`syne slurm submit`: a run's job, and behind it the conversion and the evaluation of what it has trained.

    train.sbatch ─ requeues itself, slice after slice ─ afterok ─> export.sbatch ─ afterok ─> eval.sbatch
Scripts and job ids stay in <run.dir>/slurm, so what was submitted can be read and submitted again.
"""

import logging
from dataclasses import replace
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from megatron_synE.config.examine import examine
from megatron_synE.config.fault import require
from tools.evaluation.suite import read_suite, suite_path
from tools.slurm import scheduler
from tools.slurm.acceptance_file import acceptance_fault
from tools.slurm.job import TrainingJob
from tools.slurm.options import Evaluation
from tools.slurm.render import render_eval, render_export, render_training

logger = logging.getLogger(__name__)

EXPORT_TIME = "4:00:00"
"""Ours: 8B is read, written and compared in minutes, 70B in an hour or two."""
EVAL_TIME = "12:00:00"
"""Ours: what is not done by then goes on with `sbatch eval.sbatch`."""


def submit(
    job: TrainingJob, command: list[str], *, acceptance: Path, export: bool, evaluation: Evaluation
) -> list[str]:
    """Submit and give the job ids, the run's first. A missing or failed acceptance is a logged warning.

    evaluation: what to evaluate behind the conversion.
    Errors: ConfigError for a fault of the run, an unknown suite, while jobs of the run are in the queue, or if Slurm
    would not take a script; then nothing was submitted.
    """
    if evaluation.suites and not export:
        raise ConfigError("--eval evaluates the converted model: leave --no-export out")
    for suite in evaluation.suites:
        read_suite(suite_path(suite))
    resources = job.resources
    world_size = resources.nodes * resources.gpus_per_node
    examination = examine(job.config, world_size=world_size, device="cpu" if job.config.device == "cpu" else "cuda")
    require(examination.faults, where=str(job.config_path))
    if fault := acceptance_fault(acceptance, cluster=scheduler.cluster_name(), nodes=resources.nodes):
        logger.warning("caution: %s", fault)
    folder = job.config.run.dir / "slurm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror})") from error
    _require_none_queued(folder / "jobs.txt")
    scripts = [folder / "train.sbatch"]
    write_atomic(scripts[0], render_training(job, command).encode())
    if export:
        asked = replace(resources, time=EXPORT_TIME)
        text = render_export(job.config.run.dir, job.config.run.name, asked, job.environment, command)
        scripts.append(folder / "export.sbatch")
        write_atomic(scripts[1], text.encode())
    if evaluation.suites:
        asked = replace(resources, time=EVAL_TIME)
        text = render_eval(
            job.config.run.dir, job.config.run.name, evaluation, asked, job.environment, command,
            on_gpu=job.config.device != "cpu",
        )  # fmt: skip
        scripts.append(folder / "eval.sbatch")
        write_atomic(scripts[-1], text.encode())
    for script in scripts:
        scheduler.call(["sbatch", "--test-only", script])
    jobs: list[str] = []
    lines = ""
    for script in scripts:
        jobs.append(scheduler.submit(script, after=jobs[-1] if jobs else None))
        lines += f"{jobs[-1]} {script.name}\n"
        write_atomic(folder / "jobs.txt", lines.encode())  # at once: a call that dies here has not lost a job
    return jobs


def _require_none_queued(jobs_file: Path) -> None:
    if not jobs_file.exists():
        return
    jobs = scheduler.in_queue(line.split()[0] for line in jobs_file.read_text().splitlines())
    if jobs:
        raise ConfigError(
            f"{jobs_file}: of what was submitted for this run {', '.join(jobs)} is in the queue; let it go on, or"
            f" `scancel {' '.join(jobs)}` first"
        )
