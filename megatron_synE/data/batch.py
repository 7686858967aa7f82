"""Samples to one packed micro-batch on the device.

Legend: t tokens of the row = number of samples * seq_length; cp context-parallel ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_synE.data.scheduled_dataset import Sample
from megatron_synE.model.context_part import WHOLE, ContextPart
from megatron_synE.model.packed_row import PackedRow, moved, packed_row


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads."""

    input_ids: torch.Tensor
    """[1, t / cp] int64."""
    labels: torch.Tensor
    """[1, t / cp] int64: the next token of each position."""
    loss_mask: torch.Tensor
    """[1, t / cp] fp32: 1 where the label counts."""
    row: PackedRow


def collate(
    samples: Sequence[Sample],
    *,
    document_masking: bool,
    eod_mask_loss: bool,
    eos_id: int,
    device: torch.device,
    part: ContextPart = WHOLE,
) -> MicroBatch:
    """Samples of seq_length + 1 tokens, end to end in one row, of which the rank keeps its part.

    Without document masking each sample is one segment, so that attention still never crosses samples.
    EOS after EOS never counts: it fills up windows of whole documents, and else there is no empty document.
    """
    seq_length = len(samples[0].tokens) - 1
    tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))  # [samples, seq_length + 1]
    inputs = tokens[:, :-1].reshape(1, -1)  # [1, t]
    labels = tokens[:, 1:].reshape(1, -1)  # [1, t]
    mask = torch.ones_like(inputs, dtype=torch.float32)
    mask[(inputs == eos_id) & (labels == eos_id)] = 0.0
    if eod_mask_loss:
        mask[inputs == eos_id] = 0.0
    bounds: list[int] = []
    for index, sample in enumerate(samples):
        starts = sample.document_starts if document_masking else (0,)
        bounds.extend(index * seq_length + int(start) for start in starts)
    bounds.append(len(samples) * seq_length)
    return micro_batch(inputs, labels, mask, tuple(bounds), device=device, part=part)


def micro_batch(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    bounds: tuple[int, ...],
    *,
    device: torch.device,
    part: ContextPart = WHOLE,
) -> MicroBatch:
    """Move this rank's part of a row to the device. bounds: segment borders of the whole row, 0 first and t last."""
    # A power of two: few distinct shapes, and attention on a GPU launches blocks over empty segments too.
    max_segments = 1 << (len(bounds) - 2).bit_length()
    return MicroBatch(
        input_ids=moved(part.of(inputs), device),
        labels=moved(part.of(labels), device),
        loss_mask=moved(part.of(mask), device),
        row=packed_row(bounds, max_segments=max_segments, device=device, part=part),
    )


def sample_indices(
    *,
    consumed_samples: int,
    total_samples: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
) -> Iterator[list[int]]:
    """Sample numbers of each micro-batch of this rank, in order.

    The set of samples of an iteration depends on consumed_samples alone, never on the layout.
    """
    for first in range(consumed_samples, total_samples, global_batch_size):
        for start in range(
            data_parallel_rank * micro_batch_size, global_batch_size, micro_batch_size * data_parallel_size
        ):
            yield list(range(first + start, first + start + micro_batch_size))
