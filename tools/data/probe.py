"""`syne data probe`: multiple-choice items in JSON lines to the token ids that a run's guard scores."""

import json
from pathlib import Path
from typing import Any

from data_mixers.errors import DataError
from megatron_synE.data.probe import SCHEMA_VERSION, Probe, ProbeItem, write_probe
from megatron_synE.data.tokenizers import load_tokenizer

KEYS = {"context", "choices", "answer"}


def make_probe(
    items: Path, out: Path, *, tokenizer_path: Path, language: str = "en", eos_token: str | None = None
) -> Probe:
    """Tokenise {"context": text, "choices": [text, ...], "answer": index} per line and write the probe.

    Context and choice are joined as they are written (a choice brings its own leading space) and tokenised together,
    as such text is in training; EOS follows.
    Errors: DataError naming file and line. A probe is small, so the first bad line refuses it.
    """
    tokenizer = load_tokenizer(tokenizer_path, eos_token=eos_token)
    made = []
    for number, line in enumerate(_lines(items), start=1):
        if not line.strip():
            continue
        try:
            context, choices, answer = _item(line)
            documents = tokenizer.encode_ordinary_batch([context + choice for choice in choices])
            ids = tuple((*map(int, document), tokenizer.eos_id) for document in documents)
            made.append(ProbeItem(choices=ids, answer=answer))
        except DataError as error:
            raise DataError(f"{items} line {number}: {error}") from error
    try:
        probe = Probe(
            schema_version=SCHEMA_VERSION, language=language, tokenizer=tokenizer.identity(), items=tuple(made)
        )
    except DataError as error:
        raise DataError(f"{items}: {error}") from error
    write_probe(probe, out)
    return probe


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; name a file of JSON lines") from error


def _item(line: str) -> tuple[str, list[str], int]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(row, dict) or not row.keys() >= KEYS:
        raise DataError(f"an item has the keys {', '.join(sorted(KEYS))}")
    context, choices, answer = row["context"], row["choices"], row["answer"]
    if not isinstance(context, str) or not context:
        raise DataError("context must be a text that is not empty")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise DataError("choices must be a list of texts, none empty")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise DataError(f"answer {answer!r} must be the index of the right choice, from 0")
    return context, choices, answer
