"""`syne surrogate run`: prepare, pilot, say what can be resolved, run every arm with every seed, table and figure.

study.yaml ─ arms x seeds ─> jobs ─ pilot ─> smallest difference found ─ stage (here, or a SLURM job array) ─> results
Arms of one seed share order of data and start; a job is known by a hash of all that decides it, and never done twice.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from megatron_synE.runtime.launch import default_nproc
from tools.data.slurm_options import SlurmArray
from tools.data.stage import Stage, forget, only_one, refuse_foreign, run_stage
from tools.surrogate.arms import Arm, Job, arms_of, check_jobs, jobs_of, pilot_arms, references
from tools.surrogate.noise import Spread, detectable, seeds_needed, spread_of
from tools.surrogate.outcome import Measured, group_loss
from tools.surrogate.prepare import planned_variants, variants
from tools.surrogate.study import Study, read_study
from tools.surrogate.trained import do_job, drop_checkpoints, finished

logger = logging.getLogger(__name__)
STUDY, ARMS, DATA, WORK = "study.yaml", "arms", "data", ".work"


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What the study's seeds can tell, in nats per token of the primary group."""

    spread: Spread
    detectable: float
    """Smallest true difference found with outcome.power, at the measured spread."""
    detectable_at_upper: float
    """The same at the upper bound of the spread."""
    seeds_needed: int | None
    """To find outcome.matters; None: more than a thousand."""
    comparisons: int
    """Between which the error of outcome.level is shared."""

    def resolves(self, study: Study) -> bool:
        return self.detectable <= study.outcome.matters and self.arms_differ

    @property
    def arms_differ(self) -> bool:
        """No: the pilot's two arms are the same run to the last digit, so what their levels set does nothing here."""
        return self.spread.sd > 0

    def sentence(self, study: Study) -> str:
        """For a person."""
        outcome, spread = study.outcome, self.spread
        if not self.arms_differ:
            return (
                f"{study.name}: the two arms of the pilot lose the same to the last digit with every seed, so what "
                "their levels set did nothing: THIS STUDY CANNOT RESOLVE ITS QUESTION; the runs' logs may say why"
            )
        measured = (
            "given" if spread.seeds is None else f"{spread.seeds} pilot seeds; 90 % sure below {spread.upper:.4f}"
        )
        text = (
            f"{study.name}: with {len(study.seeds)} seeds, a spread of paired differences of {spread.sd:.4f} nats "
            f"({measured}) and {self.comparisons} comparisons, a difference of {self.detectable:.4f} nats of "
            f"{outcome.primary} is found in {outcome.power:.0%} of studies"
        )
        if spread.seeds is not None:
            text += f" (at the upper bound: {self.detectable_at_upper:.4f})"
        if self.resolves(study):
            return f"{text}; what matters is {outcome.matters:g}: it can be resolved"
        needed = "more than a thousand" if self.seeds_needed is None else str(self.seeds_needed)
        return (
            f"{text}; what matters is {outcome.matters:g}: THIS STUDY CANNOT RESOLVE ITS QUESTION; it needs {needed} "
            "seeds, or arms with more tokens or larger differences"
        )


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A study with all its jobs done."""

    study: Study
    arms: tuple[Arm, ...]
    measured: tuple[Measured, ...]
    resolution: Resolution


def run_study(
    path: Path, out: Path | None = None, *, array: SlurmArray | None = None, anyway: bool = False
) -> tuple[Finished, Path]:
    """Run what is not done yet; the finished study, and its folder.

    Errors: ConfigError with every fault of the study and its runs, if another call works in the folder, or (without
    anyway) if the pilot shows that the question cannot be resolved; DataError if a run fails.
    """
    study = read_study(path)
    out = out or Path("runs/surrogate") / study.name
    arms_of(study, path)  # what is wrong with the study is said before anything is made
    refuse_foreign(out, is_begun=(out / WORK).is_dir())
    with only_one(out):
        (out / WORK).mkdir(exist_ok=True)
        arms = arms_of(study, path, variants=variants(study, out / DATA))
        jobs = jobs_of(study, arms)
        nproc = study.nproc or default_nproc("cpu" if jobs[0].config["device"] == "cpu" else "auto")
        check_jobs(study, path, jobs, world_size=nproc if array is None else study.nproc or max(1, array.gpus))
        write_atomic(out / STUDY, path.read_bytes())
        _run(study, _pilot(study, arms, jobs), out, "pilot", array)
        resolution = resolution_of(study, arms, jobs, out)
        logger.info("%s", resolution.sentence(study))
        if not resolution.resolves(study) and not anyway:
            raise ConfigError(
                f"{path}: outcome.matters: {resolution.sentence(study)}; give more seeds, or --anyway to run it all "
                "the same (the pilot's runs are kept)"
            )
        _run(study, jobs, out, "arms", array)
        return collect(study, arms, jobs, out, resolution), out


def planned(path: Path, *, reads_data: bool = True, world_size: int | None = None) -> str:
    """Arms, tokens and what the seeds can tell, for a person. Errors: ConfigError with every fault of every run."""
    study = read_study(path)
    out = Path("runs/surrogate") / study.name
    arms = arms_of(study, path, variants=planned_variants(study, out / DATA))
    first, last = pilot_arms(study, arms)
    jobs = jobs_of(study, arms)
    needs_making = "corruption" in study.grid  # its token files are made by `run`
    check_jobs(study, path, jobs, world_size=world_size or study.nproc or 1, reads_data=reads_data and not needs_making)
    total = sum(job.tokens for job in jobs)
    lines = [
        f"{study.name}: {study.question}",
        f"{len(arms)} arms x {len(study.seeds)} seeds = {len(jobs)} runs, {total:,} tokens in all",
        f"compared with {', '.join(references(study, arms))}; "
        f"pilot: {first} and {last}, {study.pilot_seeds} seeds each",
        *(f"  {arm.name}: {arm.tokens:,} tokens" for arm in arms),
        _resolution(study, arms, out),
    ]
    if needs_making:
        lines.append("the token files of the corruption levels are made by `run`: they were not looked at")
    return "\n".join(lines)


def _resolution(study: Study, arms: Sequence[Arm], out: Path) -> str:
    """What is known before the pilot: the answer as a multiple of the spread, or in nats where that is given."""
    if study.spread is not None:
        return resolution_of(study, arms, (), out).sentence(study)
    outcome, alpha = study.outcome, (1 - study.outcome.level) / num_comparisons(study, arms)
    unit = detectable(sd=1.0, seeds=len(study.seeds), alpha=alpha, power=outcome.power)
    return (
        f"found in {outcome.power:.0%} of studies: a difference of {unit:.2f} times the spread of paired "
        f"differences, so what matters ({outcome.matters:g} nats) needs a spread below "
        f"{outcome.matters / unit:.4f}; the pilot measures it"
    )


def open_study(out: Path) -> Finished:
    """A study that has been run, from its folder. Errors: ConfigError if it is not finished, DataError if damaged."""
    path = out / STUDY
    if not path.is_file():
        raise ConfigError(f"{out}: holds no {STUDY}; give the folder of `syne surrogate run`")
    study = read_study(path)
    arms = arms_of(study, path, variants=planned_variants(study, out / DATA))
    jobs = jobs_of(study, arms)
    return collect(study, arms, jobs, out, resolution_of(study, arms, jobs, out))


def collect(study: Study, arms: Sequence[Arm], jobs: Sequence[Job], out: Path, resolution: Resolution) -> Finished:
    """Errors: ConfigError naming the first job that is not done."""
    measured = []
    for job in jobs:
        found = finished(out / ARMS, job)
        if found is None:
            raise ConfigError(
                f"{out}: {job.arm}, seed {job.seed} is not done; run `syne surrogate run` to its end. If it was, its "
                "base, data or weights have changed since"
            )
        measured.append(found)
    return Finished(study=study, arms=tuple(arms), measured=tuple(measured), resolution=resolution)


def resolution_of(study: Study, arms: Sequence[Arm], jobs: Sequence[Job], out: Path) -> Resolution:
    """From the given spread, or from the pilot's runs."""
    outcome = study.outcome
    if study.spread is not None:
        spread = Spread(sd=study.spread, upper=study.spread, seeds=None)
    else:
        losses = {}
        for job in _pilot(study, arms, jobs):
            measured = finished(out / ARMS, job)
            if measured is None:
                raise ConfigError(f"{out}: the pilot is not done; run `syne surrogate run`")
            losses[job.arm, job.seed] = group_loss(outcome, outcome.primary, measured.final)
        first, last = pilot_arms(study, arms)
        spread = spread_of([losses[last, seed] - losses[first, seed] for seed in study.seeds[: study.pilot_seeds]])
    comparisons = num_comparisons(study, arms)
    alpha = (1 - outcome.level) / comparisons
    found, at_upper = (
        detectable(sd=sd, seeds=len(study.seeds), alpha=alpha, power=outcome.power) for sd in (spread.sd, spread.upper)
    )
    needed = seeds_needed(outcome.matters, sd=spread.sd, alpha=alpha, power=outcome.power)
    return Resolution(
        spread=spread, detectable=found, detectable_at_upper=at_upper, seeds_needed=needed, comparisons=comparisons
    )


def num_comparisons(study: Study, arms: Sequence[Arm]) -> int:
    """Pairs of an arm and a reference."""
    names = references(study, arms)
    return len({frozenset((arm.name, name)) for arm in arms for name in names if arm.name != name})


def _pilot(study: Study, arms: Sequence[Arm], jobs: Sequence[Job]) -> list[Job]:
    """None where the spread is given."""
    if study.spread is not None:
        return []
    names, seeds = pilot_arms(study, arms), study.seeds[: study.pilot_seeds]
    return [job for job in jobs if job.arm in names and job.seed in seeds]


def _run(study: Study, jobs: Sequence[Job], out: Path, name: str, array: SlurmArray | None) -> None:
    """All of `jobs`: a call that was cut finds its array again by the same jobs, whatever is done of them by then."""
    missing = [number for number, job in enumerate(jobs) if finished(out / ARMS, job) is None]
    if not study.keep_checkpoints:
        for job in (job for number, job in enumerate(jobs) if number not in missing):
            drop_checkpoints(out / ARMS, job)  # of a run that was killed behind its last word
    if not missing:
        return
    decided = json.dumps([job.folder for job in jobs])
    stage = Stage(
        name=f"{study.name}: {name}",
        work=out / WORK / name,
        fingerprint=hashlib.sha256(decided.encode()).hexdigest(),
        sizes=tuple(job.tokens for job in jobs),
        do=partial(do_job, tuple(jobs), out / ARMS, study.nproc, study.keep_checkpoints),
        unit="k tokens",
        scale=1e3,
    )
    for number in missing:
        forget(stage, number)
    run_stage(stage, workers=1, array=array)
