"""What the user's cache folder keeps of tokenizers that fastokens was compared on, so that opening one again is quick.

<cache>/megatron-syne/tokenizers/<hash>.json       the outcome and all facts but the vocabulary
<cache>/megatron-syne/tokenizers/<hash>.tokenizer  the tokenizer.json that fastokens is opened with, as it was checked
The hash is of the tokenizer's files, the versions of the libraries and this format: a change of any asks for a new
comparison.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from megatron_synE.data.tokenizer_engines import CONFIG_NAMES, Encode, LoadedEngine, open_fast

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when tokenizer_engines makes something else of the same files
_FACTS = ("control", "vocab_size", "eos_token", "bos_token", "is_byte_level", "eos_id", "digest")


def record_path(path: Path, num_check_strings: int) -> Path:
    """Where the outcome for a tokenizer file is kept. Errors: ConfigError if there is no home folder."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a container under a user's number without a name
        raise ConfigError("no home folder to cache tokenizers in; export HOME or XDG_CACHE_HOME") from error
    digest = hashlib.sha256(f"{FORMAT} {num_check_strings}".encode())
    for file in (path, *(path.parent / name for name in CONFIG_NAMES)):
        content = file.read_bytes() if file.is_file() else b""
        digest.update(hashlib.sha256(content).digest())
    for package in ("fastokens", "tokenizers", "tiktoken"):
        try:
            digest.update(f"{package}={version(package)}".encode())
        except PackageNotFoundError:
            continue
    return root / "megatron-syne" / "tokenizers" / f"{digest.hexdigest()}.json"


def read(record: Path, open_file: Callable[[], LoadedEngine]) -> tuple[LoadedEngine, Encode] | Literal[False] | None:
    """What is kept of a tokenizer on which fastokens is proven equal; False: it gives other ids; None: nothing whole.

    The engine opens the tokenizer file only when its reference or its vocabulary is asked for, fastokens opens when it
    is first called.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["equal"] is False:
            return False
        facts = {name: content[name] for name in _FACTS}
        raw = record.with_suffix(".tokenizer").read_bytes()
        if hashlib.sha256(raw).hexdigest() != content["tokenizer_sha256"]:
            return None
        text = raw.decode()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fast = cache(lambda: open_fast(text))

    def reference(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return open_file().reference(texts)

    engine = LoadedEngine(
        reference=reference, fast_json=lambda: text, token_bytes=lambda: open_file().token_bytes(), **facts
    )
    return engine, lambda texts: fast()(texts)


def keep(record: Path, engine: LoadedEngine, text: str, digest: str) -> None:
    """Keep that fastokens gives equal ids, and what it was opened with."""
    engine = replace(engine, digest=digest)
    facts = {name: getattr(engine, name) for name in _FACTS}
    raw = text.encode()
    outcome = {"equal": True, "tokenizer_sha256": hashlib.sha256(raw).hexdigest(), **facts}
    _write({record.with_suffix(".tokenizer"): raw, record: json.dumps(outcome).encode()})


def keep_unequal(record: Path) -> None:
    _write({record: json.dumps({"equal": False}).encode()})


def _write(files: dict[Path, bytes]) -> None:
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
    except OSError as error:
        logger.warning("cannot keep the tokenizer check (%s): it will be repeated", error)
