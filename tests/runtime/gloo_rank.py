"""One rank of argv[1]: sums and gathers sent from rank to rank against those added up by hand."""

import sys

import torch
import torch.distributed as dist

from megatron_synE.runtime import gloo


def drawn(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Magnitudes far apart, so that the order of a sum shows."""
    generator = torch.Generator().manual_seed(rank)
    exponents = torch.randint(-6, 7, (numel,), generator=generator)
    return (torch.randn(numel, generator=generator) * 2.0**exponents).to(dtype)


def main() -> None:
    """Fails by an assertion."""
    dist.init_process_group("gloo")
    everyone = dist.get_world_size()
    # A group whose ranks are not the world's: all but the first, in another place of their own order.
    groups = [None] if everyone < 3 else [None, dist.new_group(list(range(1, everyone)))]
    for group in groups:
        if group is not None and dist.get_rank() == 0:
            continue
        rank, n = dist.get_rank(group), dist.get_world_size(group)
        members = list(range(n)) if group is None else list(range(1, everyone))
        for part, piece in ((1, 64), (37, 64), (16, 64), (1000, 1 << 20)):
            gloo.PIECE_BYTES = piece
            for dtype in (torch.float32, torch.bfloat16):
                inputs = [drawn(member, n * part, dtype) for member in members]
                expected = inputs[0].clone()
                for other in inputs[1:]:
                    expected += other  # in the order of ranks, in the dtype itself
                whole = inputs[rank].clone()
                here = slice(rank * part, (rank + 1) * part)
                apart = torch.empty(part, dtype=dtype)
                gloo.reduce_scatter(apart, whole, group=group)
                assert torch.equal(whole, inputs[rank]), "what was sent stays"
                gloo.reduce_scatter(whole[here], whole, group=group)  # as megatron-core does: into its own place
                assert torch.equal(apart, expected[here]) and torch.equal(whole[here], expected[here])
                for in_place in (True, False):
                    gathered = torch.zeros(n * part, dtype=dtype)
                    if in_place:
                        gathered[here] = apart
                    gloo.all_gather(gathered, gathered[here] if in_place else apart, group=group)
                    assert torch.equal(gathered, expected)
        nothing = torch.empty(0)
        gloo.reduce_scatter(nothing, torch.empty(0), group=group)
    mean = torch.full((everyone * 2,), 3.0)
    work = gloo.reduce_scatter(mean[:2].clone(), mean, async_op=True)
    assert work is not None, "in the background it is torch's"
    work.wait()
    dist.barrier()


if __name__ == "__main__":
    assert int(sys.argv[1]) > 0
    main()
