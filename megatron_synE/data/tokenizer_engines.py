"""The three kinds of tokenizer file and how each turns texts into flat ids without ever honouring control spellings.

An engine encodes ordinary text only: no BOS, no truncation, no padding, no control ids. Ids stay in flat arrays:
Python lists of ids cost more than the tokenising itself.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from data_mixers.errors import DataError

Encode = Callable[[Sequence[str]], tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]
"""texts -> (ids of all texts in a row, len(texts) + 1 offsets into them)."""

# Spellings that models use for control: <|im_end|>, <s>, </tool_call>, [INST]. Whitespace tokens and the like are text.
CONTROL_SPELLING = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")

# Split pattern and control tokens of Llama-3 are not in its tokenizer.model; values of meta-llama/llama-models 0.3.0.
LLAMA3_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
CONFIG_NAMES = ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json")
"""Beside a tokenizer.json: the first two spell EOS and BOS, the others give an id."""
LLAMA3_NUM_RANKS = 128_000
LLAMA3_NUM_CONTROL = 256
LLAMA3_NAMED = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10}


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """A tokenizer file, opened."""

    reference: Encode
    """The kind's own implementation: HF tokenizers, tiktoken or sentencepiece."""
    fast_json: Callable[[], str] | None
    """The same tokenizer as a tokenizer.json for fastokens, to be trusted only after a check; None: it knows no such
    kind."""
    token_bytes: Callable[[], dict[int, bytes]]
    """Ordinary tokens: id -> the bytes (byte-level) or the spelling (other kinds) it stands for."""
    control: dict[str, int]
    """Control spelling -> id; never made from text."""
    vocab_size: int
    """Largest id + 1, control tokens included."""
    eos_token: str | None
    bos_token: str | None
    is_byte_level: bool
    """token_bytes are the text's own bytes; else spellings, with U+2581 for a space and <0xE4> for a byte."""
    eos_id: int | None = None
    """Where a config file states the id instead of the spelling."""
    digest: str | None = None
    """TokenizerIdentity.digest, where it has been computed before."""


def flatten(rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Lists of ids as one flat array with offsets."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
    return flat, offsets


def open_hf(path: Path) -> LoadedEngine:
    """A tokenizer.json of Hugging Face tokenizers; eos and bos from the config files beside it."""
    try:
        content = orjson.loads(path.read_bytes())
        added = content.get("added_tokens") or []
        for token in added:
            # what encode_special_tokens goes by; some tokenizers leave it off control tokens such as <tool_call>
            token["special"] = bool(token["special"]) or CONTROL_SPELLING.fullmatch(token["content"]) is not None
        content["truncation"] = content["padding"] = None
        if content["model"].get("dropout"):
            content["model"]["dropout"] = None
        text = orjson.dumps(content).decode()
        vocabulary = _hf_vocabulary(content["model"])
        added_ids = {token["content"]: int(token["id"]) for token in added}
        control = {token["content"]: int(token["id"]) for token in added if token["special"]}
        unknown = _unknown_token(content["model"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as a Hugging Face tokenizer: {error!r}") from error
    eos_token, bos_token, eos_id = _hf_roles(path.parent)
    ids = vocabulary | added_ids
    if unknown is not None and unknown != eos_token:
        control.pop(unknown, None)  # stands for characters the vocabulary lacks: text, not control
    byte_level = b'"ByteLevel"' in orjson.dumps([content.get("pre_tokenizer"), content.get("decoder")])

    def token_bytes() -> dict[int, bytes]:
        return {
            index: _from_byte_level(spelling) if byte_level and spelling not in added_ids else spelling.encode()
            for spelling, index in ids.items()
            if spelling not in control
        }

    @cache
    def reference() -> Encode:
        return _hf_encoder(text, path)

    return LoadedEngine(
        reference=lambda texts: reference()(texts),
        fast_json=lambda: _quick_to_read(content, is_byte_level=byte_level),
        token_bytes=token_bytes,
        control=control,
        vocab_size=1 + max(ids.values()),
        eos_token=eos_token,
        bos_token=bos_token,
        is_byte_level=byte_level,
        eos_id=eos_id,
    )


def open_tiktoken(path: Path) -> LoadedEngine:
    """The tokenizer.model of Llama-3: lines of base64 token and rank."""
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line.strip())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise DataError(f"{path} is not a tiktoken file of base64 tokens and ranks: {error}") from error
    if len(ranks) != LLAMA3_NUM_RANKS:
        raise DataError(
            f"{path} has {len(ranks)} tokens; of tiktoken files only Llama-3's with {LLAMA3_NUM_RANKS} is known, "
            "because the split pattern is not in the file: give the Hugging Face tokenizer.json instead"
        )
    named = {place: spelling for spelling, place in LLAMA3_NAMED.items()}
    control = {
        named.get(place, f"<|reserved_{place}|>"): LLAMA3_NUM_RANKS + place for place in range(LLAMA3_NUM_CONTROL)
    }

    @cache
    def encoding() -> Any:
        import tiktoken

        return tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=control)

    return LoadedEngine(
        reference=lambda texts: flatten([encoding().encode_ordinary(text) for text in texts]),
        fast_json=lambda: _quick_to_read(_llama3_json(ranks, control), is_byte_level=True),
        token_bytes=lambda: {rank: token for token, rank in ranks.items()},
        control=control,
        vocab_size=LLAMA3_NUM_RANKS + LLAMA3_NUM_CONTROL,
        eos_token="<|end_of_text|>",
        bos_token="<|begin_of_text|>",
        is_byte_level=True,
    )


def open_sentencepiece(path: Path) -> LoadedEngine:
    """A sentencepiece model."""
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # sentencepiece raises RuntimeError or OSError by version
        raise DataError(f"{path} cannot be read as a sentencepiece model: {error}") from error
    spellings = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    control = {
        spelling: index
        for index, spelling in enumerate(spellings)
        if processor.is_control(index)
        or (not processor.is_byte(index) and not processor.is_unknown(index) and CONTROL_SPELLING.fullmatch(spelling))
    }
    eos, bos = processor.eos_id(), processor.bos_id()

    def encode(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return flatten([processor.encode(text, out_type=int, add_bos=False, add_eos=False) for text in texts])

    return LoadedEngine(
        reference=encode,
        fast_json=None,
        token_bytes=lambda: {i: spelling.encode() for i, spelling in enumerate(spellings) if spelling not in control},
        control=control,
        vocab_size=len(spellings),
        eos_token=spellings[eos] if eos >= 0 else None,
        bos_token=spellings[bos] if bos >= 0 else None,
        is_byte_level=False,
    )


def _hf_encoder(text: str, path: Path) -> Encode:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the parser in Rust raises plain Exception
        raise DataError(f"{path} cannot be read as a Hugging Face tokenizer: {error}") from error
    tokenizer.encode_special_tokens = True

    def encode(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return flatten([item.ids for item in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)])

    return encode


def _hf_vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Spelling -> id; Unigram models list their pieces in the order of ids."""
    if isinstance(model["vocab"], dict):
        return {str(spelling): int(index) for spelling, index in model["vocab"].items()}
    return {str(piece[0]): index for index, piece in enumerate(model["vocab"])}


def _unknown_token(model: dict[str, Any]) -> str | None:
    if isinstance(model.get("unk_token"), str):
        return str(model["unk_token"])
    return str(model["vocab"][model["unk_id"]][0]) if isinstance(model.get("unk_id"), int) else None


def _quick_to_read(content: dict[str, Any], *, is_byte_level: bool) -> str:
    """A tokenizer.json that gives the same ids and that fastokens opens sooner: fewer merges, as "left right"."""
    model = content["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
    if all(merge.count(" ") == 1 for merge in merges):
        if is_byte_level and not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix"):
            merges = _merges_that_happen(merges)
        content = {**content, "model": {**model, "merges": merges}}
    return orjson.dumps(content).decode()


def _merges_that_happen(merges: list[str]) -> list[str]:
    """At most one merge for each token: the last step of spelling it by itself. The others never happen.

    What stands around a token never changes the order of the merges inside it, which goes by rank. Llama-3's file lists
    every cut of a token into two, 280,147 for 127,744 tokens; without the rest fastokens opens in four fifths of the
    time. Cost: a second or two, before a tokenizer is checked.
    """
    rank_of = {(left, right): rank for rank, (left, right) in enumerate(merge.split(" ") for merge in merges)}
    happen = set()
    for token in {left + right for left, right in rank_of}:
        pieces = list(token)
        rank = 0
        while len(pieces) > 1:
            ranks = [rank_of.get(pair, len(merges)) for pair in pairwise(pieces)]
            rank = min(ranks)
            if rank == len(merges):  # no merge makes this token
                break
            place = ranks.index(rank)
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        else:
            happen.add(rank)
    return [merges[rank] for rank in sorted(happen)]


def _llama3_json(ranks: dict[bytes, int], control: dict[str, int]) -> dict[str, Any]:
    """Llama-3's ranks as a tokenizer.json of byte-level BPE.

    tiktoken joins the neighbours whose concatenation has the lowest rank. So every cut of a token into two tokens is a
    merge, in the order of the tokens they give; a piece that is a token as a whole is taken without merges.
    """
    spellings = {token: "".join(_CHARACTERS[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [f"{spellings[left]} {spellings[right]}" for _, _, left, right in sorted(known)]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": spelling, **flags} for spelling, index in control.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {spelling: ranks[token] for token, spelling in spellings.items()},
            "merges": merges,
        },
    }


def open_fast(text: str) -> Encode:
    """A tokenizer.json opened with fastokens. Cost: 0.7 CPU-seconds for 128,000 tokens. Errors: fastokens' own."""
    import fastokens

    # Each of its threads meets every word anew, which costs more than encoding it; the stages run a process a core.
    # 0.3.5 reads this when it first encodes, and not RAYON_NUM_THREADS.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    tokenizer = fastokens.Tokenizer.from_json_str(text)

    def encode(texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        ids, offsets = tokenizer.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
        return np.frombuffer(ids, dtype=np.uint32).view(np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    return encode


def _hf_roles(folder: Path) -> tuple[str | None, str | None, int | None]:
    """eos and bos spelling as the folder's configs state them, else the eos id of config.json."""
    roles: dict[str, str] = {}
    for name in CONFIG_NAMES[:2]:
        content = _json_object(folder / name)
        for role in ("eos_token", "bos_token"):
            value = content.get(role)
            spelling = value.get("content") if isinstance(value, dict) else value
            if isinstance(spelling, str):
                roles.setdefault(role, spelling)
    eos_id: int | None = None
    for name in CONFIG_NAMES[2:]:
        value = _json_object(folder / name).get("eos_token_id")
        first = value[0] if isinstance(value, list) and value else value
        if eos_id is None and isinstance(first, int):
            eos_id = first
    return roles.get("eos_token"), roles.get("bos_token"), eos_id


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level spelling: printable Latin-1 is itself, the rest begins at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()
_CHARACTERS = {byte: character for character, byte in _ALPHABET.items()}


def _from_byte_level(spelling: str) -> bytes:
    return bytes(_ALPHABET[c] for c in spelling) if all(c in _ALPHABET for c in spelling) else spelling.encode()
