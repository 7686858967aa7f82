"""`syne data score-ppl` over real token files: equal for any workers, resumable, stale scores refused."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import DatasetManifest, read_manifest, write_manifest
from megatron_synE.data.indexed import IndexedWriter
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.runtime.environment import Ranks, independent_ranks, ranks_from_environment
from tests import tiny
from tests.tools.token_files import documents_of
from tools.data import score, score_chunks
from tools.data.score import ScoreOptions, score_ppl
from tools.data.scores_file import open_scores, read_origin, scores_path
from tools.data.slurm_options import SlurmArray
from tools.data.stage import only_one

SOURCES = {("zh", "web", "law"): 900, ("en", "web", "computing"): 700}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token files of several chunks each."""
    monkeypatch.setattr(score, "MIN_CHUNK_TOKENS", 250)
    tiny.manifest(tmp_path / "data", SOURCES)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.hf_folder(tmp_path_factory.mktemp("model") / "hf", num_hidden_layers=2)


def options(data: Path, hf: Path | None, **changes: object) -> ScoreOptions:
    fields: dict[str, object] = {"data": data, "hf": hf, "precision": "fp32", "device": "cpu", "seq_length": 128}
    return ScoreOptions(**(fields | changes))  # type: ignore[arg-type]


def scores_of(manifest: DatasetManifest) -> dict[str, bytes]:
    shards = [shard for entry in manifest.sources for shard in entry.shards]
    return {s.prefix: scores_path(manifest.shard_prefix(s), "default").read_bytes() for s in shards}


def test_scores_stand_in_document_order_and_equal_transformers(data: Path, hf: Path) -> None:
    assert score_ppl(options(data, hf)) == (2, 2)
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    manifest = read_manifest(data)
    for entry in manifest.sources:
        prefix = manifest.shard_prefix(entry.shards[0])
        rows = open_scores(prefix, entry.shards[0], "default").read().to_pylist()
        for row, document in zip(rows, documents_of(prefix), strict=True):
            ids = torch.from_numpy(document.astype(np.int64)).unsqueeze(0)
            with torch.no_grad():
                mean = float(model(ids, labels=ids).loss)
            assert row["nll_tokens"] == len(document) - 1
            assert row["nll_sum"] / row["nll_tokens"] == pytest.approx(mean, abs=1e-4)
            assert row["compression_ratio"] is None
    assert not (data / ".work" / "score-default").exists()


@pytest.mark.usefixtures("like_nfs")
def test_nothing_is_open_in_the_work_that_is_removed(data: Path, hf: Path) -> None:
    assert score_ppl(options(data, hf)) == (2, 2)
    assert list((data / ".work").iterdir()) == []


def test_a_killed_call_goes_on_and_gives_the_bytes_of_an_undisturbed_one(
    data: Path, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(data)
    done: list[int] = []
    real = score.score_chunk

    def counted(*arguments: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments[3])  # type: ignore[arg-type]
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(score, "score_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        score_ppl(options(data, hf))
    assert done == [0, 1, 2]
    first = scores_path(data / manifest.sources[0].shards[0].prefix, "default")
    left = first.with_name(f".{first.name}.another-node.7.tmp")  # of a call that was killed while it joined
    left.touch()
    again: list[int] = []
    monkeypatch.setattr(score, "score_chunk", lambda *a: (again.append(a[3]), real(*a))[1])
    score_ppl(options(data, hf))
    assert again[0] == 3 and not set(again) & set(done)
    assert not left.exists()
    interrupted = scores_of(manifest)
    for prefix in interrupted:
        scores_path(data / prefix, "default").unlink()
    monkeypatch.setattr(score, "score_chunk", real)
    score_ppl(options(data, hf))
    assert scores_of(manifest) == interrupted


def test_parts_of_another_call_are_not_taken_for_this_ones(
    data: Path, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier call with other windows was killed with all its parts written and no file joined."""
    with monkeypatch.context() as patch:
        patch.setattr(score, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            score_ppl(options(data, hf, seq_length=16, overlap=0))
    assert len(list((data / ".work" / "score-default").glob("*.parquet"))) == 7  # ceil(900/250) + ceil(700/250)
    for rank, complete in ((1, 0), (0, 2)):
        for key, value in {"ID": rank, "MIN": 0, "MAX": 1, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
        assert score_ppl(options(data, hf)) == (2, complete)
    for key in ("ID", "MIN", "MAX", "COUNT"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{key}")
    found = scores_of(read_manifest(data))
    score_ppl(options(data, hf, name="alone"))
    assert {prefix: scores_path(data / prefix, "alone").read_bytes() for prefix in found} == found


def test_empty_documents_behind_the_last_token_are_in_the_last_chunk(data: Path, hf: Path) -> None:
    """500 tokens are two whole chunks; the documents without a token begin where a third would."""
    manifest = read_manifest(data)
    shard = manifest.sources[0].shards[0]
    with IndexedWriter(manifest.shard_prefix(shard), dtype="uint16") as writer:
        for length in (200, 300, 0, 0):
            writer.add_document(np.arange(3, 3 + length) % 250 + 3)
    pair = writer.written
    assert pair is not None and (pair.num_documents, pair.num_tokens) == (4, 500)
    entry = replace(manifest.sources[0], shards=(replace(shard, **asdict(pair)),))
    write_manifest(replace(manifest, sources=(entry,)))
    score_ppl(options(data, hf))
    rows = open_scores(data / shard.prefix, entry.shards[0], "default").read().to_pylist()
    assert [row["nll_tokens"] for row in rows] == [199, 299, 0, 0]
    assert [row["nll_sum"] > 0 for row in rows] == [True, True, False, False]


def test_what_is_scored_is_not_scored_again(data: Path, hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_ppl(options(data, hf, sources="zh/*"))
    monkeypatch.setattr(score_chunks, "_documents", lambda file, *rest: pytest.fail(f"{file.prefix} was scored again"))
    score_ppl(options(data, hf, sources="zh/*"))
    with pytest.raises(BaseException, match=r"en-web-computing.*was scored again"):
        score_ppl(options(data, hf))


def test_scores_of_another_model_are_replaced_with_a_warning(
    data: Path, hf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score_ppl(options(data, hf))
    score_ppl(options(data, hf))
    other = options(data, tiny.hf_folder(tmp_path / "other", num_hidden_layers=1))
    score_ppl(replace(other, name="other"))
    assert "replaced" not in caplog.text
    score_ppl(other)
    assert "2 scores files, e.g. " in caplog.text and "will be replaced; keep both with --name" in caplog.text


def test_scores_are_equal_for_two_workers_and_for_processes_that_share_out_chunks(
    data: Path, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a pool's processes have
    manifest = read_manifest(data)
    score_ppl(options(data, hf))
    alone = scores_of(manifest)
    for prefix in alone:
        scores_path(data / prefix, "default").unlink()
    score_ppl(options(data, hf, workers=2))
    assert scores_of(manifest) == alone
    for prefix in alone:
        scores_path(data / prefix, "default").unlink()
    for rank, complete in ((1, 0), (0, 2)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(10 + 5 * rank))
        for key, value in {"MIN": 10, "MAX": 15, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
        assert score_ppl(options(data, hf)) == (2, complete)
    assert scores_of(manifest) == alone
    torch.set_num_threads(threads)


@pytest.mark.parametrize("ids", [(0, 1, 5), (0, 1, 4), (3, 7, 8), (0, 4, 5, 9)])
def test_no_two_jobs_of_an_irregular_array_take_one_share(
    ids: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    refusals: list[str] = []
    for number in ids:
        for key, value in {"ID": number, "MIN": min(ids), "MAX": max(ids), "COUNT": len(ids)}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
        try:
            ranks = independent_ranks()
        except ConfigError as error:
            refusals.append(str(error))
            continue
        assert ranks is not None and ranks.world_size == len(ids)
        taken.append(ranks.rank)
    assert refusals and len(taken) == len(set(taken))
    assert all("equal distances" in text and f"--array=0-{len(ids) - 1}" in text for text in refusals)


def test_launched_ranks_share_out_the_files_through_the_command(data: Path, hf: Path) -> None:
    command = ["-m", "tools", "data", "score-ppl", "--data", data, "--hf", hf, "--seq-length", 128]
    options_of_command = ["--precision", "fp32", "--device", "cpu"]
    done = tiny.python("-c", tiny.LAUNCH, 2, *command, *options_of_command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 2 token files are scored" in done.stdout
    launched = scores_of(read_manifest(data))
    for prefix in launched:
        scores_path(data / prefix, "default").unlink()
    done = tiny.syne(*command[2:], *options_of_command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert scores_of(read_manifest(data)) == launched


def test_ranks_of_a_job_array_with_two_tasks_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert independent_ranks() is None
    slurm = {"STEP_ID": 0, "NTASKS": 2, "PROCID": 1, "LOCALID": 1}
    array = {"ARRAY_TASK_ID": 30, "ARRAY_TASK_MIN": 10, "ARRAY_TASK_MAX": 50, "ARRAY_TASK_COUNT": 5}
    for key, value in (slurm | array).items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    assert independent_ranks() == Ranks(rank=5, world_size=10, local_rank=1)  # jobs 10 and 20 have ranks 0 to 3


def test_the_shell_that_salloc_opens_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a real one has them (tests/slurm/test_submit.py): the tasks of the job, in a step of one."""
    shell = {"STEP_ID": 4294967290, "NTASKS": 4, "STEP_NUM_TASKS": 1, "PROCID": 0, "LOCALID": 0}
    for key, value in shell.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    assert independent_ranks() is None
    assert ranks_from_environment() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert independent_ranks() == Ranks(rank=0, world_size=4, local_rank=0)
    monkeypatch.setenv("SLURM_NTASKS", "1")  # a job of one task that was submitted from such a step
    assert independent_ranks() is None


def test_a_second_call_is_refused_meanwhile(data: Path, hf: Path) -> None:
    with only_one(data / ".work" / "score-default"), pytest.raises(ConfigError, match="another call is writing"):
        score_ppl(options(data, hf))


def test_scores_of_other_tokens_or_another_number_of_documents_are_refused(data: Path, hf: Path) -> None:
    score_ppl(options(data, hf))
    tiny.manifest(data, SOURCES, seed=5)
    manifest = read_manifest(data)
    shard = manifest.sources[0].shards[0]
    with pytest.raises(DataError, match=r"scores of other tokens.*syne data score-ppl --data"):
        open_scores(manifest.shard_prefix(shard), shard, "default")
    with pytest.raises(DataError, match=r"has no scores; run `syne data score-ppl.*--name small`"):
        open_scores(manifest.shard_prefix(shard), shard, "small")
    score_ppl(options(data, hf))
    assert open_scores(manifest.shard_prefix(shard), shard, "default").metadata.num_rows == shard.num_documents


def test_a_checkpoint_of_ours_gives_the_scores_of_the_folder_it_came_from(data: Path, hf: Path) -> None:
    from tools.checkpoint.importer import import_hf

    checkpoint = import_hf(hf, data.parent / "imported").checkpoint
    score_ppl(options(data, hf))
    score_ppl(options(data, None, checkpoint=checkpoint.parent, name="imported"))
    prefix = data / read_manifest(data).sources[0].shards[0].prefix
    first, second = (pq.read_table(scores_path(prefix, name)) for name in ("default", "imported"))
    assert first.equals(second)
    lineage = json.loads((checkpoint / "manifest.json").read_text())["lineage_hash"]
    assert read_origin(scores_path(prefix, "imported")).weights_sha256 == lineage


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": 5000}, "--seq-length 5000 is longer than the model's context of 4096"),
        ({"overlap": 128}, "--overlap 128 must be at least 0 and less than --seq-length 128"),
        ({"sources": "fr/*"}, "matches none of the sources"),
        ({"name": "a-b"}, "--name 'a-b' must consist of"),
        ({"hf": None}, "nothing to compute"),
    ],
)
def test_options_that_do_not_fit_are_refused(data: Path, hf: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_ppl(replace(options(data, hf), **changes))  # type: ignore[arg-type]


def test_a_model_of_a_smaller_vocabulary_is_refused(data: Path, tmp_path: Path) -> None:
    small = tiny.hf_folder(tmp_path / "small", vocab_size=100, num_hidden_layers=1)
    with pytest.raises(ConfigError, match="the model knows 100 ids, the data's tokenizer has 256"):
        score_ppl(options(data, small))


def test_a_model_that_overflows_is_refused(data: Path, tmp_path: Path) -> None:
    """Else the scores would be NaN, `stats` give no PPL without a word, and `sort` ask for scores by a model."""
    folder = tiny.hf_folder(tmp_path / "large", num_hidden_layers=1)
    file = folder / "model.safetensors"
    save_file({name: 1e20 * weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no finite NLL for \d+ of \d+ documents of .*overflow in fp32"):
        score_ppl(options(data, folder))


def test_a_call_killed_at_any_moment_leaves_nothing_half_and_goes_on(data: Path, hf: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(data), str(hf)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tiny.ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "2\n"  # two chunks are done, the third is not
        process.send_signal(signal.SIGKILL)
    assert not list(data.glob("*.scores*"))
    assert len(list((data / ".work" / "score-default").glob("*.json"))) == 2
    score_ppl(options(data, hf))
    resumed = scores_of(read_manifest(data))
    for prefix in resumed:
        scores_path(data / prefix, "default").unlink()
    score_ppl(options(data, hf))
    assert scores_of(read_manifest(data)) == resumed


KILLED = """
import sys
from pathlib import Path
from tools.data import score, score_chunks
score.MIN_CHUNK_TOKENS = 250
real, done = score_chunks._documents, [0]
def documents(*arguments):
    if done[0] == 2:
        print(2, flush=True)
        sys.stdin.read()
    done[0] += 1
    return real(*arguments)
score_chunks._documents = documents
score.score_ppl(score.ScoreOptions(data=Path(sys.argv[1]), hf=Path(sys.argv[2]), precision="fp32", device="cpu",
                                   seq_length=128))
"""


def test_the_precision_of_nodes_that_cannot_be_seen_must_be_given(data: Path, hf: Path) -> None:
    with pytest.raises(ConfigError, match="--slurm-tasks needs --precision bf16 or fp32"):
        score_ppl(options(data, hf, precision="auto", array=SlurmArray(tasks=1)))
