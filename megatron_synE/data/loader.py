"""Micro-batches of samples in schedule order, read ahead by worker processes."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from megatron_synE.config.derive import RunPlan
from megatron_synE.config.schema import RunConfig
from megatron_synE.data.batch import sample_indices
from megatron_synE.data.scheduled_dataset import Sample, ScheduledDataset


def micro_batches_of_samples(
    dataset: ScheduledDataset, config: RunConfig, plan: RunPlan, *, consumed_samples: int, data_parallel_rank: int
) -> Iterator[list[Sample]]:
    """Lists of micro_batch_size samples from `consumed_samples` to the end of the run.

    The order is sample_indices' own: DataLoader keeps it for any number of workers.
    """
    indices = sample_indices(
        consumed_samples=consumed_samples,
        total_samples=plan.total_samples,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=plan.data_parallel_size,
    )
    loader: DataLoader[list[Sample]] = DataLoader(
        dataset,  # type: ignore[arg-type]  # a map-style dataset needs __getitem__ alone
        batch_sampler=indices,
        num_workers=config.data.num_workers,
        collate_fn=_as_they_are,
    )
    return iter(loader)


def _as_they_are(samples: list[Sample]) -> list[Sample]:
    return samples
