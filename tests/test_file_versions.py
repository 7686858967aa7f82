"""Every file that is written to be read again carries its version; another one is refused: file, versions, cure."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from data_mixers.errors import DataError, UserError
from data_mixers.manifest import TokenizerIdentity, read_manifest
from data_mixers.schedule import Schedule, ScheduledShard, ScheduledSource, read_schedule
from megatron_synE import attempts
from megatron_synE.checkpoint import hf_export, layout
from megatron_synE.config.load import dump_yaml, load_config, resolved_tree
from megatron_synE.data import probe
from megatron_synE.runtime.run_dir import RunDir, read_run_manifest, write_run_manifest
from tests import tiny
from tests.surrogate.test_study import base, study_tree, written
from tools.data.rules import DEFAULT_RULES, load_rules
from tools.data.scores_file import METADATA_KEY, ScoresOrigin, metadata_of, read_origin
from tools.data.topic_labels import read_topics
from tools.data.topic_model import Shape, TopicClassifier, Trained, load_classifier, new_config, save_classifier
from tools.data.topic_model import train_tokenizer as train
from tools.evaluation.results import Results, read_results, write_results
from tools.evaluation.subjects import subjects_of
from tools.evaluation.suite import SUITES, read_suite
from tools.mix_simulate import Curves, read_curves
from tools.planner.figures import read_efficiency
from tools.planner.measurement import collect
from tools.planner.pipeline import read_rates
from tools.report.evaluation import read_result
from tools.report.run_record import read_run
from tools.slurm.acceptance_file import acceptance_fault
from tools.surrogate.arms import Job
from tools.surrogate.curves import write_curves
from tools.surrogate.study import read_study
from tools.surrogate.trained import finished
from tools.synthesis.format import _audited
from tools.synthesis.options import FormatOptions

IDENTITY = TokenizerIdentity(digest="0" * 64, vocab_size=8, eos_id=2, bos_id=1)


def write_config(folder: Path) -> Path:
    file = folder / "run_config.yaml"
    tiny.write_run(folder, tiny.run_tree(folder, hf=None, model={"preset": "tiny"}))
    file.write_text(dump_yaml(resolved_tree(load_config(folder / "run.yaml").resolved)))
    return file


def write_schedule(folder: Path) -> Path:
    file = folder / "schedule.json"
    source = ScheduledSource(name="zh/web/law", shards=(ScheduledShard(num_tokens=99, sha256="0"),))
    file.write_text(Schedule(seed=1, seq_length=8, sources=(source,)).to_json())
    return file


def write_data(folder: Path) -> Path:
    tiny.manifest(folder, {("zh", "web", "law"): 50})
    return folder / "manifest.json"


def write_probe(folder: Path) -> Path:
    item = probe.ProbeItem(choices=((1, 3, 2), (1, 4, 2)), answer=0)
    made = probe.Probe(schema_version=probe.SCHEMA_VERSION, language="en", tokenizer=IDENTITY, items=(item,))
    probe.write_probe(made, folder / "probe.json")
    return folder / "probe.json"


STATE = layout.CommonState(
    iteration=1, consumed_samples=8, consumed_tokens=64, adam_step=1, has_optimizer=False, weights_dtype="float32",
    tied=False, vocab_size=8,
)  # fmt: skip


def write_state(folder: Path) -> Path:
    layout.write_state(folder, STATE)
    return folder / layout.STATE


def write_checkpoint_manifest(folder: Path) -> Path:
    layout.write_manifest(folder, {})
    return folder / layout.MANIFEST


def run_dir(folder: Path) -> RunDir:
    run = RunDir(folder)
    run.create()
    run.take(takeover=False)
    return run


def write_run(folder: Path) -> Path:
    run = run_dir(folder)
    write_run_manifest(run, read_run_manifest(run))
    run.release()
    return run.manifest


def write_run_again(folder: Path) -> None:
    run = run_dir(folder)
    try:
        write_run_manifest(run, read_run_manifest(run))
    finally:
        run.release()


def report_of_run(folder: Path) -> None:
    """What it could not read, as an error: a report goes on without."""
    raise DataError("; ".join(read_run(folder).missing))


def write_attempts(folder: Path) -> Path:
    run = run_dir(folder)
    attempts.begin(run, first_iteration=0, is_finished=False, config_digest="a", restart_budget=1)
    run.release()
    return folder / attempts.ATTEMPTS


def write_scores(folder: Path) -> Path:
    origin = ScoresOrigin(
        bin_sha256="0", weights_sha256=None, seq_length=None, overlap=None, precision=None, tokenizer_digest=None
    )
    with pq.ParquetWriter(folder / "a.scores.parquet", schema := pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1]}, schema=schema))
        writer.add_key_value_metadata(metadata_of(origin))
    return folder / "a.scores.parquet"


def write_evaluation(folder: Path) -> Path:
    made = Results(
        folder=folder, suite={"name": "s"}, model={"label": "m"}, harness={}, settings={}, started="", updated="",
        seconds=0.0, complete=True, benchmarks=(),
    )  # fmt: skip
    write_results(made)
    return folder / "results.json"


def write_export(folder: Path) -> Path:
    tiny.hf_folder(folder)
    layout.write_json(folder / hf_export.MARKER, {"schema_version": layout.SCHEMA_VERSION, "checkpoint": "none"})
    return folder / hf_export.MARKER


def write_classifier(folder: Path) -> Path:
    tokenizer = train(["law and order", "health and medicine"], vocab_size=60, max_length=8)
    shape = Shape(num_layers=1, hidden_size=8, num_heads=2, ffn_size=8)
    torch.manual_seed(0)
    model = TopicClassifier(new_config(shape, vocab_size=tokenizer.get_vocab_size(), max_length=8), num_topics=2)
    save_classifier(Trained(model, tokenizer, read_topics(None), ("law_and_policy", "others"), 1.0, 0.0, 8), folder)
    return folder / "classifier.json"


def write_study(folder: Path) -> Path:
    return written(folder, study_tree(base(folder), schema_version=1))


def write_arm(folder: Path) -> Path:
    file = folder / "arm" / "result.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"schema_version": 1, "arm": "a", "seed": 1, "seconds": 1.0, "curve": []}))
    return file


def write_simulation(folder: Path) -> Path:
    import numpy as np

    one, square = np.ones((1, 2)), np.ones((1, 2, 2))
    curves = Curves(
        topics=("law", "art"),
        floor=one,
        reducible=one,
        exponent=one,
        scale=one,
        transfer=square,
        planned=one,
        tokens=1.0,
    )
    write_curves(curves, folder / "curves.json")
    return folder / "curves.json"


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write


def copied(source: Path) -> Callable[[Path], Path]:
    return text(source.name, "schema_version: 1\n" + source.read_text(encoding="utf-8"))


def acceptance(file: Path) -> None:
    fault = acceptance_fault(file, cluster="test", nodes=2)
    raise DataError(str(fault))


def audited(file: Path) -> None:
    pairs = file.with_name("pairs.jsonl")
    pairs.write_text('{"id": "1", "question": "1 + 1?", "answer": "2", "text": "1 + 1? 2"}\n')
    _audited(FormatOptions(inputs=(str(pairs),), out=file.with_name("out"), tokenizer=file, audit=file), [pairs])


FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "run_config.yaml": (write_config, load_config),
    "schedule.json": (write_schedule, read_schedule),
    "manifest.json of data": (write_data, read_manifest),
    "probe": (write_probe, probe.read_probe),
    "state.json": (write_state, lambda file: layout.read_state(file.parent)),
    "manifest.json of a checkpoint": (write_checkpoint_manifest, lambda file: layout.read_manifest(file.parent)),
    "manifest.json of a run, gone on with": (write_run, lambda file: write_run_again(file.parent)),
    "manifest.json of a run, reported": (write_run, lambda file: report_of_run(file.parent)),
    "attempts.json": (write_attempts, lambda file: attempts.read(RunDir(file.parent))),
    "results.json of an evaluation": (write_evaluation, read_results),
    "results.json of an evaluation, reported": (write_evaluation, lambda file: read_result(file, "run")),
    "mark of an export": (write_export, lambda file: subjects_of(file.parent, "last")),
    "topic classifier": (write_classifier, lambda file: load_classifier(file.parent)),
    "study.yaml": (write_study, read_study),
    "result.json of an arm": (write_arm, lambda file: finished(file.parents[1], ARM)),
    "curves": (write_simulation, read_curves),
    "acceptance.json": (text("acceptance.json", '{"schema_version": 1}'), acceptance),
    "audit.json": (text("audit.json", '{"schema_version": 1}'), audited),
    "candidates.json": (text("candidates.json", '{"schema_version": 1}'), lambda file: collect(file.parent)),
    "efficiency.yaml": (text("efficiency.yaml", "schema_version: 1\nmeasured: []\n"), read_efficiency),
    "rates.yaml": (text("rates.yaml", "schema_version: 1\n"), read_rates),
    "rules": (copied(DEFAULT_RULES), load_rules),
    "suite": (copied(SUITES / "probe.yaml"), read_suite),
}
ARM = Job(arm="a", seed=1, tokens=1, config={}, digest="0", folder="arm")
NOT_WHOLE = (
    "acceptance.json",
    "audit.json",
    "candidates.json",
    "result.json of an arm",
    "manifest.json of a run, reported",
)
"""Only the head of such a file is written here; its writer is tested elsewhere."""


@pytest.mark.parametrize("name", FILES)
def test_another_version_is_refused_with_file_versions_and_cure(name: str, tmp_path: Path) -> None:
    write, read = FILES[name]
    file = write(tmp_path)
    content = file.read_text(encoding="utf-8")
    own = re.search(r'\bschema_version"?: ?(\d+)', content)
    assert own, "the file carries no version"
    if name not in NOT_WHOLE:
        read(file)
    file.write_text(content.replace(own[0], own[0][: -len(own[1])] + "99", 1), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read(file)
    said = re.search(
        r"([^ ]+): (?:the schedule: )?schema_version is 99, this program reads (\d+); (.+)", str(refused.value)
    )
    assert said, refused.value
    assert (said[1], said[2]) == (str(file), own[1])
    assert len(said[3].split()) >= 3  # a cure


def test_another_version_of_scores_is_refused_too(tmp_path: Path) -> None:
    """Parquet: the version is in its key-value metadata."""
    file = write_scores(tmp_path)
    read_origin(file)
    (metadata,) = [value for key, value in pq.read_metadata(file).metadata.items() if key == METADATA_KEY]
    changed = json.dumps(json.loads(metadata) | {"schema_version": 99}).encode()
    with pq.ParquetWriter(file, schema := pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1]}, schema=schema))
        writer.add_key_value_metadata({METADATA_KEY: changed})
    with pytest.raises(
        DataError, match=rf"{file}: schema_version is 99, this program reads 1; run `syne data score-ppl`"
    ):
        read_origin(file)


def test_a_file_written_by_hand_may_leave_its_version_out(tmp_path: Path) -> None:
    tree = yaml.safe_load(write_config(tmp_path).read_text())
    del tree["schema_version"]
    assert load_config(tiny.write_run(tmp_path, tree)).resolved.schema_version == 1
