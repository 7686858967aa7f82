"""One of two ranks that share a vocabulary: loss and gradients against float64 on the whole, argv = vocabulary size."""

import sys

import torch
import torch.distributed as dist

from megatron_synE.model import head_sizes
from megatron_synE.model.head import linear_cross_entropy, vocabulary_part

TOKENS, HIDDEN, ROWS = 13, 8, 24


def main(vocab_size: int) -> None:
    """Fails by an assertion."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    head_sizes.CHUNK_ELEMENTS["cpu"] = 5 * ROWS  # chunks of at most 5 tokens
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, HIDDEN), torch.randn(2 * ROWS, HIDDEN)
    labels, mask = torch.randint(0, vocab_size, (TOKENS,)), (torch.rand(TOKENS) > 0.3).float()
    assert (labels >= ROWS).any() or vocab_size <= ROWS

    mine = weight[rank * ROWS : (rank + 1) * ROWS].clone().requires_grad_()
    shared = hidden.clone().requires_grad_()
    part = vocabulary_part(ROWS, vocab_size=vocab_size, group=dist.group.WORLD)
    nll = linear_cross_entropy(shared, mine, labels, part, token_weights=mask)
    (3 * nll.sum()).backward()
    dist.all_reduce(shared.grad)

    h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(h @ w[:vocab_size].t(), labels, reduction="none") * mask
    (3 * expected.sum()).backward()
    # fp32 sums of 8 and of 48 terms of order one.
    torch.testing.assert_close(nll.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared.grad.double(), h.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.grad.double(), w.grad[rank * ROWS : (rank + 1) * ROWS], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(shared, mine, labels, part, token_weights=mask), nll)
        labels[3], mask[3] = vocab_size, 1.0  # in nobody's part of the vocabulary
        found = linear_cross_entropy(shared, mine, labels, part, token_weights=mask)
        assert found.isinf().nonzero().flatten().tolist() == [3]
    dist.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]))
