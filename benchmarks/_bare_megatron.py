"""megatron-core's GPTModel with its own local layer specification, in a loop of its own: a peer of train_step.py.

Everything as megatron-core brings it where neither apex nor Transformer Engine is: torch's RMSNorm, attention by the
square of all scores, whole logits, torch's AdamW in its distributed optimizer. Ours are the view that lets it run on a
CPU at all (runtime/cpu_compat.py) and the reading of the HF folder.

argv = HF folder, samples [number, tokens + 1], steps, micro-batch, precision, weight decay, where rank 0 writes
{"seconds", "losses"}.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks._hf_trainer import GLOBAL_BATCH
from megatron_synE.checkpoint.hf import read_rectangle
from megatron_synE.checkpoint.hf_folder import HfFolder
from megatron_synE.checkpoint.model_space import local_parameters
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config
from megatron_synE.runtime.cpu_memory import keep_freed_memory
from megatron_synE.runtime.mcore import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    Float16Module,
    GPTModel,
    OptimizerConfig,
    TransformerConfig,
    finalize_model_grads,
    get_forward_backward_func,
    get_megatron_optimizer,
    parallel_state,
    tensor_parallel,
)

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # isort: skip  # after the CPU view


def model_of(architecture: LlamaArchitecture, folder: Path, precision: str, *, seq_length: int) -> GPTModel:
    """With the weights of an HF folder."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.layernorm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=precision == "bf16",
        params_dtype=dtype,
        masked_softmax_fusion=False,  # the three are CUDA's
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        finalize_model_grads_func=finalize_model_grads,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=architecture.vocab_size,
        max_sequence_length=seq_length,
        share_embeddings_and_output_weights=architecture.tied,
        position_embedding_type="rope",
        rotary_base=int(architecture.rotary_base),
    )
    model.architecture = architecture  # where local_parameters looks for it
    source = HfFolder(folder)
    with torch.no_grad():
        for local in local_parameters(model):
            for chunk in local.chunks(local.key, local.parameter.detach()):
                values = read_rectangle(source, architecture, chunk.key, chunk.offsets, chunk.sizes, chunk.dtype)
                chunk.tensor().copy_(values)
    return model


def forward_step(iterator: Iterator[torch.Tensor], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    """megatron-core's forward_step_func on windows [b, s + 1]."""
    window = next(iterator)
    tokens, labels = window[:, :-1].contiguous(), window[:, 1:].contiguous()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)

    def loss(nll: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mean = nll.float().mean()
        return mean, {"loss": mean.detach().clone()}

    return model(tokens, positions, None, labels=labels), loss


def main(
    folder: Path, samples: Path, steps: int, micro_batch: int, precision: str, weight_decay: float, out: Path
) -> None:
    """Train in the order of the samples; rank 0 writes the median seconds of all steps but the first, and losses."""
    keep_freed_memory()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    windows = np.load(samples)
    architecture = architecture_from_hf(read_hf_config(folder), where=str(folder))
    model = model_of(architecture, folder, precision, seq_length=windows.shape[1] - 1)
    module = Float16Module(model.config, model) if precision == "bf16" else model
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    ddp = DistributedDataParallel(model.config, ddp_config, module)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-4, weight_decay=weight_decay, adam_beta1=0.9, adam_beta2=0.95, clip_grad=1.0,
            bf16=precision == "bf16", params_dtype=model.config.params_dtype, use_distributed_optimizer=True,
        ),
        [ddp],
        use_gloo_process_groups=False,
    )  # fmt: skip
    model.config.grad_scale_func = optimizer.scale_loss
    forward_backward, rank, ranks = get_forward_backward_func(), dist.get_rank(), dist.get_world_size()
    of_rank = GLOBAL_BATCH // ranks
    seconds, losses = [], []
    for step in range(steps):
        started = time.perf_counter()
        first = step * GLOBAL_BATCH + rank * of_rank
        batches = torch.from_numpy(windows[first : first + of_rank].astype(np.int64)).split(micro_batch)
        ddp.zero_grad_buffer()
        optimizer.zero_grad()
        found = forward_backward(
            forward_step_func=forward_step, data_iterator=iter(batches), model=ddp, num_microbatches=len(batches),
            seq_length=windows.shape[1] - 1, micro_batch_size=micro_batch, forward_only=False,
        )  # fmt: skip
        optimizer.step()
        loss = torch.stack([each["loss"] for each in found]).mean()
        dist.all_reduce(loss)
        losses.append(float(loss) / ranks)
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        out.write_text(json.dumps({"seconds": statistics.median(seconds[1:]), "losses": losses}))
    dist.barrier()


if __name__ == "__main__":
    given = sys.argv[1:8]
    numbers = int(given[2]), int(given[3])
    main(Path(given[0]), Path(given[1]), *numbers, given[4], float(given[5]), Path(given[6]))
