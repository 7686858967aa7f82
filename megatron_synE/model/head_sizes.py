"""How many tokens' logits the head holds at a time: what it computes with, and what the planner counts. No torch."""

from typing import Literal

CHUNK_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}
"""Logits at a time, in the weights' dtype. Each chunk reads and writes the weight's whole gradient, so few are better;
1 << 27 are 1,046 tokens of Llama-3's vocabulary, 268 MB in bf16. Ours."""
PIECE_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Logits of a chunk in fp32 at a time: 1 MB stays in a CPU's cache (docs/performance.md); a GPU's kernels want more to
do. Ours. Not under tensor parallelism, where each piece would be an exchange: there a whole chunk is put into fp32."""


def chunk_tokens(num_tokens: int, *, rows: int, kind: Literal["cpu", "cuda"]) -> int:
    """Tokens of a chunk. rows: of the vocabulary on this rank, padding included.

    Even chunks: a last one of a few tokens would cost a whole pass over the weight and its gradient.
    """
    most = max(1, CHUNK_ELEMENTS[kind] // max(1, rows))
    return -(-num_tokens // max(1, -(-num_tokens // most)))


def piece_tokens(num_tokens: int, *, rows: int, kind: Literal["cpu", "cuda"]) -> int:
    """Tokens of a piece of a chunk of num_tokens, where the head has no group to exchange with."""
    return min(num_tokens, max(1, PIECE_ELEMENTS[kind] // max(1, rows)))
