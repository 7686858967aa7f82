"""Which tokens draw k of a source reads: epoch, shift, permuted window number, shard and offset.

A shard of n tokens holds W = max(1, (n - seq) // seq) windows of seq + 1 tokens with stride seq: neighbours share one
token, so every token after the first of an epoch is a target once. Each epoch is shifted by less than seq tokens, so
fewer than two windows at head and tail together are not read in it. A packed source (`preprocess
--keep-documents-whole`) is never shifted: its windows hold whole documents.

Every epoch is another keyed permutation of the windows, and nothing is a table.
"""

from bisect import bisect_right
from functools import lru_cache, partial
from itertools import accumulate

from data_mixers.errors import ConfigError
from data_mixers.permutation import Permutation, keyed_hash
from data_mixers.schedule import ScheduledSource


def windows_in_shard(num_tokens: int, *, seq_length: int, is_packed: bool = False) -> int:
    """Windows read per epoch; 0 if the shard does not hold seq_length + 1 tokens.

    is_packed: they hold whole documents and are never shifted, so every one of them is read.
    """
    if is_packed:
        return max(0, num_tokens - 1) // seq_length
    return max(1, (num_tokens - seq_length) // seq_length) if num_tokens > seq_length else 0


class SourceWindows:
    """The windows of one source under one seed."""

    def __init__(self, source: ScheduledSource, *, seed: int, seq_length: int) -> None:
        self._seq_length = seq_length
        self._tokens = [shard.num_tokens for shard in source.shards]
        self._is_packed = source.packed_seq_length is not None
        self._windows = [
            windows_in_shard(tokens, seq_length=seq_length, is_packed=self._is_packed) for tokens in self._tokens
        ]
        self._ends = list(accumulate(self._windows))
        self.windows_per_epoch = self._ends[-1] if self._ends else 0
        if self.windows_per_epoch == 0:
            raise ConfigError(
                f"source {source.name} is too small: its longest shard has {max(self._tokens, default=0)} tokens, "
                f"a window needs seq_length + 1 = {seq_length + 1}; give it more text, merge it into another topic, "
                "or lower training.seq_length"
            )
        self._permutation = lru_cache(maxsize=4)(partial(Permutation, self.windows_per_epoch, seed, source.name))
        self._shift_base = lru_cache(maxsize=2)(partial(keyed_hash, "shift", seed, source.name))

    def address(self, draw: int) -> tuple[int, int, int]:
        """(epoch, shard index, token offset) of the seq_length + 1 tokens of the draw'th window of this source."""
        epoch, position = divmod(draw, self.windows_per_epoch)
        window = self._permutation(epoch)[position]
        shard_index = bisect_right(self._ends, window)
        inside = window - (self._ends[shard_index] - self._windows[shard_index])
        return epoch, shard_index, inside * self._seq_length + self.shift(epoch, shard_index)

    def shift(self, epoch: int, shard_index: int) -> int:
        """Tokens left out at the head of a shard in an epoch; none in epoch 0, and none of a packed source."""
        if epoch == 0 or self._is_packed or self._windows[shard_index] == 0:
            return 0
        spare = self._tokens[shard_index] - 1 - self._windows[shard_index] * self._seq_length
        return self._shift_base(epoch) % (min(self._seq_length - 1, spare) + 1)
