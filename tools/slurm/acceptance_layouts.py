"""The layouts an acceptance runs, those that this machine leaves out, and why."""

from dataclasses import dataclass

TP, PP = "parallel.tensor_model_parallel_size=", "parallel.pipeline_model_parallel_size="
CP = "parallel.context_parallel_size="
SP, VPP = "parallel.sequence_parallel=true", "parallel.virtual_pipeline_model_parallel_size=2"
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
BF16, TE, FP8 = "training.precision=bf16", "model.attention=transformer_engine", "training.fp8=hybrid"
ONE_CARD, ONE_CARD_BF16, ONE_CARD_FP8 = "one_card", "one_card_bf16", "one_card_fp8"
DATA_PARALLEL, KILLED = "dp", "killed"
SPEED = "speed"
LLAMA3_8B = (
    "init.from=random",
    "init.path=null",
    "model.preset=llama3_8b",
    "model.attention=auto",
    "training.seq_length=8192",
    "training.global_batch_size=128",
    "data.stages.0.tokens=1e9",
    BF16,
    f"{TP}4",
    SP,
    "checkpoint.interval_tokens=null",
)
"""As examples/llama3_8b recommends, on random weights; ended after ten steps, before it would save 112 GB."""


@dataclass(frozen=True)
class Layout:
    name: str
    options: tuple[str, ...] = ()
    """KEY=VALUE; without a space, the script splits them."""
    model_ranks: int = 1
    """TP x CP x PP: the world must be a multiple."""
    reference: str = ONE_CARD


LAYOUTS = (
    Layout(ONE_CARD),
    Layout(DATA_PARALLEL),
    Layout("dp_overlapped", OVERLAP),
    Layout("dp_zero2", ("parallel.zero_stage=2",)),
    Layout("dp_zero3_overlapped", ("parallel.zero_stage=3", *OVERLAP)),
    Layout("pp2_zero2", ("parallel.zero_stage=2", f"{PP}2"), 2),
    Layout("dp_recompute", ("training.recompute=full",)),
    Layout("tp2", (f"{TP}2",), 2),
    Layout("tp2_sp", (f"{TP}2", SP), 2),
    Layout("tp4_sp", (f"{TP}4", SP), 4),
    Layout("tp8_sp", (f"{TP}8", SP), 8),
    Layout("pp2", (f"{PP}2",), 2),
    Layout("pp2_vpp", (f"{PP}2", VPP), 2),
    Layout("tp2_pp2_sp", (f"{TP}2", f"{PP}2", SP), 4),
    Layout("cp2", (f"{CP}2",), 2),
    Layout("cp4", (f"{CP}4",), 4),
    Layout("cp2_tp2_sp", (f"{CP}2", f"{TP}2", SP), 4),
    Layout(ONE_CARD_BF16, (BF16,), reference=ONE_CARD_BF16),
    Layout("dp_bf16", (BF16,), reference=ONE_CARD_BF16),
    Layout("tp4_sp_bf16", (BF16, f"{TP}4", SP), 4, ONE_CARD_BF16),
    Layout("dp_te_bf16", (BF16, TE), 1, ONE_CARD_BF16),
    # Scales are of a micro-batch and of a rank's part of a weight: the same ones without TP alone.
    Layout(ONE_CARD_FP8, (BF16, FP8), reference=ONE_CARD_FP8),
    Layout("dp_fp8", (BF16, FP8), 1, ONE_CARD_FP8),
)


def chosen(
    world_size: int, *, has_transformer_engine: bool, has_fp8: bool, only: tuple[str, ...]
) -> tuple[list[Layout], dict[str, str]]:
    """What to run, and for everything else its reason. What others are compared with always runs."""
    run: list[Layout] = []
    left_out: dict[str, str] = {}
    for layout in LAYOUTS:
        if TE in layout.options and not has_transformer_engine:
            left_out[layout.name] = "Transformer Engine is not installed, or there is no GPU"
        elif FP8 in layout.options and not has_fp8:
            left_out[layout.name] = "no GPU of compute capability 8.9 or above is seen"
        elif world_size % layout.model_ranks or world_size < layout.model_ranks:
            left_out[layout.name] = f"needs a multiple of {layout.model_ranks} ranks, this job has {world_size}"
        elif only and layout.name not in (*only, DATA_PARALLEL) and not layout.name.startswith(ONE_CARD):
            left_out[layout.name] = "not asked for"
        else:
            run.append(layout)
    wanted = {layout.reference for layout in run if not layout.name.startswith(ONE_CARD)}
    return [layout for layout in run if not layout.name.startswith(ONE_CARD) or layout.name in wanted], left_out
