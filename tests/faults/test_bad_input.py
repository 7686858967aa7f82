"""Bad input through the real commands: a message naming file or key, the documented exit code, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader

from data_mixers.manifest import DatasetManifest, read_manifest
from tests import tiny
from tests.tools import corpus

CONFIG, DATA, CHECKPOINT = 2, 3, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that would go well: model, training data, held-out data, run.yaml."""
    root = tmp_path_factory.mktemp("faults")
    tiny.prepared(root)
    return root


@pytest.fixture(scope="module")
def sliced(root: Path) -> Path:
    """A run folder with complete checkpoints of iterations 1 and 2."""
    run = root / "sliced"
    for _ in range(2):
        tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=1", code=75)
    return run


def refused(done: CompletedProcess[str], code: int, *named: object) -> str:
    """The message of a command that refused: its exit code, no traceback, and everything in `named` in it."""
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    for name in named:
        assert str(name) in message
    return message


def run_refused(
    root: Path, run: Path, code: int, *named: object, overrides: tuple[str, ...] = (), nproc: int = 1
) -> str:
    """`syne train` refuses and leaves nothing that could pass for a checkpoint or a model."""
    before = sorted(run.glob("checkpoints/iter_*"))
    done = tiny.syne("train", "--config", root / "run.yaml", "--nproc", nproc, f"run.dir={run}", *overrides)
    message = refused(done, code, *named)
    assert sorted(run.glob("checkpoints/iter_*")) == before
    assert not list(run.glob("checkpoints/.tmp-*"))
    assert not (run / "hf").exists()
    return message


def copied(root: Path, tmp_path: Path, name: str) -> Path:
    return shutil.copytree(root / name, tmp_path / name)


def import_refused(folder: Path, tmp_path: Path, *named: object) -> None:
    """`syne import` refuses too, and leaves nothing."""
    out = tmp_path / "imported"
    refused(tiny.syne("import", "--hf", folder, "--out", out), CHECKPOINT, *named)
    assert not out.exists() or list(out.iterdir()) == []


# Weights


def test_truncated_safetensors(root: Path, tmp_path: Path) -> None:
    hf = copied(root, tmp_path, "hf")
    file = hf / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    run_refused(root, tmp_path / "run", CHECKPOINT, file, "truncated", overrides=(f"init.path={hf}",), nproc=2)
    import_refused(hf, tmp_path, file, "truncated")


def test_missing_shard(root: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    tiny.hf_model(tiny.hf_config()).save_pretrained(hf, max_shard_size="200KB")
    shard = sorted(hf.glob("model-*.safetensors"))[1]
    shard.unlink()
    run_refused(root, tmp_path / "run", CHECKPOINT, shard, overrides=(f"init.path={hf}",))
    import_refused(hf, tmp_path, shard)


def test_weight_of_a_wrong_dtype(root: Path, tmp_path: Path) -> None:
    hf = copied(root, tmp_path, "hf")
    weights = load_file(hf / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.ones(64, dtype=torch.int32)}, hf / "model.safetensors")
    where = (hf / "model.safetensors", "model.norm.weight", "I32")
    run_refused(root, tmp_path / "run", CHECKPOINT, *where, overrides=(f"init.path={hf}",))
    import_refused(hf, tmp_path, *where)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_infinity_in_a_weight(root: Path, tmp_path: Path, value: float) -> None:
    hf = copied(root, tmp_path, "hf")
    weights = load_file(hf / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    weights[name][5, 7] = value
    save_file(weights, hf / "model.safetensors")
    # Only the second stage of the pipeline reads this weight; the first must not wait for it.
    pp2 = ("parallel.pipeline_model_parallel_size=2", f"init.path={hf}")
    run_refused(root, tmp_path / "run", CHECKPOINT, hf / "model.safetensors", name, overrides=pp2, nproc=2)
    import_refused(hf, tmp_path, name)


# Vocabulary and tokenizer


def test_vocabulary_smaller_than_the_tokenizer(root: Path, tmp_path: Path) -> None:
    hf = tiny.hf_folder(tmp_path / "hf", vocab_size=250)
    run_refused(root, tmp_path / "run", CONFIG, "data.manifests", "256", "250", overrides=(f"init.path={hf}",))


def test_vocabulary_larger_than_the_tokenizer_is_padding_and_is_said(root: Path, tmp_path: Path) -> None:
    hf = tiny.hf_folder(tmp_path / "hf", vocab_size=300)
    stop = "training.stop_after_iterations=1"
    done = tiny.train(root / "run.yaml", f"run.dir={tmp_path / 'run'}", f"init.path={hf}", stop, code=75)
    said = [line for line in done.stderr.splitlines() if "300" in line and "256" in line]
    assert len(said) == 1 and "the model's vocabulary" in said[0]
    same = tiny.train(root / "run.yaml", f"run.dir={tmp_path / 'same'}", stop, code=75)
    assert "the model's vocabulary" not in same.stderr


def with_tokenizer(root: Path, tmp_path: Path, *, vocab_size: int) -> Path:
    """The model's folder with a tokenizer in it, and data.manifests preprocessed with another or the same one."""
    hf = tiny.hf_folder(tmp_path / "hf", vocab_size=700)
    corpus.hf_folder(hf, vocab_size=vocab_size)
    return hf


def preprocessed(tmp_path: Path, tokenizer: Path) -> Path:
    pages = corpus.write_jsonl(tmp_path / "pages.jsonl", corpus.documents(400))
    done = tiny.syne(
        "data", "preprocess", "--input", pages, "--tokenizer", tokenizer, "--out", tmp_path / "data",
        "--language", "zh", "--topic", "law",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "data"


def test_a_tokenizer_whose_ids_differ_from_the_data_s(root: Path, tmp_path: Path) -> None:
    hf = with_tokenizer(root, tmp_path, vocab_size=600)
    other = corpus.hf_folder(tmp_path / "other", vocab_size=500)
    data = preprocessed(tmp_path, other)
    tree = tiny.run_tree(tmp_path, hf=hf, validation={"manifests": []})
    tree["data"] |= {"manifests": [str(data)]}
    tree["data"]["stages"][0]["languages"] = {"zh": 1.0}
    tiny.write_run(tmp_path, tree)
    message = run_refused(tmp_path, tmp_path / "run", CONFIG, "data.manifests", hf, data)
    assert "tokenizer" in message
    # The same through a checkpoint that carries its tokenizer.
    done = tiny.syne("import", "--hf", hf, "--out", tmp_path / "imported")
    assert done.returncode == 0, done.stderr
    imported = ("init.from=checkpoint", f"init.path={tmp_path / 'imported'}")
    run_refused(tmp_path, tmp_path / "run", CONFIG, "data.manifests", "tokenizer", overrides=imported)
    # And `syne plan` says it on a login node.
    refused(tiny.syne("plan", "--config", tmp_path / "run.yaml", "--nproc", 1), CONFIG, "data.manifests", hf)


def test_the_same_ids_in_another_file_are_the_same_tokenizer(root: Path, tmp_path: Path) -> None:
    hf = with_tokenizer(root, tmp_path, vocab_size=600)
    written = json.loads((hf / "tokenizer.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(hf, other)
    (other / "tokenizer.json").write_text(json.dumps(written, indent=7, ensure_ascii=True))
    assert (other / "tokenizer.json").read_bytes() != (hf / "tokenizer.json").read_bytes()
    data = preprocessed(tmp_path, other)
    tree = tiny.run_tree(tmp_path, hf=hf, validation={"manifests": []})
    tree["data"] |= {"manifests": [str(data)]}
    tree["data"]["stages"][0]["languages"] = {"zh": 1.0}
    done = tiny.syne("plan", "--config", tiny.write_run(tmp_path, tree), "--nproc", 1)
    assert done.returncode == 0, done.stderr


# Data files


def damaged_data(root: Path, tmp_path: Path) -> tuple[Path, DatasetManifest]:
    return (data := copied(root, tmp_path, "train")), read_manifest(data)


@pytest.mark.parametrize("nproc", [1, 2])
def test_bin_shorter_than_idx_says(root: Path, tmp_path: Path, nproc: int) -> None:
    data, manifest = damaged_data(root, tmp_path)
    file = data / (manifest.sources[0].shards[0].prefix + ".bin")
    file.write_bytes(file.read_bytes()[:-100])
    run_refused(root, tmp_path / "run", DATA, file.name, overrides=(f"data.manifests=[{data}]",), nproc=nproc)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_token_id_outside_the_vocabulary(root: Path, tmp_path: Path, num_workers: int) -> None:
    data, manifest = damaged_data(root, tmp_path)
    for source in manifest.sources:
        file = data / (source.shards[0].prefix + ".bin")
        tokens = np.fromfile(file, dtype=np.uint16)
        tokens[::7] = 999
        tokens.tofile(file)
    overrides = (f"data.manifests=[{data}]", f"data.num_workers={num_workers}")
    run_refused(root, tmp_path / "run", DATA, str(data), "999", "256", overrides=overrides, nproc=2)


def test_a_data_file_that_is_not_there(root: Path, tmp_path: Path) -> None:
    data, manifest = damaged_data(root, tmp_path)
    (file := data / (manifest.sources[0].shards[0].prefix + ".idx")).unlink()
    run_refused(root, tmp_path / "run", DATA, file.name, overrides=(f"data.manifests=[{data}]",))


# Run folder and configuration


@pytest.mark.parametrize("folder", ["file/run", "file", "/proc/run"])
def test_unwritable_run_folder(root: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a regular file")
    run = tmp_path / folder
    refused(tiny.syne("train", "--config", root / "run.yaml", f"run.dir={run}"), CONFIG, "run.dir")
    assert (tmp_path / "file").read_text() == "a regular file"


def test_five_faults_are_one_report(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = tiny.syne(
        "train", "--config", root / "run.yaml", "--nproc", 2, f"run.dir={run}",
        "parallel.tensor_model_parallel_size=3", "training.seq_length=9999", "init.path=/nowhere",
        "lr_schedule.start_lr=1", "validation.manifests=[/nowhere]",
    )  # fmt: skip
    keys = ("parallel", "init.path", "lr_schedule.start_lr", "validation.manifests", "5 faults")
    message = refused(done, CONFIG, *keys)
    assert len(message.strip().splitlines()) == 6
    assert not run.exists()


def test_five_unknown_or_mistyped_values_are_one_report(root: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((root / "run.yaml").read_text())
    tree["training"] |= {"global_batch_sise": 8, "micro_batch_size": "two", "precision": "fp8"}
    tree["optimizer"] |= {"adam_beta1": 1.5}
    tree["modle"] = {}
    keys = ("training.global_batch_sise", "micro_batch_size", "precision", "optimizer.adam_beta1", "modle")
    done = tiny.syne("train", "--config", tiny.write_run(tmp_path, tree))
    message = refused(done, CONFIG, *keys)
    assert "global_batch_size" in message and "model" in message  # the nearest names


# Checkpoints


@pytest.mark.parametrize(
    ("change", "nproc"),
    [
        ("run.seed=8", 2),
        ("training.seq_length=16", 1),
        ("data.stages.0.languages={zh: 0.5, en: 0.5}", 1),
        ("training.global_batch_size=4", 1),
    ],
)
def test_resume_with_a_changed_past(root: Path, sliced: Path, change: str, nproc: int) -> None:
    message = run_refused(root, sliced, CONFIG, "iter_0000002", overrides=(change,), nproc=nproc)
    assert change.partition("=")[0].rpartition(".")[2] in message or "data" in message


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(root: Path, sliced: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sliced, tmp_path / "run")
    (file,) = (run / "checkpoints/iter_0000002").glob("__0_*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = tiny.train(root / "run.yaml", f"run.dir={run}", "training.stop_after_iterations=1", code=75)
    assert f"passing over iter_0000002: {file}" in done.stderr
    assert "resume from" in done.stderr and "iteration 1 of 5" in done.stderr
    assert [row["iteration"] for row in tiny.rows(run, "train")] == [1, 2]
    straight = tiny.rows(sliced, "train")
    assert [row["lm_loss"] for row in tiny.rows(run, "train")] == [row["lm_loss"] for row in straight]


def test_a_damaged_master_that_one_rank_finds_is_named(root: Path, tmp_path: Path) -> None:
    """Hashes are not asked; of the embedding it is rank 1 that reads masters, and rank 0 that speaks."""
    run, bf16 = tmp_path / "run", "training.precision=bf16"
    slice_of_one = ("training.stop_after_iterations=1", bf16)
    tiny.train(root / "run.yaml", f"run.dir={run}", *slice_of_one, nproc=2, code=75)
    stored = FileSystemReader(checkpoint := run / "checkpoints/iter_0000001").read_metadata().storage_data
    key = "embedding.word_embeddings.weight"
    place = next(place for index, place in stored.items() if index.fqn == f"optimizer.master.{key}")
    assert place.relative_path.startswith("__1_")
    with (checkpoint / place.relative_path).open("r+b") as stream:
        stream.seek(place.offset + place.length // 2)
        stream.write(b"\x3f" * 64)
    asked = (bf16, "checkpoint.verify_hashes=false")
    message = run_refused(root, run, CHECKPOINT, f"error: {key}: the optimizer's fp32 master", overrides=asked, nproc=2)
    assert message.count("error: ") == 1


def test_a_checkpoint_of_another_architecture(root: Path, sliced: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sliced, tmp_path / "run")
    for changes, named in (
        ({"hidden_size": 32, "head_dim": 16}, "hidden_size is 64 there, 32 in"),
        ({"num_hidden_layers": 2}, "num_layers is 4 there, 2 in"),
        ({"tie_word_embeddings": True}, "tied is False there, True in"),
        # The same shapes, so that only the words of config.json tell.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rotary_base is 10000.0 there, 500000.0 in"),
    ):
        hf = tiny.hf_folder(tmp_path / named.split()[0], **changes)
        run_refused(root, run, CHECKPOINT, named, overrides=(f"init.path={hf}",))


def test_branch_from_a_weights_only_checkpoint(root: Path, tmp_path: Path) -> None:
    done = tiny.syne("import", "--hf", root / "hf", "--out", tmp_path / "imported")
    assert done.returncode == 0, done.stderr
    branch = ("init.from=checkpoint", f"init.path={tmp_path / 'imported'}", "init.mode=branch")
    run_refused(root, tmp_path / "run", CHECKPOINT, tmp_path / "imported", "init.mode=init", overrides=branch)


# A disk that refuses


def limited(root: Path, run: Path, size_bytes: int, *overrides: str) -> CompletedProcess[str]:
    """`syne train` on two ranks, none of which can write a file larger than size_bytes."""
    command = ["train", "--config", str(root / "run.yaml"), "--nproc", "2", f"run.dir={run}", *overrides]
    program = (
        "import resource, runpy\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size_bytes}, {size_bytes}))\n"
        "runpy.run_module('tools', run_name='__main__', alter_sys=True)\n"
    )
    if size_bytes > 10_000:
        return tiny.python("-c", program, *command)
    # What a warm process says goes into files, which this limit would cut too.
    return subprocess.run(
        [sys.executable, "-c", program, *command], cwd=tiny.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("in_background", ["true", "false"])
def test_no_room_for_a_checkpoint(root: Path, sliced: Path, tmp_path: Path, in_background: str) -> None:
    run = shutil.copytree(sliced, tmp_path / "run")
    before = {file: file.read_bytes() for file in run.glob("checkpoints/**/*") if file.is_file()}
    saving = ("checkpoint.interval_tokens=256", "checkpoint.keep_last=1", f"checkpoint.async_save={in_background}")
    done = limited(root, run, 500_000, *saving)  # a rank writes about 900 kB
    refused(done, CHECKPOINT, "iter_0000003", "File too large")
    assert {file: file.read_bytes() for file in run.glob("checkpoints/**/*") if file.is_file()} == before
    tiny.train(root / "run.yaml", f"run.dir={run}")
    assert [row["iteration"] for row in tiny.rows(run, "train")] == [1, 2, 3, 4, 5]


def test_a_checkpoint_folder_that_cannot_be_opened_stops_every_rank(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to("/proc/tty")  # a folder in which nobody can make another
    done = tiny.syne(
        "train", "--config", root / "run.yaml", "--nproc", 2, f"run.dir={run}", "training.stop_after_iterations=1"
    )
    refused(
        done, CHECKPOINT, "iter_0000001: not written", "No such file or directory", "checkpoints/.tmp-iter_0000001-"
    )


@pytest.mark.parametrize(("size_bytes", "file"), [(1_000, "run_config.yaml"), (20_000, "metrics.jsonl")])
def test_no_room_for_what_a_run_reports(root: Path, tmp_path: Path, size_bytes: int, file: str) -> None:
    run = tmp_path / "run"
    done = limited(root, run, size_bytes, "data.stages.0.tokens=51200", "data.max_epochs=100")
    refused(done, CONFIG, run / file, "File too large")
    assert not list(run.glob("checkpoints/*"))


def test_a_held_out_token_id_outside_the_vocabulary(root: Path, tmp_path: Path) -> None:
    held = copied(root, tmp_path, "held")
    file = held / (read_manifest(held).sources[0].shards[0].prefix + ".bin")
    tokens = np.fromfile(file, dtype=np.uint16)
    tokens[3] = 256
    tokens.tofile(file)
    run_refused(root, tmp_path / "run", DATA, file, "256", overrides=(f"validation.manifests=[{held}]",))
