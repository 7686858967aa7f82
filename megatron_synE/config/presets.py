"""The recipe as values: `syne_paper` is what was published, `syne_recommended` is that plus a table of reasons."""

from typing import Any

# Where each figure comes from. P: arXiv 2407.18743; C: the scripts its authors released; ours: published nowhere.
_ZH_SOURCES = {"web": 0.70, "encyclopedia": 0.05, "book": 0.20, "qa_forum": 0.05}  # C
_EN_SOURCES = {
    "web": 0.40, "encyclopedia": 0.05, "book": 0.15, "qa_forum": 0.05, "paper": 0.10, "math": 0.10, "code": 0.15,
}  # C  # fmt: skip

SYNE_PAPER: dict[str, Any] = {
    "training": {
        "seq_length": 8192,  # P
        "global_batch_size": 512,  # ours: 512 * 8192 = 4.2 M tokens, as YuLan-Mini (2412.17743) by the same team
        "micro_batch_size": 1,  # ours: changes nothing in the result
        "precision": "bf16",  # P
        "recompute": "full",  # P: gradient checkpointing
        "clip_grad": 1.0,  # P
    },
    "parallel": {"zero_stage": 2},  # P
    "optimizer": {
        "lr": 1e-5,  # P
        "adam_beta1": 0.9,  # P
        "adam_beta2": 0.95,  # P; the released scripts leave 0.999 (C)
        "weight_decay": 0.1,  # ours: Llama's own pre-training value
    },
    "lr_schedule": {
        "style": "wsd",  # P
        "start_lr": 1e-7,  # P
        "warmup_tokens": 10_000_000_000,  # P
        "decay_tokens": 0,  # C: the released scripts never decay
    },
    "mixture": {
        "stages": ["bilingual_adaptation"],  # P: topics are weighed in stage 1
        "reweight_interval_tokens": 4_000_000_000,  # ours: no interval is published
    },
    "data": {
        "document_masking": False,  # C: documents are concatenated with EOS and not masked
        "stages": [
            {
                "name": "bilingual_adaptation",
                "tokens": 92_500_000_000,  # P, C
                "languages": {"zh": 0.2, "en": 0.8},  # P, C
                "sources": {"zh": _ZH_SOURCES, "en": _EN_SOURCES},
            },
            {
                "name": "synthetic_enhancement",
                "tokens": 7_500_000_000,  # P, C
                "languages": {"zh": 0.1, "en": 0.7, "synthetic": 0.2},  # P, C
                "sources": {"zh": _ZH_SOURCES, "en": _EN_SOURCES},
            },
        ],
    },
}

# Where `syne_recommended` differs from the paper, and why.
DEVIATIONS: dict[str, dict[str, Any]] = {
    # attention across unrelated documents teaches nothing, and attention per document is also the cheaper one
    "data": {"document_masking": True},
    # the last 8 % of 100 B tokens decay, as in YuLan-Mini (2412.17743) by the same team: the gain of WSD comes from its
    # decay; there 1-sqrt was the best of linear, cosine and 1-sqrt, and the paper has no decay to style
    "lr_schedule": {"decay_tokens": 8_000_000_000, "decay_style": "1-sqrt"},
    # sums gradients over ranks once per step, not once per micro-batch; the results are the same, and an 8B model at
    # TP 4 leaves room for its gradients
    "parallel": {"zero_stage": 1},
    # only attention is recomputed: full recomputation costs a third more arithmetic for memory that tensor and sequence
    # parallelism already save
    "training": {"recompute": "selective"},
}

PRESETS: dict[str, dict[str, Any]] = {
    "syne_paper": SYNE_PAPER,
    "syne_recommended": SYNE_PAPER | {section: SYNE_PAPER[section] | values for section, values in DEVIATIONS.items()},
}
