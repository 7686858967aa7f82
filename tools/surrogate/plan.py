"""`syne surrogate plan`: what a study would run, checked on a login node."""

from collections.abc import Sequence
from pathlib import Path

from tools.surrogate.arms import Arm, arms_of, check_jobs, jobs_of, pilot_arms, references
from tools.surrogate.noise import detectable
from tools.surrogate.prepare import planned_variants
from tools.surrogate.run import num_comparisons, resolution_of
from tools.surrogate.study import Study, read_study


def planned(path: Path, *, reads_data: bool = True, world_size: int | None = None) -> str:
    """Arms, tokens and what the seeds can tell, for a person. Errors: ConfigError with every fault of every run."""
    study = read_study(path)
    out = Path("runs/surrogate") / study.name
    arms = arms_of(study, path, variants=planned_variants(study, out / "data"))
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
