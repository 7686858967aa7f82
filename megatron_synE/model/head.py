"""Output layer and cross-entropy in one: NLL per token and both gradients chunk by chunk, [t, v] logits never whole.

For each chunk of tokens:  hidden ─ product ─> logits ─ softmax by pieces ─> NLL, and in place the logits' gradient
                           ─ two products ─> gradient of hidden, and its share of the weight's gradient

Gradients are computed in the forward pass, while a chunk's logits are there: three products a token as in the plain
layer, where computing the logits again in the backward pass would take four. What the backward pass alone knows is the
gradient of the loss with respect to each token's NLL. Here it is the loss mask times one number, so the mask is given
to the forward pass and multiplied into the NLL, and the backward pass scales by that number. For any other gradient it
computes everything again, which is right but slower.

Under tensor parallelism each rank holds rows of the vocabulary: per chunk the ranks exchange their log-sum-exp and the
label's logit, in one collective, so there the softmax takes a chunk as a whole. Padded rows are never multiplied.

Legend: t tokens, h hidden, v vocabulary rows on this TP rank without padding, c tokens of a chunk, p of a piece.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist

from megatron_synE.model.head_sizes import chunk_tokens, piece_tokens
from megatron_synE.runtime.mcore import ColumnParallelLinear, tensor_parallel


@dataclass(frozen=True)
class VocabularyPart:
    """Which rows of the vocabulary this rank holds, and with whom it shares the rest."""

    first: int
    num_rows: int
    """Without padding; may be 0 on the last ranks of a small vocabulary."""
    group: dist.ProcessGroup | None = None
    """None: this rank has all of them."""


def vocabulary_part(num_rows: int, *, vocab_size: int, group: dist.ProcessGroup | None = None) -> VocabularyPart:
    """The part of a rank whose weight has num_rows rows, padding included."""
    alone = group is None or group.size() == 1
    first = 0 if group is None else group.rank() * num_rows
    return VocabularyPart(first, min(max(vocab_size - first, 0), num_rows), None if alone else group)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    part: VocabularyPart,
    *,
    token_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """NLL of each label under softmax(hidden @ weight.T), times its token's weight: [t] fp32.

    hidden [t, h], the same on every rank of the part's group; weight [≥ v, h]; labels [t] int64; token_weights [t].
    A label outside the vocabulary gives an infinite NLL; one of weight 0 gives 0 whatever it is (-100, for one).
    The gradient of hidden is this rank's share only: the caller sums it over the group. Memory: one chunk of logits in
    the weights' dtype, and in fp32 one piece of it, under tensor parallelism all of it; with gradients also theirs,
    from now to the backward pass.

    Collective: the part's group.
    """
    if token_weights is not None:
        token_weights = token_weights.detach().float()
    if not torch.is_grad_enabled():  # inside a Function it always looks disabled
        return _computed(hidden, weight, labels, token_weights, part, (False, False)).nll
    apply: Any = _LinearCrossEntropy.apply
    result: torch.Tensor = apply(hidden, weight, labels, token_weights, part)
    return result


class OutputLayer(ColumnParallelLinear):
    """megatron-core's output layer, which gives the loss where labels are given.

    One module for both, so that what hangs on its calls, such as gathering its sharded weight, still happens.
    """

    vocab_size: int

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> Any:
        """input_ [t, 1, h], under sequence parallelism this rank's part of it; labels and token_weights [1, t].

        With labels NLL [1, t] in fp32, times the weights; else logits and bias, as megatron-core gives them.
        """
        if labels is None:
            return super().forward(input_, weight, runtime_gather_output)
        weight = self.weight if weight is None else weight
        part = vocabulary_part(weight.shape[0], vocab_size=self.vocab_size, group=self.tp_group)
        if self.sequence_parallel:
            input_ = tensor_parallel.gather_from_sequence_parallel_region(input_, group=self.tp_group)  # [t, 1, h]
        elif part.group is not None:
            input_ = tensor_parallel.copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        token_weights = None if token_weights is None else token_weights.squeeze(0)  # [t]
        nll = linear_cross_entropy(
            input_.squeeze(1), weight, labels.squeeze(0), part, token_weights=token_weights
        )  # [t]
        return nll.unsqueeze(0)  # [1, t]


@dataclass
class _Result:
    nll: torch.Tensor
    """[t] fp32, times the tokens' weights."""
    d_hidden: torch.Tensor | None = None
    d_weight: torch.Tensor | None = None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        token_weights: torch.Tensor | None,
        part: VocabularyPart,
    ) -> torch.Tensor:
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        result = _computed(hidden, weight, labels, token_weights, part, wanted)
        ctx.save_for_backward(hidden, weight, labels, token_weights)
        ctx.part, ctx.wanted = part, wanted
        ctx.result = replace(result, nll=result.nll.new_empty(0))
        return result.nll

    @staticmethod
    def backward(ctx: Any, d_nll: torch.Tensor) -> Any:
        result, ctx.result = ctx.result, None
        if result is not None and _is_one_number(d_nll):
            scale = d_nll[0]
            gradients = (_scaled(result.d_hidden, scale), _scaled(result.d_weight, scale))
        else:
            del result
            hidden, weight, labels, token_weights = ctx.saved_tensors
            token_weights = d_nll.float() if token_weights is None else token_weights * d_nll
            again = _computed(hidden, weight, labels, token_weights, ctx.part, ctx.wanted)
            gradients = (again.d_hidden, again.d_weight)
        return (*gradients, None, None, None)


def _is_one_number(d_nll: torch.Tensor) -> bool:
    """Whether every token has the same gradient by construction, as behind a sum: known without asking the device."""
    return len(d_nll) > 0 and (d_nll.stride(0) == 0 or len(d_nll) == 1)


def _scaled(gradient: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient.mul_(scale)


def _computed(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor | None,
    part: VocabularyPart,
    wanted: tuple[bool, bool],
) -> _Result:
    """The whole computation; wanted: gradients of hidden and of weight, for d_nll = 1."""
    rows = weight.detach()[: part.num_rows]  # [v, h]
    # By the rows with padding, which are as many on every rank: each chunk is an exchange.
    tokens = chunk_tokens(len(hidden), rows=len(weight), kind=_kind(hidden))
    result = _Result(torch.empty(len(hidden), dtype=torch.float32, device=hidden.device))
    if wanted[0]:
        result.d_hidden = torch.empty_like(hidden)
    if wanted[1]:
        result.d_weight = torch.empty_like(weight)
        result.d_weight[part.num_rows :] = 0
        if not len(hidden):
            result.d_weight.zero_()
    room = hidden.new_empty(min(tokens, len(hidden)), part.num_rows)  # [c, v], for every chunk in turn
    for start in range(0, len(hidden), max(1, tokens)):
        here = slice(start, start + tokens)
        chunk = hidden.detach()[here]  # [c, h]
        logits = torch.mm(chunk, rows.t(), out=room[: len(chunk)])
        weights = None if token_weights is None else token_weights[here]
        result.nll[here] = _loss_and_gradient(logits, labels[here], weights, part, in_place=any(wanted))
        if result.d_hidden is not None:
            torch.mm(logits, rows, out=result.d_hidden[here])
        if result.d_weight is not None:
            result.d_weight[: part.num_rows].addmm_(logits.t(), chunk, beta=float(start > 0))
    return result


def _loss_and_gradient(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, part: VocabularyPart, *, in_place: bool
) -> torch.Tensor:
    """NLL [c] of a chunk in fp32, times the weights; in_place: its gradient replaces the logits [c, v].

    Collective: the part's group.
    """
    step = len(logits)
    if part.group is None:  # else one exchange a chunk
        step = piece_tokens(len(logits), rows=part.num_rows, kind=_kind(logits))
    parts = [
        _piece(logits[i : i + step], labels[i : i + step], None if weights is None else weights[i : i + step], part,
               in_place=in_place)
        for i in range(0, len(logits), step)
    ]  # fmt: skip
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _piece(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, part: VocabularyPart, *, in_place: bool
) -> torch.Tensor:
    """The same for rows that are put into fp32 at once, with a group all of a chunk: logits [p, v] -> NLL [p]."""
    mine = labels - part.first
    is_mine = (mine >= 0) & (mine < part.num_rows)
    mine = mine.clamp(0, max(0, part.num_rows - 1)).unsqueeze(1)  # [p, 1]
    if part.num_rows:
        # torch's softmax is one fused kernel; its largest value gives the log-sum-exp back, to 1e-7 as it is ≥ 1 / v.
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)  # [p, v], of this rank's rows alone
        log_sum = logits.amax(dim=-1).float() - probabilities.amax(dim=-1).log()  # [p]
        # A CPU's keeps a running sum for each lane of a vector, and drops, in the lane of the largest term, what is
        # below half that one's last bit: of a long tail an eighth (AVX2). torch.sum, a tree, tells how much.
        sums = None if probabilities.is_cuda else probabilities.sum(dim=-1)  # [p], one and what was dropped
        log_sum = log_sum if sums is None else log_sum + sums.log()
        label_logit = torch.where(is_mine, logits.gather(1, mine).squeeze(1).float(), -torch.inf)  # [p]
    else:
        sums = None
        log_sum = logits.new_full((len(logits),), -torch.inf, dtype=torch.float32)
        label_logit = log_sum
    whole = log_sum
    if part.group is not None:
        both = torch.stack((log_sum, label_logit))  # [2, p]
        all_ranks = both.new_empty(2 * part.group.size(), both.shape[1])  # [TP * 2, p]
        dist.all_gather_into_tensor(all_ranks, both, group=part.group)
        whole, label_logit = all_ranks[::2].logsumexp(dim=0), all_ranks[1::2].amax(dim=0)  # [p], [p]
    nll = whole - label_logit
    if in_place and part.num_rows:
        share = (log_sum - whole).exp()  # of this rank's rows in the sum; 1 where it has them all
        share = share if sums is None else share / sums
        factor = (share if weights is None else share * weights).unsqueeze(1)  # [p, 1]
        # Apart and in fp32: where the label is nearly sure, p - 1 of a p rounded to bf16 would be nothing or double.
        at_label = probabilities.gather(1, mine) * factor
        at_label -= torch.where(is_mine, 1.0 if weights is None else weights, 0.0).unsqueeze(1)
        torch.mul(probabilities, factor, out=logits)
        logits.scatter_(1, mine, at_label.to(logits.dtype))
    return nll if weights is None else torch.where(weights == 0, 0.0, nll * weights)


def _kind(tensor: torch.Tensor) -> Literal["cpu", "cuda"]:
    return "cuda" if tensor.is_cuda else "cpu"
