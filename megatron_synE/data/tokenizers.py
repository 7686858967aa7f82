"""One face for HF, tiktoken and sentencepiece tokenizers: ordinary text to ids, and an identity that compares meaning.

Text that spells a control token ("<|end_of_text|>") is always encoded as ordinary text: a web page must not be able to
end a document.
"""

import hashlib
import logging
import re
import struct
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import TokenizerIdentity
from megatron_synE.data.engine_check import PROBE, Chosen, choose
from megatron_synE.data.tokenizer_engines import LoadedEngine, open_hf, open_sentencepiece, open_tiktoken

logger = logging.getLogger(__name__)

GUESSED_EOS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|im_end|>")
BYTE_SPELLING = re.compile(rb"<0x([0-9A-F]{2})>")
SPACE_SPELLING = "\u2581".encode()
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")


class Tokenizer:
    """Ordinary text to ids. `load_tokenizer` makes one."""

    def __init__(self, chosen: Chosen, *, eos_id: int, bos_id: int | None) -> None:
        self.engine_name = chosen.name
        """fastokens or reference."""
        self.eos_id = eos_id
        self.bos_id = bos_id
        self.vocab_size = chosen.engine.vocab_size
        """Largest id + 1, control tokens included."""
        self._encode = chosen.encode
        self._engine = chosen.engine
        self._control = chosen.engine.control
        self._is_byte_level = chosen.engine.is_byte_level
        self._is_control = np.zeros(self.vocab_size, dtype=bool)
        self._is_control[list(self._control.values())] = True
        self._lowest_control = min(self._control.values(), default=self.vocab_size)
        self._highest_control = max(self._control.values(), default=-1)

    def encode_ordinary_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids of each text, in order: no BOS, no EOS, never a control id."""
        ids, offsets = self.encode_ordinary_flat(texts)
        return [ids[start:stop] for start, stop in pairwise(offsets.tolist())]

    def encode_ordinary_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The same as one flat array and len(texts) + 1 offsets into it."""
        ids, offsets = self._encode(texts)
        lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, -1)
        if highest >= self.vocab_size or lowest < 0:
            raise DataError(f"the tokenizer gave id {highest}, outside its vocabulary of {self.vocab_size}")
        if highest < self._lowest_control or lowest > self._highest_control:
            return ids, offsets  # the usual case; looking up every id takes a tenth of the tokenising
        found = np.flatnonzero(self._is_control[ids])
        if not found.size:
            return ids, offsets
        # Unigram models hold control spellings among their pieces and honour them: take those spellings apart.
        rows = [ids[start:stop] for start, stop in pairwise(offsets.tolist())]
        for row in np.unique(np.searchsorted(offsets, found, side="right") - 1).tolist():
            rows[row] = self._encode_apart(texts[row])
        new_offsets = np.zeros_like(offsets)
        np.cumsum([len(row) for row in rows], out=new_offsets[1:])
        return np.concatenate(rows), new_offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text for a person to look at: control tokens are spelled out, bytes that are no UTF-8 become U+FFFD."""
        spelled = {index: spelling.encode() for spelling, index in self._control.items()}
        raw = b"".join(self._text_of_id[index] or spelled.get(index, b"") for index in ids)
        return raw.decode("utf-8", "replace")

    def text_bytes(self, ids: npt.NDArray[np.integer]) -> bytes:
        """The UTF-8 bytes of the text that has these ids; control ids give nothing.

        Exact for byte-level tokenizers; others may have normalised the text before it became ids.
        """
        raw = b"".join(map(self._text_of_id.__getitem__, ids.tolist()))
        return raw if self._is_byte_level else raw.removeprefix(b" ")  # sentencepiece puts one before the text

    @cached_property
    def _text_of_id(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        for index, token in self._engine.token_bytes().items():
            byte = None if self._is_byte_level else BYTE_SPELLING.fullmatch(token)
            if byte is not None:
                table[index] = bytes([int(byte[1], 16)])
            else:
                table[index] = token if self._is_byte_level else token.replace(SPACE_SPELLING, b" ")
        return table

    def identity(self) -> TokenizerIdentity:
        """What data made with this tokenizer must agree on; equal for two files that give equal ids."""
        return TokenizerIdentity(digest=self.digest, vocab_size=self.vocab_size, eos_id=self.eos_id, bos_id=self.bos_id)

    @cached_property
    def digest(self) -> str:
        if self._engine.digest is not None:
            return self._engine.digest
        digest = hashlib.sha256()
        token_bytes = self._engine.token_bytes()
        for index in sorted(token_bytes):
            token = token_bytes[index]
            digest.update(struct.pack("<II", index, len(token)) + token)
        # Ids, not spellings: "reserved_special_token_5" is called otherwise from one release to the next.
        digest.update(np.flatnonzero(self._is_control).astype("<i8").tobytes())
        for ids in self.encode_ordinary_batch(PROBE):
            digest.update(struct.pack("<I", len(ids)) + ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def _encode_apart(self, text: str) -> npt.NDArray[np.int32]:
        """Encode with a cut after the first character of every control spelling."""
        spellings = sorted(self._control, key=len, reverse=True)
        pattern = re.compile("|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in spellings if len(s) > 1))
        ids, _ = self._encode([part for part in pattern.split(text) if part])
        if self._is_control[ids].any():
            raise DataError(
                f"the tokenizer makes control id {int(ids[self._is_control[ids]][0])} of ordinary text; "
                "it cannot be used for web text"
            )
        return ids


def load_tokenizer(
    path: Path, *, eos_token: str | None = None, engine: Literal["auto", "reference"] = "auto"
) -> Tokenizer:
    """The tokenizer of an HF folder, a tokenizer.json, a Llama-3 tokenizer.model (tiktoken) or a sentencepiece model.

    eos_token: spelling of the token that ends a document, where the folder does not say or says otherwise.
    engine: auto takes fastokens where it is proven equal; reference is the kind's own implementation.
    Errors: ConfigError if there is no tokenizer or no EOS; DataError if the file is damaged.
    """
    file = _find(path)
    if file is None:
        raise ConfigError(
            f"no tokenizer at {path}: give an HF folder with tokenizer.json or tokenizer.model, or such a file"
        )
    chosen = _reference(file) if engine == "reference" else choose(file, _open)
    bos_token, control = chosen.engine.bos_token, chosen.engine.control
    tokenizer = Tokenizer(
        chosen,
        eos_id=_eos_id(chosen.engine, file, eos_token),
        bos_id=control.get(bos_token) if bos_token is not None else None,
    )
    if chosen.keep is not None:
        chosen.keep(tokenizer.digest)
    return tokenizer


def digest_of(folder: Path) -> str | None:
    """The digest of TokenizerIdentity for the tokenizer in an HF folder; None if it holds none.

    Its EOS is not asked for: whoever made the data may have named another. Errors: DataError if the file is damaged.
    """
    file = _find(folder)
    if file is None:
        return None
    return Tokenizer(_reference(file), eos_id=-1, bos_id=None).digest


def _reference(file: Path) -> Chosen:
    engine = _open(file)
    return Chosen(name="reference", engine=engine, encode=engine.reference)


def _find(path: Path) -> Path | None:
    candidates = [path / "tokenizer.json", path / "tokenizer.model"] if path.is_dir() else [path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _open(file: Path) -> LoadedEngine:
    if file.suffix == ".json":
        return open_hf(file)
    with file.open("rb") as stream:
        is_tiktoken = TIKTOKEN_LINE.fullmatch(stream.readline(4096)) is not None
    return open_tiktoken(file) if is_tiktoken else open_sentencepiece(file)


def _eos_id(loaded: LoadedEngine, file: Path, asked: str | None) -> int:
    known = ", ".join(list(loaded.control)[:8]) or "none"
    spelling = asked or loaded.eos_token
    if spelling is None and loaded.eos_id is not None:
        return loaded.eos_id
    if spelling is None:
        guessed = [candidate for candidate in GUESSED_EOS if candidate in loaded.control]
        if not guessed:
            raise ConfigError(
                f"{file} does not say which token is EOS; name it with --eos-token (control tokens: {known})"
            )
        spelling = guessed[0]
        logger.warning("%s does not say which token is EOS: taking %s; --eos-token names another", file, spelling)
    if spelling not in loaded.control:
        raise ConfigError(f"EOS token {spelling!r} is not a control token of {file} (control tokens: {known})")
    return loaded.control[spelling]
