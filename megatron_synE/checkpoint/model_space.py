"""Where each local parameter, or a flat range of one, lies in the global tensors of docs/checkpoint.md."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_synE.checkpoint.dcp import Chunk
from megatron_synE.checkpoint.hf_mapping import LAYER_KEY, LOCAL_NORMS
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.runtime.mcore import parallel_state

_NORMS = {local: fused for fused, local in LOCAL_NORMS.items()}  # native modules are named as the local spec's
_SPLIT_COLUMNS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@dataclass(frozen=True)
class Piece:
    """Consecutive whole rows of a local tensor and where they begin in the global one."""

    row_start: int
    num_rows: int
    global_offsets: tuple[int, ...]


@dataclass(frozen=True)
class LocalParameter:
    """One parameter of this rank in model space. 1-D parameters are treated as one column per row."""

    parameter: torch.nn.Parameter
    key: str
    global_shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    is_written_here: bool
    """False for copies: replicated over TP and not on TP rank 0, or the last stage's copy of a tied embedding."""

    @property
    def row_elements(self) -> int:
        return self.parameter.shape[1] if self.parameter.dim() == 2 else 1

    def chunks(self, key: str, values: torch.Tensor) -> Iterator[Chunk]:
        """Chunks for `values`, shaped like the parameter; their tensors are views of it."""
        yield from self.flat_chunks(key, values.view(-1), start=0)

    def flat_chunks(self, key: str, flat: torch.Tensor, *, start: int) -> Iterator[Chunk]:
        """Chunks for elements [start, start + len(flat)) of the flattened parameter; views of `flat`.

        A flat range is at most three rectangles a piece: the end of a row, whole rows, the beginning of a row.
        """
        width = self.row_elements
        for piece in self.pieces:
            first = max(start, piece.row_start * width)
            stop = min(start + flat.numel(), (piece.row_start + piece.num_rows) * width)
            while first < stop:
                row, column = divmod(first, width)
                if column or stop - first < width:
                    length = min(width - column, stop - first)
                    sizes = (1, length)
                else:
                    length = (stop - first) // width * width
                    sizes = (length // width, width)
                offsets = (piece.global_offsets[0] + row - piece.row_start, piece.global_offsets[1] + column)
                view = flat[first - start : first - start + length].view(sizes)
                yield self._chunk(key, offsets, sizes, view)
                first += length

    def _chunk(self, key: str, offsets: tuple[int, int], sizes: tuple[int, int], view: torch.Tensor) -> Chunk:
        if len(self.global_shape) == 1:
            return Chunk(key, self.global_shape, offsets[:1], sizes[:1], view.dtype, view.view(-1))
        return Chunk(key, self.global_shape, offsets, sizes, view.dtype, view)


def local_parameters(model: LlamaModel) -> Iterator[LocalParameter]:
    """Every parameter of one unwrapped model chunk, in named_parameters order.

    Errors: KeyError-free by construction; an unknown parameter name is an AssertionError, because only a new layer
    spec can bring one.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in model.named_parameters():
        key = global_key(name, model)
        yield _place(key, name, parameter, model.architecture, rank=rank, size=size)


def global_key(name: str, model: LlamaModel) -> str:
    """The on-disk key of a local parameter name: the global layer number, the fused norm names, the tied rule."""
    match = LAYER_KEY.fullmatch(name)
    if match is None:
        is_tied_copy = name == "output_layer.weight" and model.architecture.tied
        return "embedding.word_embeddings.weight" if is_tied_copy else name
    layer = model.decoder.layers[int(match[1])].layer_number - 1
    return f"decoder.layers.{layer}.{_NORMS.get(match[2], match[2])}"


def _place(
    key: str, name: str, parameter: torch.nn.Parameter, architecture: LlamaArchitecture, *, rank: int, size: int
) -> LocalParameter:
    rows = parameter.shape[0]
    is_tied_copy = name == "output_layer.weight" and key != name
    pieces: tuple[Piece, ...]
    if parameter.dim() == 1:
        pieces = (Piece(0, rows, (0, 0)),)
        return LocalParameter(parameter, key, (rows,), pieces, is_written_here=rank == 0)
    columns = parameter.shape[1]
    if key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        kept = min(max(architecture.vocab_size - rank * rows, 0), rows)
        pieces = (Piece(0, kept, (rank * rows, 0)),) if kept else ()
        return LocalParameter(parameter, key, (architecture.vocab_size, columns), pieces, not is_tied_copy)
    if key.endswith("mlp.linear_fc1.weight"):
        half = rows // 2  # local rows are this rank's gate, then this rank's up
        ffn = half * size
        pieces = (Piece(0, half, (rank * half, 0)), Piece(half, half, (ffn + rank * half, 0)))
        return LocalParameter(parameter, key, (2 * ffn, columns), pieces, is_written_here=True)
    if key.endswith("self_attention.linear_qkv.weight"):
        return LocalParameter(parameter, key, (rows * size, columns), (Piece(0, rows, (rank * rows, 0)),), True)
    assert key.endswith(_SPLIT_COLUMNS), f"no rule for parameter {name}"
    pieces = (Piece(0, rows, (0, rank * columns)),)
    return LocalParameter(parameter, key, (rows, columns * size), pieces, is_written_here=True)
