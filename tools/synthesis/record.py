"""The record that every step of `syne synth` reads and writes: a question with its worked answer, a JSON line."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tools.data.documents import Document
from tools.data.readers import BadRecord, InputTask
from tools.synthesis.output import bad_line, documents_of

DISCIPLINES = (
    "mathematics", "physics", "chemistry", "biology", "astronomy", "earth_science", "medicine", "computer_science",
    "general_education", "code",
)  # fmt: skip
"""The recipe's nine, and code from problem statements."""

CUT_OFF = frozenset({"length", "max_tokens", "model_length", "content_filter"})
"""Values of finish_reason, of several servers, that say that a completion is not whole."""

Number = int | float


@dataclass(frozen=True, kw_only=True)
class QaRecord:
    """One pair and where it comes from. A step adds keys under `extra` and changes nothing else."""

    id: str
    """One per pair, the same whenever the pair is made again."""
    discipline: str
    """One of DISCIPLINES."""
    language: str
    """zh, en, ...: of question and answer."""
    question: str
    """Stands alone: no text beside it is needed."""
    answer: str
    """The worked solution, the result in its last line."""
    generator: str
    """The model's name, or "verifiable:<kind>/<topic>"."""
    final_answer: str | None = None
    """The result alone, in the same notation for all languages; None where there is none (an essay, code)."""
    seed_id: str | None = None
    """Of the document the snippet was cut from; None without a seed."""
    seed_hash: str | None = None
    """Of the snippet's text: with `sample` the key under which generation goes on."""
    sample: int = 0
    """Which of several answers to one seed."""
    prompt_hash: str | None = None
    """Of the prompt's template, wording and examples, before the snippet is put in."""
    sampling: dict[str, Number | str] = field(default_factory=dict)
    """As sent: temperature, top_p, max_tokens, seed."""
    usage: dict[str, int] = field(default_factory=dict)
    """prompt_tokens, completion_tokens, as the server counted them."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Every key that is none of the above: examples (of code), checks, corruption, ..."""

    def to_json(self) -> dict[str, Any]:
        """What is written: keys without a value are left out, `extra` lies beside the others."""
        known = {item.name: getattr(self, item.name) for item in fields(self)}  # asdict copies all that lies in them
        extra: dict[str, Any] = known.pop("extra")
        return {key: value for key, value in known.items() if value not in (None, {})} | extra


_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str, "discipline": str, "language": str, "question": str, "answer": str, "generator": str,
    "final_answer": str, "seed_id": str, "seed_hash": str, "sample": int, "prompt_hash": str, "sampling": dict,
    "usage": dict,
}  # fmt: skip
_NEEDED = ("discipline", "language", "answer", "generator")


def read_records(tasks: Sequence[InputTask], on_bytes: Callable[[int], None] = lambda size: None) -> Iterator[QaRecord]:
    """The pairs in their order. Errors: DataError for a line that is none."""
    for task, document in documents_of(tasks, text_key="question", on_bytes=on_bytes):
        pair = record_of(document)
        if isinstance(pair, BadRecord):
            raise bad_line(task, pair)
        yield pair


def record_of(document: Document) -> QaRecord | BadRecord:
    """The pair a document holds, or why it holds none."""
    content = document.fields
    for key in _NEEDED:
        if not content.get(key):
            return BadRecord(document.line, f"missing key {key}")
    for key, kind in _TYPES.items():
        if content.get(key) is not None and not isinstance(content[key], kind):
            return BadRecord(document.line, f"{key} is not {'text' if kind is str else kind}")
    for key, name in (("usage", "completion_tokens"), ("sampling", "max_tokens")):
        if not isinstance((content.get(key) or {}).get(name, 0), Number):
            return BadRecord(document.line, f"{key}.{name} is no number")
    if not content["answer"].strip():
        return BadRecord(document.line, "answer is empty")
    if "\0" in content["answer"]:  # of the question the reader says it
        return BadRecord(document.line, "answer holds a NUL character")
    if content["discipline"] not in DISCIPLINES:
        return BadRecord(document.line, f"discipline {content['discipline']!r} is none of {', '.join(DISCIPLINES)}")
    names = {item.name for item in fields(QaRecord)} - {"extra"}
    known = {key: value for key, value in content.items() if key in names and value is not None}
    return QaRecord(**known, extra={key: value for key, value in content.items() if key not in names})


def filled(template: str, *, question: str, answer: str) -> str:
    """The template with both in their places; braces of their own stay."""
    values = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{(?:question|answer)\}", lambda found: values[found[0]], template)
