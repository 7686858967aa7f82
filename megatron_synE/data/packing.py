"""Held-out documents packed whole into rows, so that each one's loss can be read off.

A row holds seq_length (input, target) pairs. A document of n tokens gives n - 1 pairs; a longer one than a row is cut
into windows that overlap by one token, so that each of its pairs is scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_synE.data.scoring_rows import Window, windows_of


@dataclass(frozen=True)
class Row:
    """One packed row of documents, padded at the end."""

    inputs: torch.Tensor
    """[seq_length] int64; 0 in the padding."""
    labels: torch.Tensor
    """[seq_length] int64."""
    documents: torch.Tensor
    """[seq_length] int64: which document each pair belongs to; -1 in the padding."""
    starts: tuple[int, ...]
    """Where segments begin; the padding is a segment of its own."""


def pack(documents: Sequence[np.ndarray], *, seq_length: int) -> list[Row]:
    """All pairs of all documents, each exactly once and in order. A document of one token has no pair.

    Next fit: a row is closed when the next segment does not fit.
    """
    rows: list[list[Window]] = []
    room = 0
    for number, document in enumerate(documents):
        for window in windows_of(number, len(document), seq_length=seq_length, overlap=0):
            if window.num_pairs > room:
                rows.append([])
                room = seq_length
            rows[-1].append(window)
            room -= window.num_pairs
    return [_row(segments, documents, seq_length) for segments in rows]


def padding_row(seq_length: int) -> Row:
    """A row without documents: fills up the last micro-batches so that every rank has as many."""
    return _row([], [], seq_length)


def _row(segments: Sequence[Window], documents: Sequence[np.ndarray], seq_length: int) -> Row:
    inputs, labels = torch.zeros(seq_length, dtype=torch.int64), torch.zeros(seq_length, dtype=torch.int64)
    owners = torch.full((seq_length,), -1, dtype=torch.int64)
    starts: list[int] = []
    at = 0
    for segment in segments:
        tokens = torch.from_numpy(
            documents[segment.document][segment.start : segment.start + segment.num_pairs + 1].astype(np.int64)
        )
        stop = at + segment.num_pairs
        inputs[at:stop], labels[at:stop] = tokens[:-1], tokens[1:]
        owners[at:stop] = segment.document
        starts.append(at)
        at = stop
    if at < seq_length:
        starts.append(at)
    return Row(inputs, labels, owners, tuple(starts))
