"""Our model and transformers give the same logits, at positions where a wrong rotary rule would show."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_mixers.errors import ConfigError
from megatron_synE.alone import build_reference, logits
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config
from megatron_synE.model.packed_row import packed_row
from tests import tiny

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 1024,
}  # fmt: skip
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "one group per head": {"num_key_value_heads": 4},
    "two groups": {"num_key_value_heads": 2},
    "one group": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "head_dim 48": {"head_dim": 48},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "vocabulary 251": {"vocab_size": 251},
    "theta 500000": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
}


def architecture_of(folder: Path) -> LlamaArchitecture:
    return architecture_from_hf(read_hf_config(folder), where=str(folder))


def from_transformers(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(tokens.unsqueeze(0)).logits.squeeze(0).float()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_equal_transformers_up_to_position_4095(tmp_path: Path, name: str) -> None:
    folder = tiny.hf_folder(tmp_path, num_hidden_layers=2, **CONFIGURATIONS[name])
    architecture = architecture_of(folder)
    tokens = torch.randint(0, architecture.vocab_size, (4096,), generator=torch.Generator().manual_seed(1))
    ours = logits(build_reference(architecture, folder, seq_length=4096), tokens)
    theirs = from_transformers(folder, tokens)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4  # fp32 sums in another order; logits are of order 1
    assert theirs.abs().max() > 0.1


def test_two_rotary_rules_in_one_config_are_refused_where_they_differ(tmp_path: Path) -> None:
    folder = tiny.hf_folder(
        tmp_path, max_position_embeddings=8192, rope_parameters=CONFIGURATIONS["theta 500000"]["rope_parameters"]
    )
    file = folder / "config.json"
    written = read_hf_config(folder)
    tokens = torch.randint(0, 256, (256,), generator=torch.Generator().manual_seed(3))
    before = from_transformers(folder, tokens)
    file.write_text(json.dumps(written | {"rope_scaling": LLAMA3}))  # as somebody adds it for a longer context
    assert (from_transformers(folder, tokens) - before).abs().max() > 1e-4  # transformers 5 takes the added one
    with pytest.raises(ConfigError, match=r"rope_parameters=.* and rope_scaling=.* give different angles"):
        architecture_of(folder)
    file.write_text(json.dumps(written | {"rope_scaling": None, "rope_theta": 1.0}))
    assert architecture_of(folder).rotary_base == 500000.0
    file.write_text(json.dumps(written | {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3}))
    assert architecture_of(folder).rope_scaling is not None
    file.write_text(json.dumps(written | {"rope_parameters": LLAMA3, "original_max_position_embeddings": 512}))
    with pytest.raises(ConfigError, match="original_max_position_embeddings is 512 and, with the rope scaling, 1024"):
        architecture_of(folder)
    file.write_text(json.dumps(written | {"rope_parameters": LLAMA3 | {"low_freq_factor": None}}))
    with pytest.raises(ConfigError, match="rope_scaling lacks low_freq_factor"):
        architecture_of(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 0), ("hidden_size", "64"), ("vocab_size", 256.0), ("num_attention_heads", None),
        ("head_dim", -1), ("rope_theta", "1e4"), ("rope_scaling", "linear"), ("tie_word_embeddings", "false"),
        ("rope_parameters", {"rope_type": "linear", "factor": "4"}),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    folder = tiny.hf_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(read_hf_config(folder) | {field: value}))
    with pytest.raises(ConfigError, match="factor='4'" if field == "rope_parameters" else field):
        architecture_of(folder)


@pytest.mark.parametrize("value", ["1e4", "high", -1.0, True, [10000.0], math.inf])
def test_a_base_of_angles_that_is_none_is_refused_where_transformers_5_has_it(tmp_path: Path, value: object) -> None:
    config = read_hf_config(tiny.hf_folder(tmp_path))
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": value}
    with pytest.raises(ConfigError, match=r"rope_parameters\.rope_theta=.* is not a number above 0"):
        architecture_from_hf(config, where="config.json")


def test_packed_documents_equal_separate_ones_for_both_choices_of_max_seqlen(tmp_path: Path) -> None:
    folder = tiny.hf_folder(tmp_path)
    model = build_reference(architecture_of(folder), folder, seq_length=96)
    tokens = torch.randint(0, 256, (96,), generator=torch.Generator().manual_seed(2))
    bounds = (0, 1, 30, 31, 77, 96)
    separate = torch.cat([from_transformers(folder, tokens[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)])
    assert (logits(model, tokens, bounds) - separate).abs().max() <= 1e-5
    # megatron-core's own rotary embedding restarts only if max_seqlen is not the whole row; ours must not care.
    row = packed_row(bounds, max_segments=16, device=tokens.device)
    row.max_seqlen_q = row.max_seqlen_kv = len(tokens)
    with torch.no_grad():
        out = model.gather_logits(model(tokens.unsqueeze(0), None, None, packed_seq_params=row)).squeeze(0)
    assert (out - separate).abs().max() <= 1e-5
    # The check can fail: without borders the later documents see the earlier ones.
    assert (logits(model, tokens) - separate).abs().max() > 1e-2
