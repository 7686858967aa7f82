"""Where a run begins: fresh weights, a branch, or its own newest checkpoint, and what it must then leave as it is."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from data_mixers.errors import ConfigError
from data_mixers.schedule import Schedule
from megatron_synE.checkpoint import layout
from megatron_synE.config.schema import RunConfig
from megatron_synE.exit_codes import CheckpointError, DivergedError
from megatron_synE.mixing import Mixture
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config
from megatron_synE.runtime.control import from_rank_zero
from megatron_synE.runtime.run_dir import RunDir
from megatron_synE.stability import Anomaly

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """What the ranks agreed to begin from."""

    mode: Literal["init", "branch", "resume"]
    folder: Path | None
    """The checkpoint; None when weights come from an HF folder or are random."""
    state: layout.CommonState | None


def find_start(config: RunConfig, run_dir: RunDir, group: dist.ProcessGroup) -> Start:
    """Rank 0 looks, all take its answer: a shared file system may show others an older directory.

    Collective: every rank. Errors: CheckpointError for a damaged or unsuitable checkpoint.
    """
    return from_rank_zero(group, partial(_found, config, run_dir))


def _found(config: RunConfig, run_dir: RunDir) -> Start:
    newest = layout.newest_complete(run_dir.checkpoints, verify_hashes=config.checkpoint.verify_hashes)
    if newest is not None:
        return Start("resume", newest, layout.read_state(newest))
    if damaged := layout.iteration_folders(run_dir.checkpoints):
        raise CheckpointError(
            f"{run_dir.checkpoints}: none of {', '.join(folder.name for folder in damaged)} is whole, and a new"
            " run would begin at its first token; restore one of them, or choose another run.dir"
        )
    if config.init.source == "checkpoint":
        assert config.init.path is not None
        folder = layout.resolve_checkpoint(config.init.path)
        return Start(config.init.mode, folder, layout.read_state(folder))
    return Start("init", None, None)


def checkpoint_before(
    iteration: int, config: RunConfig, run_dir: RunDir, group: dist.ProcessGroup, anomaly: Anomaly
) -> tuple[Path, layout.CommonState]:
    """The newest complete checkpoint of iterations before `iteration`; later ones are withdrawn.

    Collective: every rank. Errors: DivergedError if there is none.
    """

    def found() -> tuple[Path, layout.CommonState]:
        assert run_dir.lease is not None
        folder = layout.newest_complete(
            run_dir.checkpoints, verify_hashes=config.checkpoint.verify_hashes, at_most=iteration - 1
        )
        if folder is None:
            raise DivergedError(
                f"{anomaly}, and {run_dir.checkpoints} holds no checkpoint before iteration {iteration} to go back to; "
                "lower optimizer.lr, or stability.rollback_steps"
            )
        layout.withdraw_after(run_dir.checkpoints, layout.iteration_of(folder), run_dir.lease)
        return folder, layout.read_state(folder)

    return from_rank_zero(group, found)


def mixture_to_follow(from_config: Mixture, start: Start) -> Mixture:
    """The plan of the configuration with the decisions of the checkpoint; what was read must stay what it was.

    Errors: ConfigError if the past differs, or if what was added reads a source too often.
    """
    if start.mode == "branch" and start.state is not None:
        logger.warning(
            "a branch reads its sources from their beginning: the %d tokens that %s consumed may be read again. "
            "One run over all stages goes on reading instead; another run.seed gives another order",
            start.state.consumed_tokens, start.folder,
        )  # fmt: skip
    if start.mode != "resume" or start.state is None or start.state.schedule is None:
        return from_config
    stored = Schedule.from_json(start.state.schedule["json"])
    mixture = from_config.restored(start.state.schedule, where=str(start.folder))
    mixture.check_new_skips(stored.skips)
    followed = mixture.schedule
    if stored.digest() == followed.digest():
        return mixture
    consumed = start.state.consumed_samples
    check_past(stored, followed, consumed_samples=consumed, where=str(start.folder))
    check_grown(mixture, stored)
    logger.info("the future of the schedule was edited; its past (%d samples) is unchanged", consumed)
    return mixture


def check_past(stored: Schedule, followed: Schedule, *, consumed_samples: int, where: str) -> None:
    """What was read must stay what it was. where: of the stored schedule. Errors: ConfigError if it did not."""
    if stored.past_digest(consumed_samples) != followed.past_digest(consumed_samples):
        raise ConfigError(
            f"data, run.seed or training.seq_length changed what the first {consumed_samples} samples of this run are; "
            f"they were read already ({where}). Restore the old values, or start a new run with init.from=checkpoint "
            "and another run.dir; data that only a new stage reads belongs into that stage's own manifests"
        )


def check_grown(mixture: Mixture, stored: Schedule) -> None:
    """Errors: ConfigError for sources that `stored` did not read too often, and a plan that has grown since does.

    The plan by itself is looked at elsewhere (build_schedule); under the decisions taken it may read others.
    """
    if mixture.renormalizes:
        return
    if beyond := mixture.beyond(mixture.schedule, stored):
        listed = ", ".join(f"{name} ({count:,} of {mixture.limits[name]:,} windows)" for name, count in beyond.items())
        raise ConfigError(
            "data.stages: with the decisions taken the plan reads sources more often than data.max_epochs and"
            f" data.exhaustion allow: {listed}; shorten the stage, add data, raise data.max_epochs, or"
            " set data.exhaustion=renormalize"
        )


def check_resumable(config: RunConfig, architecture: LlamaArchitecture, start: Start) -> None:
    """A run goes on with the model and the batch it has; weights of the same shape would hide another RoPE or eps.

    Errors: CheckpointError for another architecture, ConfigError for another global batch size.
    """
    assert start.folder is not None and start.state is not None
    stored = architecture_from_hf(read_hf_config(start.folder), where=str(start.folder / "config.json"))
    for field in dataclasses.fields(architecture):
        was, now = getattr(stored, field.name), getattr(architecture, field.name)
        if was != now:
            raise CheckpointError(
                f"{start.folder} is of another architecture: {field.name} is {was} there, {now} in {config.init.path}; "
                "restore init.path, or start a new run with another run.dir"
            )
    if config.training.fp8 is not None and config.training.fp8_recipe == "delayed":
        logger.warning(
            "training.fp8_recipe=delayed scales by a history that checkpoints do not hold: it begins anew, so the "
            "first steps are rounded otherwise than in a run that was not interrupted; tensorwise has no history"
        )
    batch = config.training.global_batch_size
    if start.state.consumed_samples != start.state.iteration * batch:
        raise ConfigError(
            f"training.global_batch_size={batch} is not what {start.folder} was trained with "
            f"({start.state.consumed_samples} samples in {start.state.iteration} iterations); restore it, or start a "
            "new run with init.from=checkpoint, init.mode=branch and another run.dir"
        )
