"""Snippets of a page: runs of whole sentences that a reader understands without what comes before.

English sentences end where NLTK's Punkt, trained on the corpus itself, says so; Chinese ones at their own punctuation.
A line without a sentence's end (a heading, a list's item, a table's row) ends a run.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from data_mixers.atomic import write_atomic
from tools.data.units import units_of
from tools.synthesis.seed_rules import SeedRules

TRAINING_CHARACTERS = 20_000_000  # ours: of English pages; Punkt reads some 1 MB/s and its tables are settled by then
_ZH_SENTENCE = re.compile(r"[^。！？!?；]*?(?:[。！？!?]|……|；)+[”’」』）)\"]*")
_ZH_END = re.compile(r"(?:[。！？!?]|……)[”’」』）)\"]*$")
_EN_END = re.compile(r"[.!?][\"'”’)\]]*$")


def train_punkt(texts: Iterable[str], path: Path) -> None:
    """Learn abbreviations, collocations and sentence starters of these texts and keep them as JSON."""
    from nltk.tokenize.punkt import PunktTrainer

    trainer = PunktTrainer()
    trainer.INCLUDE_ALL_COLLOCS = False
    for text in texts:
        trainer.train(text, finalize=False)
    trainer.finalize_training()
    found = trainer.get_params()
    content = {
        "abbreviations": sorted(found.abbrev_types),
        "collocations": sorted(map(list, found.collocations)),
        "sentence_starters": sorted(found.sent_starters),
        "orthography": dict(sorted(found.ortho_context.items())),
    }
    write_atomic(path, orjson.dumps(content))


def load_punkt(path: Path, abbreviations: Iterable[str]) -> Any:
    """The sentence tokenizer of what `train_punkt` kept, and of abbreviations that are known anyway."""
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    content = orjson.loads(path.read_bytes())
    parameters = PunktParameters()
    parameters.abbrev_types = {*content["abbreviations"], *abbreviations}
    parameters.collocations = {(first, second) for first, second in content["collocations"]}
    parameters.sent_starters = set(content["sentence_starters"])
    for word, flags in content["orthography"].items():
        parameters.ortho_context[word] = flags
    return PunktSentenceTokenizer(parameters)


def snippets(text: str, language: str, rules: SeedRules, punkt: Any) -> Iterator[str]:
    """The page's snippets in order; no two share a sentence. punkt: of `load_punkt`, used for English alone."""
    for run in _runs(text, language, punkt):
        yield from _cut(run, language, rules)


def _runs(text: str, language: str, punkt: Any) -> Iterator[list[str]]:
    blocks = re.split(r"\n\s*\n", text) if re.search(r"\n\s*\n", text) else text.split("\n")
    glue = "" if language == "zh" else " "
    run: list[str] = []
    for block in blocks:
        paragraph = glue.join(line.strip() for line in block.split("\n")).strip()
        if not paragraph:
            continue
        # First of all: a search for sentences costs the square of a text that has no end of one.
        if not (_ZH_END if language == "zh" else _EN_END).search(paragraph):
            yield run
            run = []
            continue
        run += _sentences(paragraph, language, punkt)
    yield run


def _sentences(paragraph: str, language: str, punkt: Any) -> list[str]:
    if language != "zh":
        found: list[str] = punkt.tokenize(paragraph)
        return found
    joined, pending = [], ""
    for sentence in _ZH_SENTENCE.findall(paragraph):
        pending += sentence
        if _ZH_END.search(sentence):  # a semicolon alone does not end a sentence
            joined.append(pending.strip())
            pending = ""
    return joined


def _cut(sentences: list[str], language: str, rules: SeedRules) -> Iterator[str]:
    fewest, most = rules.window
    glue = "" if language == "zh" else " "
    start = 0
    while start < len(sentences):
        if rules.opening.match(sentences[start].casefold()) or not sentences[start][0].isalnum():
            start += 1
            continue
        size, stop = 0, start
        while stop < len(sentences) and size + (more := len(units_of(sentences[stop]))) <= most:
            size += more
            stop += 1
        if size >= fewest:
            yield glue.join(sentences[start:stop])
        start = max(stop, start + 1)
