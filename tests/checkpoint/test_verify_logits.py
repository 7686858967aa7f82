"""Our model and transformers, each from its own folder, agree over the whole context; a real difference is found."""

import json

import pytest

from megatron_synE.checkpoint import layout
from megatron_synE.exit_codes import CheckpointError
from tools.checkpoint.importer import import_hf
from tools.checkpoint.verifier import verify

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_logits_agree_up_to_the_last_position(make_hf, tmp_path, tied):
    hf, _ = make_hf(
        tie_word_embeddings=tied, rope_parameters=LLAMA3, max_position_embeddings=8192, initializer_range=0.2
    )
    report = verify(hf, import_hf(hf, tmp_path / "ckpt").checkpoint, positions=65)
    assert (report.num_positions, report.last_position) == (65, 8128)
    assert report.max_logit_difference < 1e-4
    assert "up to 8128" in report.summary()


def test_a_model_that_computes_otherwise_from_the_same_tensors_is_found(make_hf, tmp_path, monkeypatch):
    """Both configs agree, so only logits can tell: ours is made to read another rotary scaling."""
    hf, _ = make_hf(rope_parameters=LLAMA3, max_position_embeddings=8192, initializer_range=0.2)
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    from megatron_synE import alone

    build = alone.build_reference

    def without_scaling(architecture, weights, *, seq_length):
        from dataclasses import replace

        return build(replace(architecture, rope_scaling=None), weights, seq_length=seq_length)

    monkeypatch.setattr(alone, "build_reference", without_scaling)
    with pytest.raises(CheckpointError, match="differ from ours by up to"):
        verify(hf, checkpoint, positions=65)


def test_both_sides_add_in_the_same_order(make_hf, tmp_path, monkeypatch):
    """Our kernels add in another: on a model's worst token fp32's own error then reached the tolerance."""
    from megatron_synE import alone

    asked, dtypes = [], []
    choose = alone.choose

    def chosen(*args, dtype, **named):
        dtypes.append(dtype)
        asked.append(choose(*args, dtype=dtype, **named))
        return asked[-1]

    monkeypatch.setattr(alone, "choose", chosen)
    hf, _ = make_hf()
    report = verify(hf, import_hf(hf, tmp_path / "ckpt").checkpoint, positions=65)
    plain, ours = (choose("native", alone.CPU, kernels=kernels).kernels.names for kernels in ("torch", "auto"))
    assert [layers.kernels.names for layers in asked] == [plain] != [ours]
    assert dtypes == ["fp32"]  # or a card without bf16 would be refused
    assert report.max_logit_difference < 1e-6


def test_tensors_and_config_come_before_logits(make_hf, tmp_path):
    hf, _ = make_hf()
    checkpoint = import_hf(hf, tmp_path / "ckpt").checkpoint
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    layout.write_manifest(checkpoint, {})
    with pytest.raises(CheckpointError, match="rope_theta: absent against"):
        verify(hf, checkpoint)


def test_without_logits_the_report_says_so(make_hf, tmp_path):
    hf, _ = make_hf()
    report = verify(hf, import_hf(hf, tmp_path / "ckpt").checkpoint, logits=False)
    assert report.num_positions == 0
    assert "logits not compared (not asked for)" in report.summary()
