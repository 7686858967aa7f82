"""One rank of a run with something wrong in it: argv = what, config, overrides.

nan:SAMPLES, spike:SAMPLE   the data of these samples (a,b) of the planned schedule gives a loss that is NaN, or much
                            too high, wherever in the run it is read
stopped-nan:SAMPLES         the same as nan, and in the step that meets the first of them the run is asked to stop
late-nan:SAMPLES            the same as nan, while what is being saved takes a second longer
late-data:SAMPLE            the rank that reads this sample finds it damaged, while what is being saved takes as long
late-full:SAMPLES           as late-nan, and the disk is full by then
weight:ITERATION            after this iteration a weight of rank 1 becomes NaN, once; under ZeRO stage 3 in its part
flip:ITERATION              in the step after this iteration rank 1 computes a too high loss, the first time it is asked
slow                        rank 1 computes every micro-batch twenty times more
late                        rank 1 gets every micro-batch after five hundred more
"""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_mixers.errors import DataError
from megatron_synE.exit_codes import OneRankError
from megatron_synE.runtime.environment import hide_cuda

hide_cuda()

import megatron_synE.checkpoint.save as saves  # noqa: E402
import megatron_synE.trainer as trainers  # noqa: E402
from megatron_synE.data.scheduled_dataset import ScheduledDataset  # noqa: E402
from megatron_synE.train import end_as_one_rank  # noqa: E402
from megatron_synE.trainer import Trainer  # noqa: E402

what, _, argument = sys.argv[1].partition(":")
collate, forward_backward, begin_agreement = Trainer.collate, Trainer._forward_backward, Trainer._begin_agreement
loss = trainers._loss
save_chunks = saves.save_chunks
marked: Any = None
marked_batches: list[Any] = []
sprung = False


def with_bad_sample(self: Trainer, samples: Any) -> Any:
    """Recognised by its tokens, not by its number."""
    global marked
    if marked is None:
        planned = ScheduledDataset(self.mixture.schedule, MANIFESTS)
        marked = [planned[int(number)].tokens for number in argument.split(",")]
    batch = collate(self, samples)
    for sample in samples:
        if any((sample.tokens == tokens).all() for tokens in marked):
            if what == "late-data":
                raise OneRankError(DataError("a sample is damaged"))
            marked_batches.append(batch)
    return batch


def slowly_saved(*arguments: Any, **named: Any) -> Any:
    time.sleep(1.0)
    if what == "late-full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return save_chunks(*arguments, **named)


def bad_loss(batch: Any, nll: torch.Tensor) -> Any:
    is_marked = any(batch is found for found in marked_batches)
    return loss(batch, nll * (float("nan") if what != "spike" else 8.0) if is_marked else nll)


def with_bad_weight(self: Trainer, batches: Any) -> Any:
    global sprung
    if self.progress.iteration == int(argument) and not sprung and dist.get_rank() == 1:
        sprung = True
        with torch.no_grad():
            parameter = list(self.model.chunks[0].parameters())[-1]
            bucket = self.model.buckets.get(parameter)
            (parameter.view(-1) if bucket is None else bucket.own_weights(parameter))[3] = float("nan")
    return forward_backward(self, batches)


def with_bit_flip(self: Trainer, batches: Any) -> Any:
    global sprung
    losses = forward_backward(self, batches)
    if self.progress.iteration == int(argument) and not sprung and dist.get_rank() == 1:
        sprung = True
        losses[0][0] *= 8
    return losses


def slowly(self: Trainer, batches: Any) -> Any:
    if dist.get_rank() == 1:
        for _ in range(20):
            with torch.no_grad():
                for batch in batches:
                    self.model.ddp[0](batch.input_ids, None, None, labels=batch.labels, packed_seq_params=batch.row)
    return forward_backward(self, batches)


def lately(self: Trainer, samples: Any) -> Any:
    for _ in range(500 if dist.get_rank() == 1 else 0):
        collate(self, samples)
    return collate(self, samples)


def asked_to_stop(self: Trainer) -> None:
    bad = int(argument.split(",")[0]) // self.config.training.global_batch_size
    if self.progress.iteration == bad:
        self.stop_request.received = "SIGTERM"
    begin_agreement(self)


if what == "stopped-nan":
    Trainer._begin_agreement = asked_to_stop  # type: ignore[method-assign]
if what.startswith("late-"):
    saves.save_chunks = slowly_saved
if what in ("nan", "spike", "stopped-nan", "late-nan", "late-data", "late-full"):
    from data_mixers.manifest import read_manifest

    MANIFESTS = [read_manifest(Path(sys.argv[2]).parent / "train")]
    trainers._loss = bad_loss
if what in ("nan", "spike", "stopped-nan", "late-nan", "late-data", "late-full", "late"):
    # the real trainer with one fault
    Trainer.collate = lately if what == "late" else with_bad_sample  # type: ignore[method-assign]
else:
    Trainer._forward_backward = {  # type: ignore[method-assign]
        "weight": with_bad_weight,
        "flip": with_bit_flip,
        "slow": slowly,
    }[what]
end_as_one_rank(Path(sys.argv[2]), sys.argv[3:])
