"""Which tokens of a row one context-parallel rank computes: two chunks, as far from the front as from the back.

A causal row gets dearer towards its end; a chunk and its mirror image together cost every rank the same.

Legend: t tokens of the whole row, cp context-parallel ranks.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ContextPart:
    """Of a row's 2 * size chunks, the rank-th and the rank-th from the end. The row is cut, never a document."""

    rank: int = 0
    size: int = 1

    def chunks(self, total: int) -> tuple[range, ...]:
        """The token numbers of this rank in a row of `total` tokens, in the order in which it holds them."""
        if self.size == 1:
            return (range(total),)
        length, rest = divmod(total, 2 * self.size)
        if rest:
            raise AssertionError(f"a row of {total} tokens cannot be cut into 2 * {self.size} equal chunks")
        starts = (self.rank * length, (2 * self.size - 1 - self.rank) * length)
        return tuple(range(start, start + length) for start in starts)

    def of(self, row: torch.Tensor) -> torch.Tensor:
        """[..., t] -> [..., t / cp]: this rank's tokens."""
        if self.size == 1:
            return row
        return torch.cat([row[..., chunk.start : chunk.stop] for chunk in self.chunks(row.shape[-1])], dim=-1)


WHOLE = ContextPart()
"""Without context parallelism."""
