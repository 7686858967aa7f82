"""Labelling a file of documents of any length beside the bare encoder on full batches of the same tokens.

Ours reads .jsonl, tokenises, labels in batches sorted by length, writes .jsonl.zst. The other side runs the forward
pass alone over as many tokens in batches without padding. One thread each, tokens by CPU-second,
interleaved pairs.

python -m benchmarks.label_topics [--documents 1500] [--pairs 10] [--full-length 128] [--classifier FOLDER --input FILE]
"""

import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks._figures import Figure, Record, parser_of
from benchmarks._pairs import interleaved, ratio_of
from tools.data.label_topics import LabelOptions, label_topics
from tools.data.topic_labels import read_topics
from tools.data.topic_model import (
    BATCH_TOKENS,
    Shape,
    TopicClassifier,
    Trained,
    load_classifier,
    new_config,
    save_classifier,
    tokenise,
    train_tokenizer,
)


def made_up(folder: Path, documents: int) -> tuple[Path, Path]:
    """(documents of log-normal length, median 90 words, and a classifier of TinyBERT's shape with random weights)."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(8000)]
    texts = [" ".join(chance.choices(words, k=max(1, int(chance.lognormvariate(4.5, 1))))) for _ in range(documents)]
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = train_tokenizer(texts, vocab_size=16_000, max_length=256)
    config = new_config(Shape(), vocab_size=tokenizer.get_vocab_size(), max_length=256)
    topics = read_topics(None)
    classifier = folder / "classifier"
    classifier.mkdir()
    model = TopicClassifier(config, num_topics=len(topics["en"]))
    save_classifier(Trained(model, tokenizer, topics, tuple(topics["en"]), 1.0, 0.0, 256), classifier)
    return file, classifier


def measure(record: Record, file: Path, classifier: Path, folder: Path, *, pairs: int, full_length: int | None) -> None:
    torch.set_num_threads(1)
    trained = load_classifier(classifier)
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    rows = tokenise(trained.tokenizer, texts, max_length=trained.max_length)
    lengths = [len(row) for row in rows]
    flat = torch.tensor([token for row in rows for token in row])
    length = full_length or trained.max_length
    full = flat[: len(flat) // length * length].view(-1, length)  # [rows, length]: packed as far as it goes
    out = folder / "out"

    def ours() -> float:
        shutil.rmtree(out, ignore_errors=True)
        started = time.process_time()
        label_topics(LabelOptions(inputs=(str(file),), classifier=classifier, out=out))
        return len(flat) / (time.process_time() - started)

    @torch.inference_mode()
    def forward() -> float:
        started = time.process_time()
        for batch in full.split(BATCH_TOKENS["cpu"] // length):
            trained.model(batch, None)
        return full.numel() / (time.process_time() - started)

    found = interleaved(ours, forward, num_pairs=pairs)
    what = (
        "`syne data label-topics` (reading, tokenising, labelling, writing) to the encoder's bare forward pass on full "
        f"batches of {length} tokens, by CPU-second, one thread"
    )
    medians = [statistics.median(side) for side in zip(*found, strict=True)]
    note = (
        f"{len(texts)} documents of {min(lengths)} to {max(lengths)} tokens; {medians[0]:,.0f} against "
        f"{medians[1]:,.0f} tokens/s"
    )
    record.add(Figure.of(what, ratio_of(found), target=0.8, note=note))


def main() -> None:
    parser = parser_of(__doc__, documents=1500, pairs=10)
    parser.add_argument("--classifier", type=Path, help="folder of train-classifier")
    parser.add_argument("--input", type=Path, help=".jsonl of documents, with --classifier")
    parser.add_argument("--full-length", type=int, help="tokens of a full row; default: the classifier's longest")
    arguments = parser.parse_args()
    with Record("label_topics", keep=arguments.record) as record, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.classifier and arguments.input:
            file, classifier = arguments.input, arguments.classifier
        else:
            file, classifier = made_up(folder, arguments.documents)
        measure(record, file, classifier, folder, pairs=arguments.pairs, full_length=arguments.full_length)


if __name__ == "__main__":
    main()
