"""import, export, verify and data preprocess as commands, on a small real model and a small real text."""

import json
import os
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from data_mixers.manifest import read_manifest
from tools.cli import main


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=101, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_import_export_verify_is_a_circle(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--hf", str(hf), "--out", str(tmp_path / "ckpt")]) == 0
    printed = capsys.readouterr().out
    assert "verified bit for bit" in printed
    assert "logits within" in printed
    assert main(["export", "--checkpoint", str(tmp_path / "ckpt"), "--out", str(tmp_path / "back")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (hf, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert main(["verify", "--hf", str(hf), "--checkpoint", str(tmp_path / "ckpt"), "--no-logits"]) == 0


def test_verify_exits_4_and_names_the_tensor_that_differs(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "--hf", str(hf), "--out", str(tmp_path / "ckpt"), "--no-verify"]) == 0
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed/config.json").write_bytes((hf / "config.json").read_bytes())
    tensors = load_file(hf / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, tmp_path / "changed/model.safetensors", metadata={"format": "pt"})
    arguments = ["verify", "--hf", str(tmp_path / "changed"), "--checkpoint", str(tmp_path / "ckpt"), "--no-logits"]
    assert main(arguments) == 4
    assert "model.layers.1.mlp.up_proj.weight (1 values)" in capsys.readouterr().err


def test_a_missing_folder_exits_4_or_2_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--hf", str(tmp_path / "gone"), "--out", str(tmp_path / "ckpt")]) in (2, 4)
    assert str(tmp_path / "gone") in capsys.readouterr().err
    assert not list(tmp_path.glob("ckpt/iter_*"))


@pytest.mark.parametrize(
    "arguments", [["import", "--hf", "gone", "--out"], ["export", "--checkpoint", "gone", "--out"],
                  ["verify", "--hf", "gone", "--checkpoint"]],
)  # fmt: skip
def test_conversion_leaves_cards_alone(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one in sight megatron-core makes the whole model in fp32 on it: 32 GB for 8B, where none is needed."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "out"]) in (2, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_preprocess_writes_a_manifest_that_the_trainer_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {word: index for index, word in enumerate(["<eos>", "<unk>", "law", "of", "the", "land"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>", "<unk>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines = [json.dumps({"text": f"the law of the land {number}", "topic": "law"}) for number in range(20)]
    (tmp_path / "pages.jsonl").write_text("\n".join(lines), encoding="utf-8")
    arguments = ["--input", str(tmp_path / "*.jsonl"), "--tokenizer", str(tmp_path / "tokenizer.json")]
    arguments += ["--out", str(tmp_path / "data"), "--language", "en", "--topic-key", "topic", "--eos-token", "<eos>"]
    assert main(["data", "preprocess", *arguments]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip() == str(tmp_path / "data/manifest.json")
    (source,) = read_manifest(tmp_path / "data").sources
    assert source.name == "en/web/law"
    assert source.num_tokens == 20 * 7  # six words and EOS
