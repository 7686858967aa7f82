"""A downstream probe: multiple-choice items as token ids, answered by log-likelihood inside validation.

Each choice is one document (context, choice, EOS). A document's first token is not scored and all choices of an item
begin with the same tokens, whose likelihood is the same constant for each: so the choice with the largest
log-likelihood of the whole document is the one with the largest log-likelihood given the context. It is not divided by
the choice's length, and EOS counts.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from data_mixers.file_version import check_version
from data_mixers.guard import ProbeAnswers
from data_mixers.manifest import TokenizerIdentity
from data_mixers.strict_json import parse

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ProbeItem:
    """One question."""

    choices: tuple[tuple[int, ...], ...]
    """Token ids of each whole document."""
    answer: int
    """Index of the right choice."""

    def __post_init__(self) -> None:
        """Errors: DataError for an item that cannot be scored."""
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise DataError("an item needs two or more choices, no two of them alike")
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"answer {self.answer} is none of the choices 0 to {len(self.choices) - 1}")
        if min(map(len, self.choices)) < 2 or len({choice[0] for choice in self.choices}) > 1:
            raise DataError("the choices of an item must begin with the same token; lengthen the context")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What `syne data probe` writes. Errors: DataError without items, or for a token outside the vocabulary."""

    schema_version: int
    language: str
    tokenizer: TokenizerIdentity
    items: tuple[ProbeItem, ...]

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError("a probe needs at least one item")
        tokens = {token for item in self.items for choice in item.choices for token in choice}
        if min(tokens) < 0 or max(tokens) >= self.tokenizer.vocab_size:
            raise DataError(f"token ids {min(tokens)} to {max(tokens)}, outside {self.tokenizer.vocab_size}")

    @property
    def num_documents(self) -> int:
        return sum(len(item.choices) for item in self.items)

    @property
    def num_tokens(self) -> int:
        return sum(len(choice) for item in self.items for choice in item.choices)

    @property
    def longest(self) -> int:
        """Tokens of the longest document; all but its first are scored."""
        return max(len(choice) for item in self.items for choice in item.choices)

    def answers(self, nll_sums: list[float]) -> ProbeAnswers:
        """Which items are right. nll_sums: one per document, item after item; of equal ones the first counts."""
        found, at = [], 0
        for item in self.items:
            sums = nll_sums[at : at + len(item.choices)]
            found.append(int(sums.index(min(sums)) == item.answer))
            at += len(item.choices)
        digest = hashlib.sha256(_json(self).encode()).hexdigest()[:16]
        return ProbeAnswers(probe=digest, correct=tuple(found))


def write_probe(probe: Probe, path: Path) -> None:
    write_atomic(path, (_json(probe) + "\n").encode())


def read_probe(path: Path) -> Probe:
    """Errors: DataError naming the file for anything but what `write_probe` writes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as a probe: {error}; write it with `syne data probe`") from error
    cure = "write it again with `syne data probe`"
    check_version(content, understood=SCHEMA_VERSION, file=path, cure=cure, fault=DataError)
    try:
        return parse(Probe, content, where="probe", fault=DataError)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _json(probe: Probe) -> str:
    return json.dumps(asdict(probe), separators=(",", ":"))
