"""Everything a run computes with, built from the plan: model chunks, DDP, optimizer, forward-backward function."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_synE.config.derive import RunPlan, resolve_dtype, rows_of_rank
from megatron_synE.config.schema import RunConfig
from megatron_synE.kernels.choice import can_compile
from megatron_synE.model import weight_gradient
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.layer_spec import Implementation, block_spec, choose, overlap_tensor_parallel
from megatron_synE.optim import gradients
from megatron_synE.optim.fused_adam import install_where_needed
from megatron_synE.runtime import gloo
from megatron_synE.runtime.device import Device
from megatron_synE.runtime.mcore import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    Float16Module,
    OptimizerConfig,
    TransformerConfig,
    get_forward_backward_func,
    get_megatron_optimizer,
    get_standard_config_overrides,
    parallel_state,
)
from megatron_synE.sharding.bucket import Bucket, Reduction
from megatron_synE.sharding.data_parallel import ShardedDataParallel
from megatron_synE.sharding.optimizer import on_parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The model chunks of this rank (more than one only under interleaved pipelining), bare and wrapped."""

    config: TransformerConfig
    chunks: tuple[LlamaModel, ...]
    ddp: tuple[DistributedDataParallel | ShardedDataParallel, ...]
    forward_backward: Callable[..., Any]
    buckets: Mapping[torch.nn.Parameter, Bucket] = field(default_factory=dict)
    """ZeRO stages 2 and 3: where the part of each parameter is that this rank keeps. Stage 1: empty."""

    def run(self, step: Callable[..., Any], batches: Sequence[Any], *, row: int, forward_only: bool = False) -> Any:
        """The pipeline schedule over micro-batches, each one row of `row` tokens: list of what `step` says of each.

        Empty but on the last stage. Collective: every rank.
        """
        iterators, single = [iter(batches) for _ in self.ddp], len(self.ddp) == 1
        return self.forward_backward(
            forward_step_func=step, data_iterator=iterators[0] if single else iterators,
            model=self.ddp[0] if single else list(self.ddp), num_microbatches=len(batches),
            seq_length=row, micro_batch_size=1, forward_only=forward_only,
        )  # fmt: skip


def transformer_config(config: RunConfig, plan: RunPlan, device: Device) -> TransformerConfig:
    """megatron-core's configuration of this architecture and layout."""
    architecture, parallel, training = plan.architecture, config.parallel, config.training
    dtype = torch.bfloat16 if plan.dtype == "bf16" else torch.float32
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    recompute: dict[str, Any] = {}
    if training.recompute == "selective":
        recompute = {"recompute_granularity": "selective"}
    elif training.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
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
        bf16=plan.dtype == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # Also when weights are loaded later: without it megatron-core does not mark weights as tensor-parallel, and the
        # gradient norm, so clipping, silently misses all TP ranks but the first (layers.py, ColumnParallelLinear).
        perform_initialization=True,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        # The loss is a sum over tokens, divided once by the global number of target tokens (gradients.finalize).
        calculate_per_token_loss=True,
        # Interleaved PP=2 with batched p2p pairs two sends between the same ranks wrongly: silent garbage (trap S1).
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        bias_activation_fusion=device.is_cuda and can_compile(),
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        **recompute,
    )


def layers_of(config: RunConfig, device: Device) -> Implementation:
    """Layers and kernels for this rank's card. Errors: ConfigError if it cannot do what is asked for."""
    training = config.training
    return choose(
        config.model.attention, device, dtype=resolve_dtype(training.precision, device.kind),
        kernels=config.model.kernels, fp8=training.fp8, fp8_recipe=training.fp8_recipe,
    )  # fmt: skip


def build_model(config: RunConfig, plan: RunPlan, device: Device) -> Model:
    """The chunks of this rank, wrapped for data parallelism; weights random or not yet loaded.

    Collective: every rank. Weights loaded later go in place, before build_optimizer makes the fp32 masters from them.
    """
    implementation = layers_of(config, device)
    logger.info("layers: %s", implementation)
    if plan.dtype == "bf16" and not device.has_bf16:
        logger.warning(
            "this CPU multiplies no bf16 in hardware: steps take several times as long as in fp32; set "
            "training.precision=auto, which takes fp32 here and bf16 on a GPU"
        )
    if plan.zero_stage != config.parallel.zero_stage:
        logger.warning(
            "parallel.zero_stage=%d: one data-parallel rank has nobody to share with; running as stage 1",
            config.parallel.zero_stage,
        )
    core_config = transformer_config(config, plan, device)
    # Not under stages 2 and 3: the product writes to a whole main gradient of the weight's, and there a rank keeps its
    # part alone; a bucket is filled from `.grad` instead.
    core_config.gradient_accumulation_fusion = plan.zero_stage == 1
    if plan.zero_stage == 1:
        logger.info("weight gradients: added by the products of %s", weight_gradient.install_where_needed())
    if config.parallel.tp_comm_overlap:
        overlap_tensor_parallel(core_config, implementation, rows=rows_of_rank(config))
    chunks = build_chunks(core_config, config, plan, implementation, device)
    wrapped = [Float16Module(core_config, chunk) for chunk in chunks] if plan.dtype == "bf16" else list(chunks)
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=config.training.grad_reduce_in_fp32,
        overlap_grad_reduce=plan.overlap_grad_reduce,
        overlap_param_gather=plan.overlap_param_gather,
        check_for_nan_in_grad=False,  # agreed over ranks on the gradient norm in train_step instead
    )
    if not device.is_cuda:
        gloo.install()
    core_config.finalize_model_grads_func = gradients.finalize
    if plan.zero_stage > 1:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        reductions: deque[Reduction] = deque()
        sharded = tuple(
            ShardedDataParallel(
                core_config, ddp_config, module, chunk, group,
                shards_weights=plan.zero_stage == 3, reductions=reductions,
            )
            for module, chunk in zip(wrapped, chunks, strict=True)
        )  # fmt: skip
        buckets = {parameter: bucket for module in sharded for parameter, bucket in module.bucket_of().items()}
        return Model(core_config, chunks, sharded, get_forward_backward_func(), buckets)
    ddp = tuple(
        # Later chunks of an interleaved pipeline: one bucket, as their backward passes interleave anyway.
        DistributedDataParallel(core_config, ddp_config, module, disable_bucketing=index > 0)
        for index, module in enumerate(wrapped)
    )
    if plan.overlap_grad_reduce:
        core_config.no_sync_func = _one_or_list([module.no_sync for module in ddp])
    if plan.overlap_param_gather:
        core_config.param_sync_func = _one_or_list([module.start_param_sync for module in ddp])
    return Model(core_config, chunks, ddp, get_forward_backward_func())


def build_optimizer(config: RunConfig, plan: RunPlan, model: Model) -> Any:
    """megatron-core's distributed optimizer over AdamW; its fp32 masters are copies of the weights as they are now.

    Collective: every rank.
    """
    logger.info("optimizer: distributed (ZeRO stage %d), %s", plan.zero_stage, install_where_needed())
    gradients.install_where_needed()
    section = config.optimizer
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=section.lr,
        min_lr=0.0,
        weight_decay=section.weight_decay,
        adam_beta1=section.adam_beta1,
        adam_beta2=section.adam_beta2,
        adam_eps=section.adam_eps,
        clip_grad=config.training.clip_grad,
        bf16=plan.dtype == "bf16",
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=plan.overlap_param_gather,
    )
    only = (
        on_parts(_distributed, optimizer_config, model.ddp)
        if plan.zero_stage > 1
        else _distributed(optimizer_config, model.ddp)
    )
    for group in only.param_groups:
        # megatron-core leaves wd_mult (0 for 1-D parameters) to its own LR scheduler, which we do not use: without
        # this line norms decay. The test against torch AdamW sees it.
        group["weight_decay"] = section.weight_decay * group["wd_mult"]
    model.config.grad_scale_func = only.scale_loss
    return only


def _distributed(optimizer_config: OptimizerConfig, ddp: Sequence[Any]) -> Any:
    optimizer = get_megatron_optimizer(
        optimizer_config,
        list(ddp),
        config_overrides=get_standard_config_overrides(optimizer_config),  # no weight decay on 1-D parameters
        use_gloo_process_groups=False,
    )
    # A dense model has one distributed optimizer; megatron-core wraps it in a chain for the sake of experts.
    (only,) = getattr(optimizer, "chained_optimizers", [optimizer])
    return only


def sync_parameters(model: Model, plan: RunPlan) -> None:
    """Make every rank's weights those of the last optimizer step.

    With overlap_param_gather they are gathered only in the next forward pass (trap S5): call before validation,
    saving and export. Under ZeRO stage 3 nothing is gathered: forward passes and checkpoints take the ranks' parts.
    Collective: every rank.
    """
    if plan.overlap_param_gather:
        for module in model.ddp:
            module.start_param_sync(force_sync=True)


def build_chunks(
    core_config: TransformerConfig, config: RunConfig, plan: RunPlan, implementation: Implementation, device: Device
) -> tuple[LlamaModel, ...]:
    """The bare model chunks of this rank, with random weights. Collective: every rank."""
    virtual_size = config.parallel.virtual_pipeline_model_parallel_size
    stages: list[int | None] = [None] if virtual_size is None else list(range(virtual_size))
    chunks = []
    for vp_stage in stages:
        where: dict[str, Any] = {} if vp_stage is None else {"ignore_virtual": False, "vp_stage": vp_stage}
        model = LlamaModel(
            core_config,
            plan.architecture,
            block_spec(core_config, implementation, vp_stage=vp_stage),
            padded_vocab_size=plan.padded_vocab_size,
            max_sequence_length=config.training.seq_length,
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            vp_stage=vp_stage,
        )
        if plan.padded_vocab_size != plan.architecture.vocab_size:
            _zero_padded_rows(model, plan)
        model.to(device.torch_device)
        chunks.append(model)
    return tuple(chunks)


def _zero_padded_rows(model: LlamaModel, plan: RunPlan) -> None:
    """Padded rows never take part in anything; zero keeps them out of norms and comparisons."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in model.named_parameters():
        if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            kept = min(max(plan.architecture.vocab_size - rank * parameter.shape[0], 0), parameter.shape[0])
            with torch.no_grad():
                parameter[kept:] = 0


def _one_or_list(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items
