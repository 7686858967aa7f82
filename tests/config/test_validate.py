"""Every rule of a whole run: the refusal, and that its message names the key and a cure."""

from pathlib import Path

import pytest

from megatron_synE.config.examine import examine
from megatron_synE.config.load import load_config
from megatron_synE.config.validate import divisors
from tests.config.tiny_dataset import write_dataset

RUN = """
run: {{name: a, dir: {folder}/run}}
training: {{seq_length: 64, global_batch_size: 8}}
init: {{from: random}}
model: {{preset: tiny}}
lr_schedule: {{warmup_tokens: 512}}
data:
  manifests: [{folder}/data]
  stages: [{{name: one, tokens: 4096, languages: {{zh: 0.2, en: 0.8}}}}]
validation: {{manifests: [{folder}/heldout], interval_tokens: 1024}}
"""
SOURCES = {("zh", "web", "law"): 2000, ("en", "web", "law"): 4000, ("en", "code", "python"): 4000}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", SOURCES)
    write_dataset(tmp_path / "heldout", {("zh", "web", "law"): 200}, role="validation")
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path), encoding="utf-8")
    return tmp_path / "run.yaml"


def faults(path: Path, *overrides: str, world_size: int = 4) -> list[str]:
    return [str(fault) for fault in examine(load_config(path, overrides).resolved, world_size=world_size).faults]


def test_a_sound_run_has_no_faults_and_a_schedule(run: Path) -> None:
    examination = examine(load_config(run).resolved, world_size=4)
    assert examination.faults == ()
    assert examination.schedule is not None
    assert examination.schedule.num_samples == 64  # 4096 tokens / 64
    assert examination.plan is not None
    assert examination.plan.total_samples == 64


# overrides, what the message must say
OVERLAP = [
    "parallel.tp_comm_overlap=true", "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true",
]  # fmt: skip
REFUSED = {
    "world": (
        ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=4"],
        "parallel: 4 ranks are not a multiple of",
    ),
    "tp and heads": (["parallel.tensor_model_parallel_size=3"], "3 does not divide the model's num_attention_heads=8"),
    "tp and groups": (
        ["parallel.tensor_model_parallel_size=8"],
        "8 does not divide the model's num_query_groups=4; use one of 1, 2, 4",
    ),
    "pp": (
        ["parallel.pipeline_model_parallel_size=3"],
        "3 does not divide the model's num_layers=4; use one of 1, 2, 4",
    ),
    "vpp layers": (
        ["parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=3"],
        "3 does not divide the 2 layers of a pipeline stage; use one of 2",
    ),
    "vpp without pp": (["parallel.virtual_pipeline_model_parallel_size=2"], "need a pipeline"),
    "vpp micro-batches": (
        [
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
            "training.global_batch_size=6",
        ],
        "training.global_batch_size: 3 micro-batches are not a multiple of pipeline_model_parallel_size=2",
    ),
    "world and cp": (
        ["parallel.context_parallel_size=4", "parallel.tensor_model_parallel_size=2"],
        "tensor_model_parallel_size * context_parallel_size * pipeline_model_parallel_size = 2 * 4 * 1 = 8",
    ),
    "cp length": (
        ["parallel.context_parallel_size=4", "training.seq_length=60"],
        "training.seq_length: 60 is not a multiple of 2 * context_parallel_size = 8",
    ),
    "overlap without sp": (["parallel.tp_comm_overlap=true"], "parallel.tp_comm_overlap: true needs sequence_parallel"),
    "overlap of larger rows": (
        [*OVERLAP, "validation.micro_batch_size=2"],
        "validation.micro_batch_size: rows of 2 do not fill the buffers of parallel.tp_comm_overlap, which are made for"
        " training.micro_batch_size=1; use 1",
    ),
    "overlap of smaller rows": (
        [*OVERLAP, "training.micro_batch_size=2"],
        "validation.micro_batch_size: rows of 1 do not fill the buffers of parallel.tp_comm_overlap, which are made for"
        " training.micro_batch_size=2; use 2",
    ),
    "fp8 in fp32": (["training.fp8=hybrid", "training.precision=fp32"], "training.fp8: hybrid is for bf16 runs"),
    "fp8 recipe without fp8": (
        ["training.fp8_recipe=delayed"],
        "training.fp8_recipe: delayed has no meaning without training.fp8: the run is in bf16; set training.fp8=hybrid",
    ),
    "fp8 recipe": (
        ["training.fp8=hybrid", "training.fp8_recipe=delayed", "model.attention=native"],
        "training.fp8_recipe: delayed needs Transformer Engine",
    ),
    "fp8 widths": (
        ["training.fp8=hybrid", "parallel.tensor_model_parallel_size=4"],
        "training.fp8: ffn_hidden_size is 88 on one rank, not a multiple of 16",
    ),
    "sp without tp": (["parallel.sequence_parallel=true"], "tensor_model_parallel_size=1"),
    "sp length": (
        ["parallel.sequence_parallel=true", "parallel.tensor_model_parallel_size=4", "training.seq_length=63"],
        "training.seq_length: seq_length * micro_batch_size = 63 is not a multiple",
    ),
    "batch": (
        ["training.global_batch_size=10"],
        "training.global_batch_size: 10 is not a multiple of micro_batch_size * data parallel size = 1 * 4 = 4;"
        " use one of 8, 12",
    ),
    "context": (
        ["training.seq_length=4096"],
        "training.seq_length: 4096 is more than the model's max_position_embeddings=2048",
    ),
    "te on cpu": (
        ["device=cpu", "model.attention=transformer_engine"],
        "model.attention: transformer_engine needs a GPU",
    ),
    "warm-up": (
        ["lr_schedule.warmup_tokens=4000", "lr_schedule.decay_tokens=1000"],
        "lr_schedule.warmup_tokens: warmup_tokens + decay_tokens = 4000 + 1000 is more than the 4096 tokens",
    ),
    "decay of cosine": (
        ["lr_schedule.style=cosine", "lr_schedule.decay_tokens=9"],
        "9 has no meaning with style=cosine",
    ),
    "start lr": (["lr_schedule.start_lr=1e-3"], "lr_schedule.start_lr: 0.001 is above the peak, optimizer.lr=1e-05"),
    "min lr without decay": (
        ["lr_schedule.decay_tokens=0", "lr_schedule.min_lr=1e-6"],
        "lr_schedule.min_lr: 1e-06 is never reached",
    ),
    "style of no decay": (
        ["lr_schedule.style=cosine", "lr_schedule.decay_tokens=0", "lr_schedule.decay_style=linear"],
        "lr_schedule.decay_style: linear is of wsd's decay, but style=cosine and decay_tokens=0: there is none",
    ),
    "warm-up of another pacing": (
        ["data.stages.0.curriculum={pacing: low_to_high, warmup_share: 0.3}"],
        "data.stages.0.curriculum.warmup_share: 0.3 has no meaning with pacing=low_to_high",
    ),
    "min lr": (["lr_schedule.min_lr=1e-3"], "lr_schedule.min_lr: 0.001 is above the peak"),
    "beta": (["optimizer.adam_beta2=1.0"], "optimizer.adam_beta2: 1.0 would never forget"),
    "random with path": (["init.path=x"], "init.path: x is not read with init.from=random"),
    "no path": (["init.from=hf", "model.preset=null"], "init.path: missing; init.from=hf reads it"),
    "path gone": (["init.from=hf", "model.preset=null", "init.path=x"], "init.path: x does not exist"),
    "branch": (["init.mode=branch"], "init.mode: branch takes the optimizer"),
    "languages": (["data.stages.0.languages.zh=0.3"], "data.stages.0.languages: the shares sum to 1.1"),
    "all-zero shares": (["data.stages.0.languages={zh: 0.0, en: 0.0}"], "data.stages.0.languages: the shares sum to 0"),
    "sources": (["data.stages.0.sources={en: {web: 0.5}}"], "data.stages.0.sources.en: the shares sum to 0.5"),
    "topics": (["data.stages.0.topics={en: {web: {law: 0.5}}}"], "data.stages.0.topics.en.web: the shares sum to 0.5"),
    "divided without share": (["data.stages.0.sources={fr: {web: 1.0}}"], "fr is divided below, but has no share here"),
    "no such language": (
        ["data.stages.0.languages={fr: 1.0}"],
        "data.stages.0.languages.fr has no data in the manifests",
    ),
    "skipped backwards": (["data.skip_samples=['5:3']"], "data.skip_samples: skip 5:3 must be a range of samples"),
    "skipped beyond": (["data.skip_samples=['60:65']"], "data.skip_samples: skip 60:65 must be a range of samples"),
    "no stages": (["data.stages=[]"], "data.stages: is empty"),
    "no languages": (["data.stages.0.languages={}"], "data.stages.0.languages: is empty"),
    "no manifests": (["data.manifests=[]"], "data.manifests: is empty"),
    "no held-out": (
        ["validation.manifests=[]"],
        "validation.interval_tokens: is set, but validation.manifests is empty",
    ),
    "manifest gone": (["data.manifests=[nowhere]"], "data.manifests: nowhere"),
    "preset": (["model.preset=llama9"], "model.preset='llama9' is unknown"),
    "epochs": (["data.stages.0.tokens=1e6"], "in epochs"),
    "exhaustion": (["data.exhaustion=stop", "data.stages.0.tokens=20480"], "data.exhaustion is stop"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_refusal_names_key_and_cure(run: Path, overrides: list[str], message: str) -> None:
    found = faults(run, *overrides)
    assert any(message in fault for fault in found), found
    assert all("; " in fault for fault in found)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.micro_batch_size=2", "validation.micro_batch_size=2"],
        ["training.micro_batch_size=2", "validation.manifests=[]", "validation.interval_tokens=null"],
    ],
)
def test_rows_as_long_as_the_buffers_of_overlap_and_none_at_all_are_taken(run: Path, overrides: list[str]) -> None:
    assert faults(run, *OVERLAP, *overrides) == []


def test_all_faults_come_together(run: Path) -> None:
    found = faults(
        run, "training.seq_length=4096", "training.global_batch_size=10", "lr_schedule.start_lr=1",
        "data.stages.0.languages.zh=0.3", "init.mode=branch",
    )  # fmt: skip
    keys = [fault.split(":")[0] for fault in found]
    assert sorted(keys) == [
        "data.stages.0.languages",
        "init.mode",
        "lr_schedule.start_lr",
        "training.global_batch_size",
        "training.seq_length",
    ]


def test_duplicate_stage_names_are_refused(run: Path) -> None:
    stage = "{name: one, tokens: 4096, languages: {zh: 0.2, en: 0.8}}"
    assert any("two stages are called 'one'" in fault for fault in faults(run, f"data.stages=[{stage}, {stage}]"))


def test_a_tokenizer_larger_than_the_model_is_refused(run: Path) -> None:
    write_dataset(run.parent / "data", SOURCES, vocab_size=1001)
    assert any("tokenizer of 1001 ids, the model has only 1000" in fault for fault in faults(run))


def test_data_of_two_tokenizers_is_refused(run: Path) -> None:
    write_dataset(run.parent / "heldout", {("zh", "web", "law"): 200}, role="validation", digest="b" * 64)
    assert any("different tokenizers (bbbbbbbbbbbb and aaaaaaaaaaaa)" in fault for fault in faults(run))


def test_a_manifest_named_twice_is_refused(run: Path) -> None:
    data, heldout = run.parent / "data", run.parent / "heldout"
    [twice] = faults(run, f"validation.manifests=[{heldout}, {heldout}/manifest.json]")
    assert twice == f"validation.manifests: {heldout} stands twice; name it once"
    [twice] = faults(run, f"data.stages.0.manifests=[{data}]")
    assert twice == f"data.manifests: {data} stands twice; name it once, here or in the first stage that reads it"


def test_a_source_in_two_manifests_is_refused(run: Path) -> None:
    write_dataset(run.parent / "more", {("zh", "web", "law"): 200})
    found = faults(run, f"data.manifests=[{run.parent}/data, {run.parent}/more]")
    assert any("source zh/web/law is in" in fault for fault in found)


def test_a_packed_source_that_is_read_must_have_the_run_s_seq_length(run: Path) -> None:
    write_dataset(run.parent / "qa", {("synthetic", "qa", "mathematics"): 2000}, packed_seq_length=64)
    stage = "{name: one, tokens: 4096, languages: {zh: 0.2, en: 0.7, synthetic: 0.1}}"
    manifests = f"data.manifests=[{run.parent}/data, {run.parent}/qa]"
    read = [manifests, f"data.stages=[{stage}]"]
    assert load_config(run).resolved.training.seq_length == 64
    assert faults(run, *read) == []
    assert (
        "training.seq_length: 32, but the documents of synthetic/qa/mathematics are packed whole into windows of 64; "
        "set it to 64, or preprocess synthetic/qa/mathematics again with --seq-length 32"
    ) in faults(run, *read, "training.seq_length=32")
    assert faults(run, manifests, "training.seq_length=32") == []  # a source without a share is not read


def test_held_out_sets_cannot_be_trained_on(run: Path) -> None:
    found = faults(run, f"data.manifests=[{run.parent}/heldout]")
    assert any("holds no source with role train" in fault for fault in found)


def test_a_run_folder_that_is_a_file_is_refused(run: Path) -> None:
    (run.parent / "run").write_text("x", encoding="utf-8")
    assert any(fault.startswith("run.dir:") and "is a file" in fault for fault in faults(run))


@pytest.mark.parametrize("written", ["~/runs/a", "~somebody/a", "/tmp/$USER/a", "${SCRATCH}/a"])
def test_a_run_folder_that_a_shell_would_have_to_write_out_is_refused(run: Path, written: str) -> None:
    expected = f"run.dir: {written}: nothing stands in for ~ and $ in this file; write the path out"
    assert faults(run, f"run.dir='{written}'") == [expected]
    assert faults(run, "run.dir=runs/a~") == []


def test_without_data_the_manifests_are_not_opened(run: Path) -> None:
    config = load_config(run, ["data.manifests=[nowhere]"]).resolved
    assert examine(config, world_size=4, reads_data=False).faults == ()


def test_divisors_of_a_square_and_a_prime() -> None:
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert divisors(7) == [1, 7]
