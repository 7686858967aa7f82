"""An exported model says under which terms it stands, what it must be called, and where it came from."""

import json

import pytest

from megatron_synE.checkpoint.layout import CommonState
from megatron_synE.checkpoint.model_card import base_licence, model_card

SCHEDULE = {
    "seed": 7,
    "seq_length": 4096,
    "phases": [{"name": "stage1", "num_samples": 1200, "weights": [["zh/web/law", 1 << 31], ["en/web/code", 1 << 31]]}],
}
STATE = CommonState(
    iteration=300, consumed_samples=1200, consumed_tokens=4_915_200, adam_step=300, has_optimizer=True,
    weights_dtype="bfloat16", tied=False, vocab_size=128256, schedule={"json": json.dumps(SCHEDULE)},
    schedule_hash="5c4ed01e", tokenizer_digest="70ce",
)  # fmt: skip


def card(folder, *, name="My-8B", vocab_size=32000, state=STATE):
    manifest = {"lineage_hash": "11ea6e", "parent_lineage_hash": "0a9e"}
    return model_card(name=name, config={"vocab_size": vocab_size}, state=state, manifest=manifest, carried=folder)


@pytest.mark.parametrize(
    ("file", "text", "prefix", "notice"),
    [
        ("README.md", "---\nlicense: llama3\n---\n", "Llama-3-", "Built with Meta Llama 3"),
        ("README.md", "---\nlicense: llama3.1\n---\n", "Llama-", "Built with Llama"),
        ("README.md", "---\nlicense: apache-2.0\n---\n", None, None),
        ("LICENSE", "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n", "Llama-3-", "Built with Meta Llama 3"),
        ("LICENSE.txt", "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "Llama-", "Built with Llama"),
        ("README.md", "no front matter", None, None),
        ("README.md", "---\n: [broken\n---\n", None, None),
    ],
)
def test_the_terms_of_the_base_are_found(tmp_path, file, text, prefix, notice):
    (tmp_path / file).write_text(text)
    licence = base_licence(carried=tmp_path, vocab_size=32000)
    assert (licence.name_prefix, licence.notice) == (prefix, notice)


def test_without_card_or_licence_the_vocabulary_of_llama_3_is_taken_for_it(tmp_path):
    assert base_licence(carried=tmp_path / "absent", vocab_size=128256).name_prefix == "Llama-3-"
    assert base_licence(carried=tmp_path / "absent", vocab_size=32000).identifier is None


def test_a_licence_named_in_the_card_wins_over_the_vocabulary(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base_licence(carried=tmp_path, vocab_size=128256).name_prefix is None


def test_the_name_gets_the_prefix_once(tmp_path):
    assert "# Llama-3-My-8B\n" in card(tmp_path, vocab_size=128256)
    assert "# Llama-3-SynE\n" in card(tmp_path, name="Llama-3-SynE", vocab_size=128256)
    assert "# My-8B\n" in card(tmp_path)


def test_data_recipe_and_lineage_are_in_the_card(tmp_path):
    text = card(tmp_path)
    assert "| stage1 | 1,200 | zh/web/law 50.0%, en/web/code 50.0% |" in text
    assert "Sequence length 4096, seed 7." in text
    assert "- tokens: 4,915,200" in text
    for value in ("11ea6e", "0a9e", "5c4ed01e", "70ce"):
        assert f"`{value}`" in text


def test_what_is_not_known_is_said(tmp_path):
    text = card(tmp_path, state=None)
    assert "does not say how it was trained" in text
    assert "named no licence" in text
    assert "None recorded." in text
