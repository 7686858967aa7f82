"""Sums and gathers of sharded buffers over gloo, sent straight from rank to rank.

torch's reduce-scatter over gloo copies the whole buffer and sums all of it on every rank; its all-gather copies it as
well. Here each rank is sent what it keeps and nothing else, in pieces, the next of which travels while one is added:
540 MB between two processes of one machine take a third of the time (docs/performance.md).

Legend: n ranks of the group, c elements of a rank's part, w of a piece.
"""

from itertools import chain

import torch
import torch.distributed as dist

from megatron_synE.runtime.mcore import mcore_param_and_grad_buffer

PIECE_BYTES = 1 << 22
"""What a rank receives at a time, from all others together. Measured: 16 MB are as fast, 1 MB takes twice as long."""


def reduce_scatter(
    output: torch.Tensor,
    input: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> dist.Work | None:
    """output [c] = this rank's part of the sum over ranks of input [n * c], of which it may be a view.

    The parts are added in the order of the ranks, whatever the size of the pieces. On CUDA, in the background or for
    another operation than a sum, torch's own. Collective: group.
    """
    if input.is_cuda or async_op or op != dist.ReduceOp.SUM:
        work: dist.Work | None = dist.reduce_scatter_tensor(output, input, op=op, group=group, async_op=async_op)
        return work
    mine, n = dist.get_rank(group), dist.get_world_size(group)
    assert output.dim() == 1 and output.dtype == input.dtype and output.numel() * n == input.numel()
    if n == 1:
        output.copy_(input.view(-1))
        return None
    parts = input.view(n, -1)  # [n, c]
    width = max(1, PIECE_BYTES // (input.element_size() * (n - 1)))
    pieces = [slice(first, first + width) for first in range(0, parts.shape[1], width)]
    rooms = input.new_empty(2, n, min(width, parts.shape[1]))  # one is added while the other fills
    pending: list[list[dist.Work]] = []
    for index in range(len(pieces) + 1):
        if index < len(pieces):
            pending.append(_exchange(parts[:, pieces[index]], rooms[index % 2], group))
        if index > 0:
            piece, room = pieces[index - 1], rooms[(index - 1) % 2]
            for sent in pending[index - 1]:
                sent.wait()
            own, total = parts[mine, piece], output[piece]
            room[mine, : len(own)] = own  # output may be its place, and is written from the first sum on
            torch.add(room[0, : len(own)], room[1, : len(own)], out=total)
            for part in room[2:, : len(own)]:
                total += part
    return None


def _exchange(parts: torch.Tensor, room: torch.Tensor, group: dist.ProcessGroup | None) -> list[dist.Work]:
    """Send part i of [n, w] to rank i and take its part for this rank into room[i]; what to wait for."""
    mine, n = dist.get_rank(group), len(parts)
    works = (
        (
            dist.irecv(room[(mine - step) % n, : parts.shape[1]], group=group, group_src=(mine - step) % n),
            dist.isend(parts[(mine + step) % n], group=group, group_dst=(mine + step) % n),
        )
        for step in range(1, n)
    )
    return [work for work in chain.from_iterable(works) if work is not None]


def all_gather(
    output: torch.Tensor, input: torch.Tensor, group: dist.ProcessGroup | None = None, async_op: bool = False
) -> dist.Work | None:
    """output [n * c] = input [c] of every rank, in their order; input may be its place in output.

    On CUDA or in the background torch's own. Collective: group.
    """
    if input.is_cuda or async_op:
        gathering: dist.Work | None = dist.all_gather_into_tensor(output, input, group=group, async_op=async_op)
        return gathering
    mine, n = dist.get_rank(group), dist.get_world_size(group)
    assert output.dtype == input.dtype and output.numel() == input.numel() * n
    parts = output.view(n, -1)  # [n, c]
    if parts[mine].data_ptr() != input.data_ptr():
        parts[mine].copy_(input.view(-1))
    for work in _exchange(parts[mine].expand(n, -1), parts, group):
        work.wait()
    return None


def install() -> None:
    """Make megatron-core's gradient buffers use these."""
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        assert hasattr(mcore_param_and_grad_buffer, name), f"this megatron-core calls {name} otherwise"
    mcore_param_and_grad_buffer.dist_reduce_scatter_func = reduce_scatter
    mcore_param_and_grad_buffer.dist_all_gather_func = all_gather
