"""Averages of checkpoints against a mean that numpy takes in float64, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_mixers.errors import ConfigError
from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.dcp import Chunk, save_chunks, whole
from megatron_synE.checkpoint.hf_export import write_hf_folder
from megatron_synE.exit_codes import CheckpointError
from tests.tiny import hf_folder
from tools.checkpoint import averager
from tools.checkpoint.averager import average, find_checkpoints
from tools.checkpoint.importer import import_hf
from tools.cli import main


def run_of(root: Path, *, seeds: tuple[int, ...] = (1, 2, 3), dtype: torch.dtype = torch.float32) -> Path:
    """A run folder whose checkpoints 10, 20, … are models of these seeds."""
    for number, seed in enumerate(seeds, start=1):
        imported = import_hf(hf_folder(root / f"hf{seed}", seed=seed, dtype=dtype), root / f"in{seed}", verify=False)
        target = root / "run/checkpoints" / layout.iteration_name(10 * number)
        target.parent.mkdir(parents=True, exist_ok=True)
        imported.checkpoint.rename(target)
        state = json.loads((target / "state.json").read_text())
        state |= {"iteration": 10 * number, "consumed_tokens": 1000 * number}
        layout.write_json(target / "state.json", state)
        layout.write_manifest(target, {"kind": "test"})
    return root / "run"


def values(folder: Path, key: str) -> np.ndarray:
    reader = ChunkReader(folder)
    return reader.read(key, (0,) * len(reader.shape(key)), reader.shape(key), torch.float64).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_the_float64_mean_rounded_once(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averager, "CHUNK_BYTES", 3000)  # many blocks a tensor, down to single rows
    run = run_of(tmp_path, dtype=dtype)
    report = average(find_checkpoints([run], 3), tmp_path / "mean")
    assert report.checkpoint.name == "iter_0000030" and not report.of_masters
    folders = sorted((run / "checkpoints").glob("iter_*"))
    for key in ChunkReader(folders[0]).keys:
        mean = np.mean([values(folder, key) for folder in folders], axis=0, dtype=np.float64)
        by_hand = torch.from_numpy(mean).to(dtype)
        got = ChunkReader(report.checkpoint).read(key, (0,) * by_hand.dim(), by_hand.shape)
        assert torch.equal(got, by_hand), key
    layout.check_complete(report.checkpoint, verify_hashes=True)
    state = layout.read_state(report.checkpoint)
    assert (state.iteration, state.consumed_tokens, state.has_optimizer) == (30, 3000, False)


def test_masters_are_averaged_where_every_checkpoint_has_them(tmp_path: Path) -> None:
    """Two bf16 weights that are equal, with masters that are not: their mean lies on the other side of rounding."""
    run = run_of(tmp_path, seeds=(1, 2), dtype=torch.bfloat16)
    for number, folder in enumerate(sorted((run / "checkpoints").glob("iter_*"))):
        reader = ChunkReader(folder)
        chunks: list[Chunk] = []
        for key in reader.keys:
            weight = reader.read(key, (0,) * len(reader.shape(key)), reader.shape(key))
            moved = weight.float() * (1 + number * 2**-7)
            chunks += [whole(key, weight), whole(f"optimizer.master.{key}", moved)]
        for file in folder.glob("*.distcp"):
            file.unlink()
        save_chunks(folder, chunks)
        layout.write_manifest(folder, {"kind": "test"})
    first, second = sorted((run / "checkpoints").glob("iter_*"))
    report = average([first, second], tmp_path / "mean")
    assert report.of_masters
    key = "decoder.layers.1.mlp.linear_fc2.weight"
    masters = [values(folder, f"optimizer.master.{key}") for folder in (first, second)]
    by_hand = torch.from_numpy((masters[0] + masters[1]) / 2).to(torch.bfloat16)
    assert torch.equal(ChunkReader(report.checkpoint).read(key, (0, 0), by_hand.shape), by_hand)


def test_an_average_is_exported_like_any_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, seeds=(1, 2))
    assert main(["average", str(run), "--last", "2", "--out", str(tmp_path / "mean")]) == 0
    assert "mean of the weights of iter_0000010, iter_0000020" in capsys.readouterr().out
    write_hf_folder(tmp_path / "mean", tmp_path / "hf")  # compares every weight
    assert (tmp_path / "hf/model.safetensors").is_file()
    lineage = layout.read_manifest(tmp_path / "mean/iter_0000020")
    assert lineage["averaged"] == ["iter_0000010", "iter_0000020"]
    assert lineage["averaged_lineage_hashes"][1] == lineage["parent_lineage_hash"]


def test_other_architectures_tokenizers_and_places_are_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, seeds=(1, 2))
    first, second = sorted((run / "checkpoints").glob("iter_*"))
    other = import_hf(hf_folder(tmp_path / "wide", intermediate_size=128), tmp_path / "wide_ckpt").checkpoint
    with pytest.raises(CheckpointError, match="ffn_hidden_size is 128, not 112"):
        average([first, other], tmp_path / "mean")
    stretched = import_hf(hf_folder(tmp_path / "eps", rms_norm_eps=1e-6), tmp_path / "eps_ckpt").checkpoint
    with pytest.raises(CheckpointError, match="layernorm_epsilon"):  # same shapes, another model
        average([first, stretched], tmp_path / "mean")
    for folder, digest in ((first, "a" * 64), (second, "b" * 64)):
        layout.write_json(
            folder / "state.json", json.loads((folder / "state.json").read_text()) | {"tokenizer_digest": digest}
        )
        layout.write_manifest(folder, {})
    with pytest.raises(CheckpointError, match="another tokenizer"):
        average([first, second], tmp_path / "mean")
    assert not (tmp_path / "mean").exists() or not list((tmp_path / "mean").iterdir())


def test_what_is_no_set_of_checkpoints_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path, seeds=(1, 2))
    with pytest.raises(ConfigError, match="holds 2 complete checkpoints"):
        find_checkpoints([run], 3)
    with pytest.raises(ConfigError, match="two or more"):
        find_checkpoints([run], None)
    with pytest.raises(ConfigError, match="--last K goes with one run"):
        find_checkpoints([run, run], 2)
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        find_checkpoints([tmp_path / "nowhere"], 2)
    with pytest.raises(ConfigError, match=r"iter_\d+ is one checkpoint; name the run"):
        find_checkpoints([find_checkpoints([run], 2)[0]], 2)
    folders = find_checkpoints([run], 2)
    with pytest.raises(CheckpointError, match="is one of the checkpoints to average"):
        average(folders, run / "checkpoints")
    with pytest.raises(CheckpointError, match="holds the checkpoints of a run"):
        average(folders, run)
    shutil.rmtree(folders[0])
    with pytest.raises(ConfigError, match="holds 1 complete"):
        find_checkpoints([run], 2)
