"""fastokens, 42 times faster than HF tokenizers, is used only after equal ids on 10,000 strings with this tokenizer.

The outcome is kept (`proven_tokenizers`), so that the check and the reference are paid once. It decides which engine
runs, never what comes out.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from megatron_synE.data import proven_tokenizers
from megatron_synE.data.tokenizer_engines import Encode, LoadedEngine, open_fast

logger = logging.getLogger(__name__)

# Ids of these are part of a tokenizer's identity: equal vocabularies with other merges or splitting rules differ here.
PROBE = (
    "民法典第一千零四十三条规定，家庭应当树立优良家风。求函数 f(x)=x²−2x+3 的最小值。",
    "It's the 21st century; we'll measure 3.14159 ± 0.00001 mol/L, won't we?  Two  spaces.\n\n\tTab.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # 平均值\n",
)
NUM_CHECK_STRINGS = 10_000
CHECK_BATCH = 1_000
SNIPPETS = (
    "中华人民共和国公民的合法权益受法律保护。",
    "设函数f(x)=x²+2x，求其最小值；",
    "话说天下大势，分久必合，合久必分：",
    "「繁體字」與标点……",
    "ＡＢＣ１２３",
    "The quick brown fox doesn't jump; we'll see, it's John's.",
    "e.g. 3.14159 × 10⁻³ mol/L",
    "naïve café résumé",
    "Straße ÅNGSTRÖM İstanbul ß ǅ",
    "Привет, мир!",
    "これはテスト。カタカナ",
    "한국어 문장",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "ไทยไม่มีช่องว่าง",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "for (int i=0;i<n;++i){a[i]+=b[i];}\r\n",
    '<div class="a">&nbsp;</div>',
    "\\frac{a}{b}",
    "https://example.org/a?b=c&d=%20#e",
    "😀👩‍👩‍👧‍👦🇨🇳",
    "e\u0301a\u0308",
    "\u200b\u00a0\u3000",
    "    ",
    "\t\t",
    "\n\n\n",
    " \n \n",
    "\r\n\r\n",
    "1234567890",
    "0x1F_FF",
    "1,000,000.00",
    "----------",
    "==========",
    "!!!???...",
    "''\"\"``",
    "I'LL DON'T 'Twas",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "_snake_case CamelCaseWord",
)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The engine to use for a tokenizer file."""

    name: str
    """fastokens or reference."""
    engine: LoadedEngine
    encode: Encode
    keep: Callable[[str], None] | None = None
    """To be given the digest, where fastokens has been proven equal just now."""


def choose(path: Path, open_file: Callable[[Path], LoadedEngine]) -> Chosen:
    """fastokens where it is proven equal on this tokenizer, else the reference."""
    opened = cache(lambda: open_file(path))
    record = proven_tokenizers.record_path(path, NUM_CHECK_STRINGS)
    proven = proven_tokenizers.read(record, opened)
    if proven:
        return Chosen(name="fastokens", engine=proven[0], encode=proven[1])
    engine = opened()
    reference = Chosen(name="reference", engine=engine, encode=engine.reference)
    if engine.fast_json is None:
        return reference
    if proven is None:
        try:
            text = engine.fast_json()
            fast = open_fast(text)
        except Exception as error:  # noqa: BLE001  # a tokenizer kind it does not know, or not installed
            logger.warning("fastokens cannot read %s (%s); tokenising with the slower reference", path, error)
            return reference
        if _agree(engine.reference, fast, tuple(engine.control)):
            keep = partial(proven_tokenizers.keep, record, engine, text)
            return Chosen(name="fastokens", engine=engine, encode=fast, keep=keep)
        proven_tokenizers.keep_unequal(record)
    logger.warning("fastokens gives other ids than the reference for %s: tokenising with the slower reference", path)
    return reference


def check_strings(control: Sequence[str], count: int) -> list[str]:
    """Fixed pseudo-random strings of Chinese, English, code, white space, rare scripts and control spellings."""
    rng = random.Random(20240726)
    ranges = (
        (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x4E00, 0x9FFF), (0x3040, 0x30FF), (0x1F300, 0x1F6FF), (1, 0x1F),
    )  # fmt: skip
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(rng.choice((1, 2, 3, 5, 8, 20))):
            kind = rng.random()
            if kind < 0.6:
                parts.append(rng.choice(SNIPPETS))
            elif kind < 0.7 and control:
                parts.append(rng.choice(control))
            else:
                low, high = rng.choice(ranges)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12))))
        strings.append(rng.choice(("", " ", "\n")).join(parts))
    return strings


def _agree(reference: Encode, fast: Encode, control: Sequence[str]) -> bool:
    strings = [*PROBE, *check_strings(control, NUM_CHECK_STRINGS)]
    for start in range(0, len(strings), CHECK_BATCH):
        batch = strings[start : start + CHECK_BATCH]
        expected, found = reference(batch), fast(batch)
        if not (np.array_equal(expected[0], found[0]) and np.array_equal(expected[1], found[1])):
            return False
    return True
