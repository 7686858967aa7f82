"""From pages to a trained checkpoint by the commands of docs/data.md alone: what one writes, the next one reads."""

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from data_mixers.manifest import read_manifest
from tests import tiny
from tests.rows import read, write
from tests.tools import corpus
from tests.tools.topic_corpus import FILLER, WORDS, documents
from tools.data.topic_model import Shape
from tools.data.topic_options import ClassifierOptions, TrainingOptions
from tools.data.train_classifier import train_classifier

TOPICS = ("law_and_policy", "medicine_and_health")
SYLLABLES = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]
ITEM = "which of the seven narrow bridges over the river was closed to carts by the council that winter"


def page(language: str, topic: str, seed: int) -> str:
    """Long and varied enough for the rules, about its topic."""
    rng = random.Random(f"{language}{topic}{seed}")
    if language == "zh":
        other = [chr(rng.randrange(0x4E00, 0x6E00)) for _ in range(300)]
    else:
        other = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(120)]
    words = other + rng.choices(WORDS[language, topic], k=60) + rng.choices(FILLER[language], k=10)
    rng.shuffle(words)
    return ("" if language == "zh" else " ").join(words)


def pages(folder: Path) -> dict[str, int]:
    """data/<bucket>/*.parquet and .jsonl.zst in two languages; documents per bucket that must survive `clean`."""
    kept = {}
    for language, bucket in (("zh", "cn_web"), ("en", "en_web")):
        texts = [page(language, topic, seed) for topic in TOPICS for seed in range(40)]
        kept[bucket] = len(texts)
        texts += [texts[0], "short"]
        if language == "en":
            texts.append(f"{page('en', TOPICS[0], 99)} {ITEM}")
        bucket_folder = folder / "data" / bucket
        bucket_folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": texts[:50]}), bucket_folder / "part-0.parquet", row_group_size=30)
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[50:])
        (bucket_folder / "part-1.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    return kept


def syne(*arguments: object) -> str:
    """What the command printed; it must succeed."""
    done = tiny.syne(*arguments)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout) + str(done.stderr)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    labelled = [row for row in documents(sources=("first", "second"), count=20) if row["topic"] in TOPICS]
    labelled += [
        {"id": f"{language}-{topic}-{seed}", "text": page(language, topic, 1000 + seed), "language": language,
         "topic": topic, "source": ("first", "second", "third")[seed % 3]}
        for language in ("zh", "en") for topic in TOPICS for seed in range(40)
    ]  # fmt: skip
    # By the function, which takes a smaller encoder than the command's.
    options = ClassifierOptions(
        inputs=(str(write(folder / "labelled.jsonl", labelled)),),
        out=folder / "topics",
        shape=Shape(num_layers=1, hidden_size=48, num_heads=4, ffn_size=96),
        training=TrainingOptions(steps=60, batch_documents=16, learning_rate=3e-3, train_length=48),
        vocab_size=600,
        max_length=96,
        accuracy=0.5,
        baselines=False,
    )
    train_classifier(options)
    return folder / "topics"


def test_pages_become_a_curriculum_that_trains(classifier: Path, tmp_path: Path) -> None:
    expected = pages(tmp_path)
    hf = corpus.hf_folder(tiny.hf_folder(tmp_path / "hf", vocab_size=604, num_hidden_layers=2))
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"question": ITEM, "answer": "the fourth"}) + "\n")

    # Folders as --input: dropped documents and reports of the stage before must not come back.
    syne("data", "clean", "--input", tmp_path / "data/*/*", "--out", tmp_path / "cleaned", "--workers", 2)
    said = syne("data", "decontaminate", "--input", tmp_path / "cleaned", "--benchmarks", tmp_path / "benchmark.jsonl",
                "--out", tmp_path / "decontaminated", "--remove")  # fmt: skip
    assert "1 of 1 items; documents en_web: 1" in said
    assert "not read, since no documents to keep" in said and "dropped/" in said
    syne("data", "label-topics", "--input", tmp_path / "decontaminated", "--classifier", classifier,
         "--out", tmp_path / "labelled", "--threshold", 0)  # fmt: skip
    for bucket, count in expected.items():
        assert sum(len(read(file)) for file in (tmp_path / "labelled").glob(f"*-{bucket}.jsonl.zst")) == count
    labelled = {row["text"]: row["topic"] for row in read(tmp_path / "labelled")}
    assert len(labelled) == sum(expected.values())
    truth = {page(lang, topic, seed): topic for lang in ("zh", "en") for topic in TOPICS for seed in range(40)}
    assert sum(labelled[text] == truth[text] for text in labelled) >= 0.9 * len(labelled)

    counts = Counter((row["text"].isascii(), row["topic"]) for row in read(tmp_path / "labelled"))
    for language, bucket in (("zh", "cn_web"), ("en", "en_web")):
        syne("data", "preprocess", "--input", tmp_path / f"labelled/*-{bucket}.jsonl.zst", "--tokenizer", hf,
             "--out", tmp_path / "stage1", "--language", language, "--source", "web", "--topic-key", "topic",
             "--holdout", 4)  # fmt: skip
    manifest = read_manifest(tmp_path / "stage1")
    assert (tmp_path / "stage1/quarantine.jsonl").read_text() == ""
    for (is_english, topic), count in counts.items():
        name = f"{'en' if is_english else 'zh'}/web/{topic}"
        found = {entry.role: entry.num_documents for entry in manifest.sources if entry.name.split("@")[0] == name}
        assert found["validation"] == 4 and found["train"] == count - 4

    syne("data", "score-ppl", "--data", tmp_path / "stage1", "--hf", hf, "--tokenizer", hf, "--precision", "fp32")
    syne("data", "sort", "--data", tmp_path / "stage1", "--out", tmp_path / "sorted", "--buckets", 3)
    table = syne("data", "stats", "--data", tmp_path / "sorted", "--plot", tmp_path / "stats.png")
    assert "no scores" not in table and (tmp_path / "stats.png").stat().st_size > 10_000
    shown = syne("data", "sample", "--data", tmp_path / "sorted", "--tokenizer", hf, "--source", "zh/web/*/02",
                 "--percentile", 90, "--num", 1)  # fmt: skip
    assert "-cn_web.jsonl.zst:" in shown and "PPL" in shown

    stage = {
        "name": "adapt",
        "tokens": 6 * 4 * 64,
        "languages": {"zh": 0.5, "en": 0.5},
        "curriculum": {"pacing": "low_to_high", "languages": ["zh", "en"]},
    }
    tree = tiny.run_tree(tmp_path, hf=hf, data={"manifests": [str(tmp_path / "sorted")], "stages": [stage]})
    tree["training"] |= {"seq_length": 64, "global_batch_size": 4}
    tree["validation"] = {"manifests": [str(tmp_path / "sorted")]}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    assert "/00" in syne("mix", "plan", "--config", config)
    tiny.train(config)
    assert len(tiny.rows(tmp_path / "run", "train")) == 6
