"""Llama-3-8B, every parameter trained on one card: bf16 weights, gradients and moments, stochastic rounding.

No gradient buffers, no masters: eight bytes a parameter. What that is planned to take is printed before anything is
allocated. A figure of throughput; the recipe trains with fp32 masters.
"""

import sys
from typing import TYPE_CHECKING, Any

import torch

from benchmarks._bench_model import Options, bare_model, row_of_documents
from benchmarks._timing import seconds_of
from megatron_synE.data.batch import MicroBatch
from megatron_synE.model.flops import training_flops_per_token
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.head_sizes import chunk_tokens, piece_tokens
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.optim.bf16_adam import Bf16Adam

if TYPE_CHECKING:
    from benchmarks._gpu_sections import Setting

BYTES = {"weights": 2, "gradients": 2, "first moments": 2, "second moments": 2}


def planned_bytes(architecture: LlamaArchitecture, *, seq_length: int) -> dict[str, int]:
    """By part. Full recomputation keeps one row a layer; the head a chunk of logits, and both of its gradients."""
    a, number = architecture, architecture.num_parameters
    parts = {name: size * number for name, size in BYTES.items()}
    layer = 2 * (2 * a.hidden_size + 3 * a.kv_channels * (a.num_attention_heads + a.num_query_groups))
    parts["rows kept"] = 2 * seq_length * a.hidden_size * a.num_layers
    parts["one layer recomputed"] = seq_length * (layer + 2 * 5 * a.ffn_hidden_size)
    chunk = chunk_tokens(seq_length, rows=a.vocab_size, kind="cuda")
    parts["logits"] = a.vocab_size * (2 * chunk + 4 * piece_tokens(chunk, rows=a.vocab_size, kind="cuda"))
    parts["gradients of the head"] = 2 * a.hidden_size * (a.vocab_size + seq_length)
    return parts | {"total": sum(parts.values())}


def loss_of(model: LlamaModel, batch: MicroBatch) -> torch.Tensor:
    nll = model(
        batch.input_ids, None, None, labels=batch.labels, loss_mask=batch.loss_mask, packed_seq_params=batch.row
    )
    return nll.sum() / batch.loss_mask.sum()


def train(setting: "Setting") -> dict[str, Any]:
    """Tokens per second of whole steps, planned and peak bytes, and the first and last loss."""
    architecture = setting.architecture("llama3_8b")
    planned = planned_bytes(architecture, seq_length=setting.seq_length)
    for name, size in planned.items():
        print(f"planned: {name} {size / 1e9:.2f} GB", file=sys.stderr, flush=True)
    options = Options(seq_length=setting.seq_length, recompute="full")
    model = bare_model(architecture, options, setting.device).train()
    model.bfloat16()  # norms are built in the run's precision already: nothing is left in fp32
    optimizer = Bf16Adam(model.parameters(), lr=1e-5)
    batch = row_of_documents(
        architecture, seq_length=setting.seq_length, mean_document=setting.mean_document, device=setting.device
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        batch.row.rotary_cos = None
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    first = step()
    seconds = seconds_of(step, setting.device, repeats=5, warm_up=1)
    flops = training_flops_per_token(architecture, seq_length=setting.seq_length) * setting.seq_length
    return {
        "planned_bytes": planned,
        "peak_bytes": setting.device.peak_memory_bytes(),
        "tokens_per_second": setting.seq_length / seconds,
        "tflops_as_if_unmasked": flops / seconds / 1e12,
        "seconds": seconds,
        "first_loss": first,
        "last_loss": step(),
    }
