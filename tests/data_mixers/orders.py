"""The order of data as tests look at it: the addresses of many samples, a permutation of many numbers at once."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_mixers.permutation import _MIX1, _MIX2, Permutation
from data_mixers.sampling import SampleAddress, Sampler
from data_mixers.schedule import Schedule

Numbers = npt.NDArray[np.int64]


def addresses(sampler: Sampler, start: int, stop: int) -> list[SampleAddress]:
    """Of samples start..stop-1."""
    return [sampler.address(sample) for sample in range(start, stop)]


class Columns(NamedTuple):
    """Addresses as arrays."""

    source_index: Numbers
    epoch: Numbers
    shard_index: Numbers
    token_offset: Numbers


def columns(sampler: Sampler, start: int, stop: int) -> Columns:
    """Of samples start..stop-1."""
    rows = [(a.source_index, a.epoch, a.shard_index, a.token_offset) for a in addresses(sampler, start, stop)]
    return Columns(*np.array(rows, dtype=np.int64).T)


def mapped(permutation: Permutation, positions: Numbers) -> Numbers:
    """permutation[position] of each, in numpy's arithmetic modulo 2**64."""
    values = _encrypted(permutation, positions.astype(np.uint64))
    while (outside := values >= permutation.size).any():
        values[outside] = _encrypted(permutation, values[outside])
    return values.astype(np.int64)


def _encrypted(permutation: Permutation, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    half_bits, half_mask = np.uint64(permutation._half_bits), np.uint64(permutation._half_mask)
    left, right = values >> half_bits, values & half_mask
    for key in permutation._keys:
        mixed = right ^ np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MIX1)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MIX2)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & half_mask)
    return (left << half_bits) | right


def index_of(schedule: Schedule, name: str) -> int:
    """Of a source."""
    return [source.name for source in schedule.sources].index(name)
