"""A step, a validation pass and the chunks of a save on a device without values that stands in for a card.

Every operation that meets tensors of both sides, and every collective or pinning of the wrong side, is an error, as it
is on CUDA. Shapes and types are those of Llama-3-8B (two layers) at 8,192 tokens, ZeRO stage 3 over two ranks, of which
one is there. What the host reads is 1.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_mixers.atomic import write_atomic
from megatron_synE.runtime import cpu_compat
from megatron_synE.runtime.environment import hide_cuda

CARD = torch.device("meta")
TOKENS = 8192
aten = torch.ops.aten


class OneSide(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is aten._local_scalar_dense.default and args[0].device == CARD:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is aten._fused_adamw_.default:
            assert {tensor.device for tensor in tensors} == {CARD}
            return None
        if func is aten._to_copy.default and args[0].device == CARD and kwargs.get("device") == torch.device("cpu"):
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and (args[0].device, args[1].device) == (torch.device("cpu"), CARD):
            return args[0].fill_(1)
        sides = {tensor.device.type for tensor in tensors if tensor.dim()}  # one value may come from the host
        if len(sides) > 1 and func not in (aten.copy_.default, aten._to_copy.default):
            raise AssertionError(f"{func} of both sides: {[(t.device.type, tuple(t.shape)) for t in tensors]}")
        return func(*args, **kwargs)


class Done:
    def wait(self) -> bool:
        return True


def collective(tensor: torch.Tensor, *others: Any, async_op: bool = False, **_: object) -> Done | None:
    sent = [tensor, *(other for other in others if isinstance(other, torch.Tensor))]
    assert all(each.device == CARD and each.is_contiguous() for each in sent)
    return Done() if async_op else None


def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.device.type == "cpu", "only dense CPU tensors can be pinned"
    return tensor


def main(out: Path) -> None:
    """Writes how many documents were scored, and chunks to be saved."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    hide_cuda()
    cpu_compat._CPU = CARD  # what megatron-core calls cuda
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    for name in ("all_reduce", "broadcast", "reduce_scatter_tensor", "all_gather_into_tensor"):
        setattr(dist, name, collective)
    torch.Tensor.is_cuda = property(lambda tensor: tensor.device == CARD)
    torch.cuda.is_bf16_supported = lambda **_: True
    from megatron_synE import validation
    from megatron_synE.build import build_model, build_optimizer, sync_parameters
    from megatron_synE.checkpoint.training_state import chunks_to_save
    from megatron_synE.config import schema
    from megatron_synE.config.derive import derive
    from megatron_synE.data.batch import micro_batch
    from megatron_synE.data.packing import pack
    from megatron_synE.model.presets import ARCHITECTURES
    from megatron_synE.runtime.device import Device
    from megatron_synE.runtime.distributed import initialize_model_parallel, sum_of_last_stages
    from megatron_synE.trainer import forward_step

    torch.Tensor.pin_memory = pin_memory  # the view of megatron-core has made it the identity
    kinds = {torch.float32: "torch.cuda.FloatTensor", torch.bfloat16: "torch.cuda.BFloat16Tensor"}
    spelt = torch.Tensor.type
    torch.Tensor.type = lambda tensor, *to: spelt(tensor, *to) if to else kinds[tensor.dtype]
    architecture = ARCHITECTURES["llama3_8b"].__class__(**(vars(ARCHITECTURES["llama3_8b"]) | {"num_layers": 2}))
    config = schema.RunConfig(
        run=schema.RunSection(name="card", dir=Path()),
        training=schema.TrainingSection(seq_length=TOKENS, global_batch_size=4),
        data=schema.DataSection(manifests=(), stages=(schema.StageSection(name="s", tokens=1, languages={}),)),
        model=schema.ModelSection(attention="native", kernels="torch"),
        parallel=schema.ParallelSection(zero_stage=3),
        device="cuda",
    )
    initialize_model_parallel(config.parallel, seed=1)
    plan = derive(config, architecture, 2, device="cuda")
    card = Device("cuda", CARD, "nccl", "no card")
    with OneSide():
        model = build_model(config, plan, card)
        optimizer = build_optimizer(config, plan, model)
        ids = torch.zeros(1, TOKENS, dtype=torch.int64)
        for _ in range(2):
            for module in model.ddp:
                module.zero_grad_buffer()
            optimizer.zero_grad()
            batches = [
                micro_batch(ids, ids, torch.ones(1, TOKENS), (0, 1000, 5000, TOKENS), device=CARD)
                for _ in range(plan.num_microbatches)
            ]
            losses = model.run(forward_step, batches, row=TOKENS)
            sum_of_last_stages([loss["nll_and_tokens"] for loss in losses], CARD)
            optimizer.prepare_grads()
            optimizer.clip_grad_norm(0.5)
            optimizer.step_with_ready_grads()
        sync_parameters(model, plan)
        chunks = chunks_to_save(model, optimizer)
        assert {chunk.tensor().device for chunk in chunks} == {CARD}
        rows = pack([np.arange(9000) % 100, np.arange(500)], seq_length=TOKENS)
        validator = validation.Validator((), tuple(rows), TOKENS, 1, CARD, 2)
        sent = [validator._micro_batch([row]) for row in rows]
        scored = list(validation._forward(model, sent, TOKENS))
    write_atomic(out, f"{len(scored)} {len(chunks)}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
