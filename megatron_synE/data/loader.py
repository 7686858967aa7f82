"""Micro-batches of samples in schedule order, read ahead by worker processes."""

import os
from collections.abc import Iterator

from torch.utils.data import DataLoader

from data_mixers.errors import UserError
from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.batch import sample_indices
from megatron_synE.data.scheduled_dataset import Sample, ScheduledDataset
from megatron_synE.exit_codes import OneRankError


def micro_batches_of_samples(
    dataset: ScheduledDataset, config: RunConfig, plan: RunPlan, *, consumed_samples: int, data_parallel_rank: int
) -> Iterator[list[Sample]]:
    """Lists of micro_batch_size samples from `consumed_samples` to the end of the run.

    The order is sample_indices' own: DataLoader keeps it for any number of workers.
    Errors: OneRankError for what ScheduledDataset finds wrong with a file.
    """
    indices = sample_indices(
        consumed_samples=consumed_samples,
        total_samples=plan.total_samples,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=plan.data_parallel_size,
    )
    loader: DataLoader[list[Sample | UserError]] = DataLoader(
        _WithFaults(dataset),  # type: ignore[arg-type]  # a map-style dataset needs __getitem__ alone
        batch_sampler=indices,
        num_workers=config.data.num_workers,
        collate_fn=list,
        worker_init_fn=_leave_the_process_group,
    )
    return _raised(iter(loader))


class _WithFaults:
    """The dataset with faults as values: DataLoader would carry an exception over as a traceback inside its message."""

    def __init__(self, dataset: ScheduledDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, sample: int) -> Sample | UserError:
        try:
            return self._dataset[sample]
        except UserError as error:
            return error


def _raised(batches: Iterator[list[Sample | UserError]]) -> Iterator[list[Sample]]:
    for batch in batches:
        samples: list[Sample] = []
        for item in batch:
            if isinstance(item, UserError):
                raise OneRankError(item)
            samples.append(item)
        yield samples


def _leave_the_process_group(_: int) -> None:
    """`timeout`, Ctrl-C and some schedulers signal whole groups: a reader that died of it would end the run unsaved.

    The signals cannot be ignored instead: at its exit the rank ends readers by TERM, and waits for them.
    """
    os.setpgrp()
