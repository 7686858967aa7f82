"""Where the pieces of local weights lie: every rank's pieces, cut anywhere, make the whole tensors, each value once."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.checkpoint import model_space
from megatron_synE.checkpoint.dcp import Chunk
from megatron_synE.checkpoint.hf_mapping import global_tensors
from megatron_synE.checkpoint.model_space import LocalParameter, local_parameters
from megatron_synE.checkpoint.training_state import chunks_to_save
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.sharding.bucket import Bucket, cut

UNTIED = LlamaArchitecture(
    num_layers=3, hidden_size=8, ffn_hidden_size=12, num_attention_heads=8, num_query_groups=4, kv_channels=2,
    vocab_size=10, max_position_embeddings=64,
)  # fmt: skip
TIED = replace(UNTIED, tied=True)
# As native layers call them -> as they are called on disk.
LAYER = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight": "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight": "self_attention.linear_proj.weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight": "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight": "mlp.linear_fc2.weight",
}


def truth(architecture: LlamaArchitecture) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in global_tensors(architecture).items()}


def local_values(key: str, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """megatron-core's cut, by hand. Rows of padding are 7."""
    if whole.dim() == 1:
        return whole
    if key.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return whole.chunk(size, dim=1)[rank]
    if key.endswith("linear_fc1.weight"):
        gate, up = whole.chunk(2)
        return torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])
    if key.endswith("linear_qkv.weight"):
        return whole.chunk(size)[rank]
    padded = torch.full((-(-len(whole) // (4 * size)) * 4 * size, whole.shape[1]), 7.0)
    padded[: len(whole)] = whole
    return padded.chunk(size)[rank]


def holder(parameters: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Modules within modules whose parameters have these dotted names."""
    made = torch.nn.Module()
    for name, values in parameters.items():
        *path, last = name.split(".")
        owner = made
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, torch.nn.Parameter(values.clone()))
    return made


def stage(
    architecture: LlamaArchitecture, layers: range, rank: int, size: int, *, has_first: bool, has_last: bool
) -> Any:
    """What local_parameters reads of a model chunk that holds these layers."""
    tensors = truth(architecture)

    def mine(key: str) -> torch.Tensor:
        return local_values(key, tensors[key], rank, size)

    names = {"embedding.word_embeddings.weight": mine("embedding.word_embeddings.weight")} if has_first else {}
    chunk: Any = holder(names)
    chunk.decoder = torch.nn.Module()
    chunk.decoder.layers = torch.nn.ModuleList()
    for number in layers:
        layer: Any = holder({local: mine(f"decoder.layers.{number}.{stored}") for local, stored in LAYER.items()})
        layer.layer_number = number + 1
        chunk.decoder.layers.append(layer)
    if has_last:
        chunk.decoder.final_layernorm = holder({"weight": mine("decoder.final_layernorm.weight")})
        if not architecture.tied or not has_first:
            head = "embedding.word_embeddings.weight" if architecture.tied else "output_layer.weight"
            chunk.output_layer = holder({"weight": mine(head)})
    chunk.architecture = architecture
    return chunk


def at_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setattr(model_space.parallel_state, "get_tensor_model_parallel_rank", lambda: rank)
    monkeypatch.setattr(model_space.parallel_state, "get_tensor_model_parallel_world_size", lambda: size)


def cuts(length: int, seed: str) -> list[tuple[int, int]]:
    """[0, length) in three ranges that end anywhere, one of them perhaps empty, as data-parallel ranks have them."""
    borders = sorted(random.Random(seed).choices(range(length + 1), k=2))
    return list(zip([0, *borders], [*borders, length], strict=True))


STAGES = [[(range(3), True, True)], [(range(2), True, False), (range(2, 3), False, True)]]


def every_local(
    monkeypatch: pytest.MonkeyPatch, architecture: LlamaArchitecture, size: int, stages: list[Any]
) -> Iterator[tuple[int, LocalParameter]]:
    for rank in range(size):
        at_rank(monkeypatch, rank, size)
        for layers, has_first, has_last in stages:
            chunk = stage(architecture, layers, rank, size, has_first=has_first, has_last=has_last)
            for local in local_parameters(chunk):
                yield rank, local


@pytest.mark.parametrize("stages", STAGES, ids=["one stage", "two stages"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("architecture", [UNTIED, TIED], ids=["untied", "tied"])
def test_what_all_ranks_write_is_every_value_once(
    monkeypatch: pytest.MonkeyPatch, architecture: LlamaArchitecture, size: int, stages: list[Any]
) -> None:
    tensors = truth(architecture)
    found = {key: torch.full_like(tensor, torch.nan) for key, tensor in tensors.items()}
    times = {key: torch.zeros_like(tensor, dtype=torch.int64) for key, tensor in tensors.items()}
    for rank, local in every_local(monkeypatch, architecture, size, stages):
        flat = local.parameter.detach().view(-1)
        ranges = cuts(len(flat), f"{rank} {local.key}")
        for start, stop in ranges:
            chunks = list(local.flat_chunks(f"state.{local.key}", flat[start:stop], start=start))
            assert len(chunks) <= 3 * len(local.pieces)
            for chunk in chunks:
                assert (chunk.key, chunk.dtype) == (f"state.{local.key}", torch.float32)
                assert chunk.global_shape == tuple(tensors[local.key].shape)
                assert all(chunk.sizes)
                place = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
                assert torch.equal(chunk.tensor(), tensors[local.key][place])  # also of a copy that is not written
                if local.is_written_here:
                    found[local.key][place] = chunk.tensor()
                    times[local.key][place] += 1
    for key, tensor in tensors.items():
        assert torch.equal(found[key], tensor), key
        assert (times[key] == 1).all(), key


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_is_read_into_the_pieces_arrives_in_the_weights_and_padding_stays(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Loading fills every copy, also one that is not written; chunks are views."""
    tensors = truth(TIED)
    for rank, local in every_local(monkeypatch, TIED, size, STAGES[1]):
        wanted = local.parameter.detach().clone()
        weights = local.parameter.detach()
        weights.fill_(7.0)
        for chunk in local.chunks(local.key, weights):
            place = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            chunk.tensor().copy_(tensors[local.key][place])
        assert torch.equal(local.parameter, wanted), (rank, local.key)


def test_copies_are_written_by_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms by TP rank 0; a tied embedding by the stage that has it as the embedding."""
    written = {
        rank: {
            local.key: local.is_written_here for r, local in every_local(monkeypatch, TIED, 2, STAGES[1]) if r == rank
        }
        for rank in (0, 1)
    }
    norms = [key for key in written[0] if "norm" in key]
    assert len(norms) == 3 * 2 + 1
    assert all(written[0][key] and not written[1][key] for key in norms)
    for rank in (0, 1):
        at_rank(monkeypatch, rank, 2)
        for has_first in (True, False):
            chunk = stage(TIED, range(1), rank, 2, has_first=has_first, has_last=not has_first)
            (local,) = (each for each in local_parameters(chunk) if each.key == "embedding.word_embeddings.weight")
            assert local.is_written_here == has_first
    # Not tied, the head is a weight of its own.
    chunk = stage(UNTIED, range(1), 1, 2, has_first=False, has_last=True)
    assert {local.key: local.is_written_here for local in local_parameters(chunk)}["output_layer.weight"]


@dataclass(frozen=True)
class Layout:
    """data: ranks of data and context parallelism together, which share out the optimizer's state."""

    tensor: int
    pipeline: int
    virtual: int
    layers_a_chunk: int
    data: int
    bucket_size: int
    keeps_weights: bool
    is_tied: bool
    dtype: torch.dtype

    @property
    def architecture(self) -> LlamaArchitecture:
        return replace(UNTIED, num_layers=self.pipeline * self.virtual * self.layers_a_chunk, tied=self.is_tied)

    def chunks(self, tensor: int, pipeline: int) -> list[Any]:
        """Of a rank, as megatron-core deals layers out: chunk v of stage p is number v * stages + p."""
        places = [chunk * self.pipeline + pipeline for chunk in range(self.virtual)]
        last = self.pipeline * self.virtual - 1
        return [
            stage(
                self.architecture, range(at * self.layers_a_chunk, (at + 1) * self.layers_a_chunk), tensor, self.tensor,
                has_first=at == 0, has_last=at == last,
            )
            for at in places
        ]  # fmt: skip


LAYOUTS = st.builds(
    Layout, tensor=st.sampled_from([1, 2, 4]), pipeline=st.integers(1, 3), virtual=st.integers(1, 2),
    layers_a_chunk=st.integers(1, 2), data=st.integers(1, 5), bucket_size=st.sampled_from([1, 90, 300, 10**6]),
    keeps_weights=st.booleans(), is_tied=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
).filter(lambda layout: layout.pipeline > 1 or layout.virtual == 1)  # fmt: skip


def offered(layout: Layout, chunks: list[Any], data: int) -> list[Chunk]:
    """What rank `data` of those that hold these model chunks saves. Masters are the weights, moments 2 and 3 times."""
    group: Any = SimpleNamespace(size=lambda: layout.data, rank=lambda: data)
    buckets: dict[torch.nn.Parameter, Bucket] = {}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.data = parameter.data.to(layout.dtype)
            is_embedding = name == "embedding.word_embeddings.weight" or name == "output_layer.weight"
            parameter.shared_embedding = layout.is_tied and layout.pipeline > 1 and is_embedding
        for parameters in cut(chunk.parameters(), bucket_size=layout.bucket_size):
            bucket = Bucket(
                parameters, bucket_id=len(buckets), offset=0, group=group, reduce_dtype=torch.float32,
                bucket_size=layout.bucket_size, keeps_weights=layout.keeps_weights,
            )  # fmt: skip
            buckets |= dict.fromkeys(parameters, bucket)
    masters: list[torch.Tensor] = []
    state: dict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)
    places: dict[torch.nn.Parameter, tuple[int, int]] = {}
    ranges: dict[torch.nn.Parameter, Any] = {}
    for parameter, bucket in buckets.items():
        start, stop = bucket.own_range(parameter)
        if start < stop:
            master = bucket.own_weights(parameter).float().clone()
            places[parameter], ranges[parameter] = (0, len(masters)), SimpleNamespace(start=start)
            masters.append(master)
            state[master] = {"exp_avg": 2 * master, "exp_avg_sq": 3 * master}
    optimizer = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"params": masters}], state=state), model_param_group_index_map=places,
        _get_model_param_range_map=lambda parameter: {"param": ranges[parameter]},
    )  # fmt: skip
    model: Any = SimpleNamespace(chunks=chunks, buckets=buckets)
    return chunks_to_save(model, optimizer)


@settings(max_examples=60)
@given(layout=LAYOUTS)
def test_no_two_ranks_offer_the_same_rectangle_and_together_they_offer_everything(layout: Layout) -> None:
    wanted: dict[str, torch.Tensor] = {}
    for key, values in truth(layout.architecture).items():
        master = values.to(layout.dtype).float()
        wanted |= {key: values.to(layout.dtype), f"optimizer.exp_avg.{key}": 2 * master}
        wanted |= {f"optimizer.exp_avg_sq.{key}": 3 * master}
        wanted |= {f"optimizer.master.{key}": master} if layout.dtype == torch.bfloat16 else {}
    times = {key: torch.zeros(values.shape, dtype=torch.int64) for key, values in wanted.items()}
    begins: set[tuple[str, tuple[int, ...]]] = set()
    for tensor in range(layout.tensor):
        with pytest.MonkeyPatch.context() as patch:
            at_rank(patch, tensor, layout.tensor)
            for pipeline in range(layout.pipeline):
                for data in range(layout.data):
                    for chunk in offered(layout, layout.chunks(tensor, pipeline), data):
                        place = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
                        assert torch.equal(chunk.tensor(), wanted[chunk.key][place]), chunk.key
                        assert chunk.global_shape == tuple(wanted[chunk.key].shape)
                        times[chunk.key][place] += 1
                        # By its first corner torch's table knows a rectangle: a second one would replace the first.
                        assert (chunk.key, chunk.offsets) not in begins
                        begins.add((chunk.key, chunk.offsets))
    assert all((count == 1).all() for count in times.values())
