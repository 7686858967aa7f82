"""The arms of a study: every combination of levels as overrides of the base run, and each with a seed as a job."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from data_mixers.errors import ConfigError, UserError
from megatron_synE.checkpoint.layout import read_manifest as read_checkpoint_manifest
from megatron_synE.checkpoint.layout import resolve_checkpoint, sha256_of
from megatron_synE.config.examine import examine, manifest_paths
from megatron_synE.config.fault import listed
from megatron_synE.config.load import Tree, load_config, resolved_tree
from megatron_synE.config.schema import RunConfig
from megatron_synE.exit_codes import CheckpointError
from tools.surrogate.recipe import overrides_of
from tools.surrogate.study import Level, Study, shown_level

HASH_LETTERS = 10
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One combination of levels."""

    name: str
    """factor=level,factor=level: what tables and `reference` call it."""
    levels: Mapping[str, Level]
    overrides: tuple[str, ...]
    """Of the base, in order."""
    tokens: int
    """Of a run of it."""
    variant: Path | None = None
    """Token folder of its level of `corruption`, which lies in the study's own."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm with one seed: a run."""

    arm: str
    seed: int
    tokens: int
    config: Tree
    """The whole run but for run.dir."""
    digest: str
    """Hash of all that decides the run."""
    folder: str
    """Name of its folder: the arm, the seed, and a hash of all that decides the run; another run has another one."""


def arms_of(study: Study, path: Path, *, variants: Mapping[Level, Path] | None = None) -> list[Arm]:
    """Every arm in the order of the grid, the last factor fastest.

    variants: token folder of each level of `corruption`; None where they are not made yet.
    Errors: ConfigError naming study file and key for levels that the base cannot take.
    """
    arms, faults = [], []
    for combination in itertools.product(*study.grid.values()):
        levels = dict(zip(study.grid, combination, strict=True))
        name = ",".join(f"{factor}={shown_level(level)}" for factor, level in levels.items())
        try:
            overrides = overrides_of(study, levels, variants or {})
            config = load_config(study.base, overrides).resolved
        except UserError as error:
            faults.append(f"grid ({name}): {error}")
            continue
        tokens = sum(stage.tokens for stage in config.data.stages)
        variant = (variants or {}).get(levels["corruption"]) if "corruption" in levels else None
        arms.append(Arm(name=name, levels=levels, overrides=tuple(overrides), tokens=tokens, variant=variant))
    if not faults:
        names = [arm.name for arm in arms]
        faults = [
            f"reference: {name!r} is no arm; the arms are {', '.join(names)}"
            for name in study.reference
            if name not in names
        ]
    if faults:
        raise ConfigError(listed(faults, where=str(path)))
    return arms


def references(study: Study, arms: Sequence[Arm]) -> list[str]:
    """Names of the arms that others are compared with."""
    return list(study.reference) or [arms[0].name]


def jobs_of(study: Study, arms: Sequence[Arm]) -> list[Job]:
    """Every arm with every seed; those of the pilot first, then seed by seed, so that a part is a smaller study.

    Errors: ConfigError if two arms are the same run: what the levels of one set, another sets again, or the base had.
    """
    jobs = [_job(study, arm, seed) for seed in study.seeds for arm in arms]
    first: dict[tuple[str, Level | None], str] = {}
    for arm, job in zip(arms, jobs, strict=False):  # of the first seed
        # Where its token files are not made yet, `corruption` sets nothing that could be told apart.
        same = first.setdefault((job.digest, arm.levels.get("corruption")), job.arm)
        if same != job.arm:
            raise ConfigError(
                f"{study.name}: grid: the arms {same} and {job.arm} are the same run, so one of them would be counted "
                "twice; leave one out, or see which later factor sets its keys again"
            )
    pilot = {(arm, seed) for arm in pilot_arms(study, arms) for seed in study.seeds[: study.pilot_seeds]}
    return sorted(jobs, key=lambda job: (job.arm, job.seed) not in pilot)


def pilot_arms(study: Study, arms: Sequence[Arm]) -> tuple[str, str]:
    """The first reference and the last other arm: two that any study has."""
    first = references(study, arms)[0]
    others = [arm.name for arm in arms if arm.name != first]
    if not others:
        raise ConfigError(f"{study.name}: grid: a study needs at least two arms; give some factor a second level")
    return first, others[-1]


def check_jobs(study: Study, path: Path, jobs: Sequence[Job], *, world_size: int, reads_data: bool = True) -> None:
    """Errors: one ConfigError with every fault of every run, each said once with the arms that have it."""
    found: dict[str, list[str]] = {}
    held_out: dict[frozenset[str], str] = {}
    for job in jobs:
        if job.seed != study.seeds[0]:
            continue  # a seed changes no fault
        tree = job.config | {"run": job.config["run"] | {"dir": "run"}}
        config: RunConfig = TypeAdapter(RunConfig).validate_json(json.dumps(tree))
        examination = examine(config, world_size=world_size, reads_data=reads_data)
        for fault in examination.faults:
            found.setdefault(str(fault), []).append(job.arm)
        if examination.validation_manifests and not examination.faults:
            names = [s.name for m in examination.validation_manifests for s in m.with_role("validation")]
            for text in unmatched(study, names):
                found.setdefault(text, []).append(job.arm)
            globs = [glob for globs in study.outcome.groups.values() for glob in globs]
            counted = frozenset(name for name in names if any(fnmatchcase(name, glob) for glob in globs))
            held_out.setdefault(counted, job.arm)
        elif not examination.faults and reads_data:
            found.setdefault("validation.manifests: empty; a study measures held-out loss", []).append(job.arm)
    if len(held_out) > 1:
        (first, arm), (other, other_arm) = list(held_out.items())[:2]
        odd = sorted(first ^ other)[0]
        text = f"validation.manifests: {odd} is held out in one of {arm} and {other_arm} only; give all arms the same"
        found[text] = list(dict.fromkeys(job.arm for job in jobs))
    num_arms = len({job.arm for job in jobs})
    faults = [
        fault if len(arms) == num_arms else f"{fault} (in {arms[0]}{f' and {len(arms) - 1} more' if arms[1:] else ''})"
        for fault, arms in found.items()
    ]
    if faults:
        raise ConfigError(listed(faults, where=str(path)))


def unmatched(study: Study, sets: Sequence[str]) -> list[str]:
    """A fault for every glob of outcome.groups that no held-out set answers to."""
    return [
        f"outcome.groups.{group}: no held-out set is named {glob!r}; there are {', '.join(sets)}"
        for group, globs in study.outcome.groups.items()
        for glob in globs
        if not any(fnmatchcase(name, glob) for name in sets)
    ]


def _job(study: Study, arm: Arm, seed: int) -> Job:
    overrides = [*arm.overrides, f"run.seed={seed}", f"run.name={study.name}"]
    config = load_config(study.base, overrides).resolved
    tree = resolved_tree(config)
    del tree["run"]["dir"]
    settings = {key: value for key, value in tree.items() if key != "schema_version"}
    if arm.variant is not None:  # known by its content, wherever the study's folder lies, and however it is written
        manifests = ["corruption" if path == str(arm.variant) else path for path in settings["data"]["manifests"]]
        settings["data"] = settings["data"] | {"manifests": manifests}
    decided = json.dumps([settings, _inputs(config)], sort_keys=True)
    digest = hashlib.sha256(decided.encode()).hexdigest()[:HASH_LETTERS]
    slug = re.sub(r"[^A-Za-z0-9._=-]+", "_", arm.name)
    folder = f"{slug[:80]}-seed{seed}-{digest}"
    return Job(arm=arm.name, seed=seed, tokens=arm.tokens, config=tree, digest=digest, folder=folder)


def _inputs(config: RunConfig) -> list[str]:
    """What identifies the data and the weights of a run beside their paths; what is not there yet is left out."""
    found = []
    for path in (*manifest_paths(config), *config.validation.manifests):
        file = path / "manifest.json" if path.is_dir() else path
        if file.is_file():
            found.append(hashlib.sha256(file.read_bytes()).hexdigest())
    init = config.init.path
    if config.init.source == "checkpoint" and init is not None:
        with suppress(CheckpointError):  # said as a fault of the run
            folder = resolve_checkpoint(init, verify_hashes=False)
            found.append(str(read_checkpoint_manifest(folder).get("lineage_hash")))
    elif config.init.source == "hf" and init is not None and init.is_dir():
        for described in sorted(init.glob("*.json")):
            found.append(hashlib.sha256(described.read_bytes()).hexdigest())
        for file in sorted(file for pattern in WEIGHTS for file in init.glob(pattern)):
            status = file.stat()
            found.append(f"{file.name} {_sha256_at(file, status.st_size, status.st_mtime_ns)}")
    return found


@cache
def _sha256_at(file: Path, size_bytes: int, mtime_ns: int) -> str:
    """Of a file as it was then: other weights may be of the same size. Once for all jobs; a second or so a GB."""
    return sha256_of(file)
