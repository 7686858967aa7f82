"""The quickstart's text: JSONL per role, language, source and topic; train and validation share nothing."""

import hashlib
import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from examples.quickstart.cleaning import split_text
from examples.quickstart.progress import step
from examples.quickstart.sources import SOURCES, HeldOut, Page, Source

HELD_OUT_PERCENT = 6  # of the keys of a source that is both trained on and validated
# A source; ours: minutes, not days.
TRAIN_BYTES = {"zh": 1_000_000, "en": 700_000, "code": 700_000, "synthetic": 700_000}
VALIDATION_BYTES = {"zh": 6_000, "en": 9_000, "code": 8_000, "synthetic": 5_000}  # a set: about 2,000 to 3,500 tokens
# Shorter pieces than in training, few of each page: a small set then still covers many pages.
VALIDATION_CHARACTERS = {"zh": 600, "en": 1_500, "code": 1_500}
VALIDATION_PIECES_PER_PAGE = 3
MAX_OVERLAP = 0.2  # share of a validation document's 13-grams that training text may hold
NGRAM = 13  # as in the contamination studies of GPT-3 (arXiv 2005.14165, appendix C)
REPORT = "corpora.json"
VALIDATED = ("documents", "source", "retention")
Role = Literal["train", "validation"]


@dataclass(frozen=True)
class Document:
    text: str
    id: str  # sha256 of the text, shortened
    topic: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class SetReport:
    role: Role
    language: str
    source: str
    topic: str
    held_out: HeldOut | None  # validation: what was kept from training; None for a training set
    path: str  # relative to the output folder
    num_documents: int
    size_bytes: int
    num_too_short: int = 0  # pages and leftover pieces left out
    num_duplicates: int = 0  # documents left out because the same text came before
    num_near_duplicates: int = 0  # validation documents left out because of MAX_OVERLAP
    max_overlap: float = 0.0  # share of 13-grams that training text holds too

    @property
    def name(self) -> str:
        return f"{self.language}/{self.source}/{self.topic}"


@dataclass(frozen=True)
class CorpusReport:
    sets: tuple[SetReport, ...]
    missing: tuple[str, ...]  # sets that this machine could not have

    def of_role(self, role: Role) -> list[SetReport]:
        return [entry for entry in self.sets if entry.role == role]


def build(assets: Path, out: Path, sources: tuple[Source, ...] = SOURCES) -> CorpusReport:
    """Writes `<out>/text/<role>/<language>/<source>/<topic>.jsonl` and the report `<out>/text/corpora.json`.

    The same assets give the same files, byte for byte; the folder is replaced as a whole.
    Errors: DataError when a package's file is missing or not as expected.
    """
    with step("reading, cleaning and splitting the text"):
        has_debian = (assets / "debian/usr/share").is_dir()
        present = [s for s in sources if not s.is_debian or (has_debian and next(s.pages(assets), None) is not None)]
        missing = tuple(source.set_name for source in sources if source not in present)
        seen: set[str] = set()
        candidates = [_candidates(source, assets, seen) for source in present]
    with step("looking for near duplicates"):
        overlaps = _overlaps([c.validation for c in candidates], [c.train for c in candidates])
    temporary = out / "text.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    sets: list[SetReport] = []
    for source, found, overlap in zip(present, candidates, overlaps, strict=True):
        sets += _write_sets(source, found, overlap, temporary)
    report = CorpusReport(tuple(sets), missing)
    _write_lines(temporary / REPORT, [json.dumps(asdict(report), indent=1, ensure_ascii=False)])
    shutil.rmtree(out / "text", ignore_errors=True)
    temporary.rename(out / "text")
    return report


@dataclass(frozen=True)
class _Candidates:
    train: list[Document]
    validation: list[Document]
    num_too_short: int
    num_duplicates: int


def _candidates(source: Source, assets: Path, seen: set[str]) -> _Candidates:
    """Documents for training up to the source's share of bytes, and a few times more for validation than are kept."""
    train: list[Document] = []
    validation: list[Document] = []
    num_too_short = num_duplicates = 0
    room = {"train": TRAIN_BYTES[source.language], "validation": 4 * VALIDATION_BYTES[source.language]}
    for page in _in_mixed_order(source, assets):
        held_out = _is_held_out(source, page)
        role = "validation" if held_out else "train"
        if room[role] <= 0:
            continue
        if len(page.text) < source.min_characters:
            num_too_short += 1
            continue
        for text in _pieces(source, page, held_out=held_out):
            identity = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
            if len(text) < source.min_characters:  # what no neighbour could take in
                num_too_short += 1
                continue
            if identity in seen:
                num_duplicates += 1
                continue
            seen.add(identity)
            (validation if held_out else train).append(Document(text, identity, source.topic, page.origin))
            room[role] -= len(text.encode())
    is_trained, is_validated = (source.held_out in kinds for kinds in (("documents", "nothing"), VALIDATED))
    if (is_validated and not validation) or (is_trained and not train):
        raise DataError(f"{source.set_name}: no text was found under {assets}; delete that folder and fetch it again")
    return _Candidates(train, validation, num_too_short, num_duplicates)


def _pieces(source: Source, page: Page, *, held_out: bool) -> list[str]:
    shorter = VALIDATION_CHARACTERS.get(source.language, source.max_characters) if held_out else source.max_characters
    pieces = split_text(page.text, max_characters=shorter, min_characters=source.min_characters)
    if held_out:
        return pieces[:: max(1, -(-len(pieces) // VALIDATION_PIECES_PER_PAGE))]
    return pieces


def _in_mixed_order(source: Source, assets: Path) -> list[Page]:
    """Pages in the order of their keys' hashes: a share of bytes is then a fair sample of the whole source."""
    try:
        pages = list(source.pages(assets))
    except (OSError, LookupError, ValueError, RuntimeError, sqlite3.Error) as fault:
        raise DataError(
            f"{source.set_name}: cannot be read ({type(fault).__name__}: {fault}); delete {assets} and fetch it again"
        ) from fault
    return sorted(pages, key=lambda page: _hash(page.key))


def _is_held_out(source: Source, page: Page) -> bool:
    if source.held_out != "documents":
        return source.held_out != "nothing"
    if page.is_held_out is not None:
        return page.is_held_out
    # The lowest digits decide, the highest give the order: the two must not depend on each other.
    return _hash(page.key) % 100 < HELD_OUT_PERCENT


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _overlaps(validation: list[list[Document]], train: list[list[Document]]) -> list[list[float]]:
    """For each validation document, the share of its 13-grams that occur in any training document."""
    grams = [[set(ngrams(document.text)) for document in documents] for documents in validation]
    wanted = set().union(*itertools.chain.from_iterable(grams))
    found: set[tuple[str, ...]] = set()
    for document in itertools.chain.from_iterable(train):
        found.update(gram for gram in ngrams(document.text) if gram in wanted)
    return [[len(g & found) / len(g) if g else 0.0 for g in documents] for documents in grams]


def ngrams(text: str) -> Iterator[tuple[str, ...]]:
    """The 13-grams of a text; a Chinese character and a run of other letters or digits each count as one."""
    units = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())
    return zip(*(units[start:] for start in range(NGRAM)), strict=False)


def _write_sets(source: Source, found: _Candidates, overlap: list[float], out: Path) -> Iterator[SetReport]:
    clean = [i for i in range(len(found.validation)) if overlap[i] <= MAX_OVERLAP]
    kept: list[int] = []
    room = VALIDATION_BYTES[source.language]
    for i in sorted(clean, key=lambda i: found.validation[i].id):
        size = len(found.validation[i].text.encode())
        if size <= room:
            kept.append(i)
            room -= size
    if source.held_out in VALIDATED:
        worst = round(max((overlap[i] for i in kept), default=0.0), 4)
        counts = {"num_near_duplicates": len(found.validation) - len(clean), "max_overlap": worst}
        yield _write_set(source, "validation", [found.validation[i] for i in kept], out, counts)
    if found.train:
        counts = {"num_too_short": found.num_too_short, "num_duplicates": found.num_duplicates}
        yield _write_set(source, "train", found.train, out, counts)


def _write_set(source: Source, role: Role, documents: list[Document], out: Path, counts: dict[str, Any]) -> SetReport:
    if not documents:
        raise DataError(f"{source.set_name}: no {role} document is left after the duplicates were taken out")
    path = Path(role) / f"{source.set_name}.jsonl"
    _write_lines(out / path, (json.dumps(asdict(document), ensure_ascii=False) for document in documents))
    return SetReport(
        role=role, language=source.language, source=source.name, topic=source.topic,
        held_out=source.held_out if role == "validation" else None, path=f"text/{path.as_posix()}",
        num_documents=len(documents), size_bytes=sum(len(document.text.encode()) for document in documents), **counts,
    )  # fmt: skip


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
