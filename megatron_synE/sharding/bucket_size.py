"""How many gradients one collective sums under ZeRO stages 2 and 3. No torch: the planner asks too."""

SMALLEST_BUCKET = 40_000_000
ELEMENTS_PER_RANK = 1_000_000
LARGEST_BUCKET = 160_000_000
"""Elements. The first two are megatron-core's own: 160 MB of fp32 are long enough for NCCL to reach its bandwidth and
short enough to begin early in the backward pass; at many ranks each one's share stays 4 MB, below which latency counts.
The last is ours: here a bucket is memory that stage 1 would have anyway, and three of them are alive at once."""


def default_bucket_size(ranks: int) -> int:
    """The most elements that one collective sums over `ranks` ranks."""
    return min(max(SMALLEST_BUCKET, ELEMENTS_PER_RANK * ranks), LARGEST_BUCKET)
