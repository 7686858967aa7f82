"""Cheap signs of a page's difficulty and quality, from its text alone."""

import re
import zlib
from dataclasses import dataclass, fields
from itertools import islice

ZLIB_LEVEL = 6
COUNTED_UNITS = 1000
"""Lexical diversity falls with length; over a fixed beginning, long pages can be compared. Ours."""

# Scripts written without spaces between words: kana, ideographs (with extensions), Thai, Lao, Khmer, Myanmar.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
_UNIT = re.compile(rf"(?=([{_UNSPACED}][{_UNSPACED}]))|(?<![^\W{_UNSPACED}])([^\W{_UNSPACED}]+)")


@dataclass(frozen=True)
class Signals:
    """Of one document; None where its text has nothing to measure."""

    compression_ratio: float | None = None
    """UTF-8 bytes per byte of zlib output at level 6, whole text: high for repetition, below 1 for a few letters."""
    lexical_diversity: float | None = None
    """Distinct / all of the first 1,000 units: words in lower case, or, in scripts without spaces, pairs of
    neighbouring characters."""
    characters_per_token: float | None = None
    """Code points per token, control tokens not counted."""


SIGNALS = tuple(item.name for item in fields(Signals))
"""Columns of a scores file, and what `syne data sort --by` takes. Another one raises scores_file.SCHEMA_VERSION."""


def signals_of(text: bytes, num_tokens: int) -> Signals:
    """text: UTF-8. num_tokens: ids it was read from, without EOS."""
    if not text or num_tokens < 1:
        return Signals()
    decoded = text.decode("utf-8", errors="replace")
    return Signals(
        compression_ratio=len(text) / len(zlib.compress(text, ZLIB_LEVEL)),
        lexical_diversity=_diversity(decoded),
        characters_per_token=len(decoded) / num_tokens,
    )


def _diversity(text: str) -> float | None:
    units = [match[1] or match[2].lower() for match in islice(_UNIT.finditer(text), COUNTED_UNITS)]
    return len(set(units)) / len(units) if units else None
