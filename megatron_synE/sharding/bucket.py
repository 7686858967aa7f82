"""A bucket: weights whose gradients are summed, and whose values are gathered, by one collective.

    flat range of the bucket      | weight | weight | ... | padding |     numel elements, equal on every rank
    the part of rank r            [r * numel / D, (r + 1) * numel / D)    D data-parallel ranks

The layout is that of megatron-core's own buckets (param_and_grad_buffer.py), so its distributed optimizer finds its
ranges here as it does there; what differs is that only this rank's part of the gradients outlives a backward pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import lcm

import torch
import torch.distributed as dist

from megatron_synE.runtime import gloo

PARAMETER_ALIGNMENT = 64
BUCKET_ALIGNMENT = 128
"""Elements; both are megatron-core's: 128-byte aligned weights for cuBLAS, 256-byte aligned buckets."""


def cut(parameters: Iterable[torch.nn.Parameter], *, bucket_size: int) -> list[list[torch.nn.Parameter]]:
    """Parameters in backward order, in groups of at most `bucket_size` elements; a larger parameter stands alone.

    So does the embedding that two pipeline stages share: only then does it lie alike on both, so that the sum over the
    two stages meets the same range.
    """
    groups: list[list[torch.nn.Parameter]] = []
    room = 0
    for parameter in reversed(list(parameters)):
        is_shared = getattr(parameter, "shared_embedding", False)
        if is_shared or not groups or parameter.numel() > room:
            groups.append([])
            room = bucket_size
        groups[-1].append(parameter)
        room = 0 if is_shared else room - parameter.numel()
    return groups


@dataclass(frozen=True)
class Reduction:
    """A sum over ranks under way."""

    work: dist.Work | None
    whole: torch.Tensor
    """What is summed; kept until the collective has read it."""
    part: torch.Tensor
    """Of `whole`: where the sum for this rank arrives."""
    gradients: torch.Tensor
    """Where it is to be added."""

    def finish(self) -> None:
        """On CUDA the stream waits, not the host."""
        if self.work is not None:
            self.work.wait()
        self.gradients.add_(self.part)


class Bucket:
    """Some weights of this rank's model, cut over `group`.

    The names of megatron-core's optimizer: params_list, params, offset, numel_unpadded, grad_data, bucket_id.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        *,
        bucket_id: int,
        offset: int,
        group: dist.ProcessGroup,
        reduce_dtype: torch.dtype,
        bucket_size: int,
        keeps_weights: bool,
    ) -> None:
        """Moves the weights into the bucket's own memory; keeps_weights False (stage 3) leaves this rank's part alone.

        offset: of this bucket among all of its model chunk, in elements. bucket_size: the most that are summed at once.
        """
        self.params_list, self.params = list(parameters), set(parameters)
        self.bucket_id, self.offset = bucket_id, offset
        self.group, self.reduce_dtype, self.keeps_weights = group, reduce_dtype, keeps_weights
        self.bucket_size = bucket_size
        self._is_sliced = len(self.params) == 1 and parameters[0].numel() > bucket_size
        self.places: dict[torch.nn.Parameter, tuple[int, int]] = {}
        """Where each weight lies in the bucket: [start, stop)."""
        end = 0
        for parameter in parameters:
            start = _aligned(end, PARAMETER_ALIGNMENT)
            end = start + parameter.numel()
            self.places[parameter] = (start, end)
        self.numel_unpadded = end
        self.numel = _aligned(end, lcm(group.size(), BUCKET_ALIGNMENT))
        self.grad_data = torch.empty(self.numel, dtype=torch.float32, device="meta")
        """Nothing but a size: what megatron-core's optimizer asks of it."""
        self.start = group.rank() * (self.numel // group.size())
        self.stop = self.start + self.numel // group.size()
        first = parameters[0]
        self.weights = torch.zeros(self.numel, dtype=first.dtype, device=first.device)
        """[numel], every rank's parts; under stage 3 without memory but where is_whole."""
        self._move_in()
        own = self.weights[self.start : self.stop]
        self.part = own if keeps_weights else own.clone()
        """[numel / D] the weights of this rank: what the optimizer writes and a checkpoint holds."""
        self.gradients = torch.zeros(self.stop - self.start, dtype=torch.float32, device=first.device)
        """[numel / D] summed over ranks and over the micro-batches so far."""
        self.is_whole = True
        self._gathering: dist.Work | None = None
        self._is_gathering = False
        self._unsummed: torch.Tensor | None = None
        self._arrived: set[torch.nn.Parameter] = set()
        self._name_gradients()

    def _move_in(self) -> None:
        with torch.no_grad():
            for parameter, (start, stop) in self.places.items():
                place = self.weights[start:stop].view(parameter.shape)
                place.copy_(parameter.data)
                parameter.data = place

    def _name_gradients(self) -> None:
        """main_grad is where megatron-core's finalize_model_grads looks for gradients to sum over TP ranks or stages.

        Here it is this rank's range of them alone, possibly empty: ranks of one data-parallel index have the same.
        """
        for parameter in self.params_list:
            parameter.main_grad = self.own_gradients(parameter)  # type: ignore[attr-defined]

    def own_range(self, parameter: torch.nn.Parameter) -> tuple[int, int]:
        """[start, stop) of the flattened parameter that lie in this rank's part; empty where start >= stop."""
        first, last = self.places[parameter]
        return max(self.start - first, 0), min(self.stop, last) - first

    def own_weights(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The view of `part` that holds own_range of the parameter."""
        return self._own(self.part, parameter)

    def own_gradients(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The view of `gradients` that holds own_range of the parameter."""
        return self._own(self.gradients, parameter)

    def _own(self, part: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        first, last = self.places[parameter]
        start = min(max(first - self.start, 0), part.numel())
        return part[start : max(min(last - self.start, part.numel()), start)]

    def start_gather(self, *, in_background: bool) -> None:
        """Begin to fill `weights` from all ranks' parts, unless they are whole or on their way. Collective: group."""
        if self.is_whole or self._is_gathering:
            return
        if not self.keeps_weights:
            self.weights.untyped_storage().resize_(self.weights.numel() * self.weights.element_size())
        # The parameters are views made through .data: their version counters, which autograd checks, do not see this.
        self._gathering = gloo.all_gather(self.weights, self.part, group=self.group, async_op=in_background)
        self._is_gathering = True

    def finish_gather(self) -> None:
        """Make the weights readable for what this stream runs from here on."""
        if self._gathering is not None:
            self._gathering.wait()
            self._gathering = None
        if self._is_gathering:
            self._is_gathering, self.is_whole = False, True

    def let_go(self) -> None:
        """Give back the memory of the whole weights (stage 3); their tensors stay, for autograd holds them."""
        if not self.keeps_weights and self.is_whole:
            self.is_whole = False
            self.weights.untyped_storage().resize_(0)

    def go_stale(self) -> None:
        """The optimizer wrote to `part`: other ranks' parts of `weights` are those of the step before."""
        self.finish_gather()
        if self.keeps_weights:
            self.is_whole = False
        else:
            self.let_go()

    def take(self, parameter: torch.nn.Parameter) -> bool:
        """Take a gradient that the backward pass has left in .grad; True when the bucket has one of every parameter."""
        assert parameter.grad is not None
        if not self._is_sliced:
            if self._unsummed is None:
                self._unsummed = torch.zeros(self.numel, dtype=self.reduce_dtype, device=self.part.device)
            start, stop = self.places[parameter]
            self._unsummed[start:stop].view(parameter.shape).add_(parameter.grad)
            parameter.grad = None
        self._arrived.add(parameter)
        return len(self._arrived) == len(self.params)

    @property
    def has_unsummed(self) -> bool:
        """Gradients that no other rank has seen yet."""
        return bool(self._arrived)

    def reductions(self, *, in_background: bool) -> Iterator[Reduction]:
        """Sum what was taken over all ranks, each getting its part; a step of the iterator begins one collective.

        Collective: group.
        """
        self._arrived.clear()
        if self._is_sliced:
            yield from self._sums_of_slices(in_background=in_background)
            return
        assert self._unsummed is not None
        whole, self._unsummed = self._unsummed, None
        part = whole[self.start : self.stop]
        work = gloo.reduce_scatter(part, whole, group=self.group, async_op=in_background)
        yield Reduction(work, whole, part, self.gradients)

    def _sums_of_slices(self, *, in_background: bool) -> Iterator[Reduction]:
        """A matrix too large for one buffer: the same columns of every rank's part at a time."""
        (parameter,) = self.params_list
        assert parameter.grad is not None
        flat, parameter.grad = parameter.grad.reshape(-1), None
        ranks, length = self.group.size(), self.part.numel()
        width = max(self.bucket_size // ranks, 1)
        for first in range(0, length, width):
            last = min(first + width, length)
            whole = torch.zeros(ranks, last - first, dtype=self.reduce_dtype, device=self.part.device)
            for rank in range(ranks):
                values = flat[rank * length + first : rank * length + last]  # shorter, or empty, where padding begins
                whole[rank, : values.numel()].copy_(values)
            part = whole[self.group.rank()]
            work = gloo.reduce_scatter(part, whole.view(-1), group=self.group, async_op=in_background)
            yield Reduction(work, whole, part, self.gradients[first:last])


def _aligned(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
