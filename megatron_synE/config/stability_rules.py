"""What a rollback needs: checkpoints, and old enough ones."""

import shutil
from collections.abc import Iterator

from megatron_synE.config.derive import iterations_of
from megatron_synE.config.fault import Fault
from megatron_synE.config.schema import RunConfig


def stability_rules(config: RunConfig) -> Iterator[Fault]:
    """Faults of the sections stability and operations."""
    stability, checkpoint = config.stability, config.checkpoint
    for key in ("on_nan", "on_spike"):
        if getattr(stability, key) != "rollback":
            continue
        interval = iterations_of(
            checkpoint.interval_tokens, config.training.global_batch_size * config.training.seq_length
        )
        if interval is None:
            yield Fault(
                f"stability.{key}",
                "rollback needs checkpoints, but checkpoint.interval_tokens is not set",
                "set it, or use skip",
            )
        elif checkpoint.keep_last is not None and (checkpoint.keep_last - 1) * interval < stability.rollback_steps:
            needed = -(-stability.rollback_steps // interval) + 1
            yield Fault(
                "stability.rollback_steps",
                f"{checkpoint.keep_last} checkpoints, one every {interval} iterations, do not reach"
                f" {stability.rollback_steps} steps back",
                f"set checkpoint.keep_last={needed}, or roll back less far",
            )
            break  # one is enough for both
    command = config.operations.on_event
    if command and shutil.which(command[0]) is None:
        yield Fault("operations.on_event", f"{command[0]} is no program that can be run here", "name one, or remove it")
