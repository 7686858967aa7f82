"""The recipe as values: `syne_paper` is what was published, `syne_recommended` is that plus a table of reasons."""

import copy
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Deviation:
    """One value in which `syne_recommended` differs from the paper."""

    key: str
    paper: Any
    recommended: Any
    reason: str


DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "data.document_masking",
        False,
        True,
        "attention across unrelated documents teaches nothing, and attention per document is also the cheaper one",
    ),
    Deviation(
        "lr_schedule.decay_tokens",
        0,
        8_000_000_000,
        "the last 8 % of 100 B tokens decay, as in YuLan-Mini (2412.17743) by the same team: the gain of WSD comes"
        " from its decay",
    ),
    Deviation(
        "lr_schedule.decay_style",
        None,
        "1-sqrt",
        "best of linear, cosine and 1-sqrt in YuLan-Mini (2412.17743); the paper has no decay to style",
    ),
    Deviation(
        "parallel.zero_stage",
        2,
        1,
        "sums gradients over ranks once per step, not once per micro-batch; the results are the same, and an 8B model"
        " at TP 4 leaves room for its gradients",
    ),
    Deviation(
        "training.recompute",
        "full",
        "selective",
        "only attention is recomputed: full recomputation costs a third more arithmetic for memory that tensor and"
        " sequence parallelism already save",
    ),
)


def _recommended() -> dict[str, Any]:
    tree = copy.deepcopy(SYNE_PAPER)
    for deviation in DEVIATIONS:
        *sections, name = deviation.key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = deviation.recommended
    return tree


PRESETS: dict[str, dict[str, Any]] = {"syne_paper": SYNE_PAPER, "syne_recommended": _recommended()}
