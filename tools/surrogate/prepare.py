"""Token files that the factor `corruption` needs, made once for all arms: wrong pairs of each level, tokenised."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_mixers.atomic import write_atomic
from tools.data.download import sha256_of
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.readers import find_inputs
from tools.surrogate.study import Corruption, Level, Study
from tools.synthesis.corrupt import corrupt_file
from tools.synthesis.options import CorruptOptions

DONE = "made_from.json"


def variants(study: Study, folder: Path) -> dict[Level, Path]:
    """Level of `corruption` -> folder of its token files below `folder`; what is there already is not made again.

    What is wrong at one level is wrong at every higher one too (tools/synthesis/corrupt.py): arms differ by the rest.
    Errors: those of `syne synth corrupt` and `syne data preprocess`.
    """
    levels = study.grid.get("corruption")
    if levels is None or study.corruption is None:
        return {}
    return {level: _variant(study.corruption, float(level), folder) for level in levels}


def planned_variants(study: Study, folder: Path) -> dict[Level, Path]:
    """The same paths, whether or not they are there."""
    levels: Sequence[Level] = list(study.grid.get("corruption", []))
    return {level: _place(folder, float(level)) for level in levels}


def _place(folder: Path, share: float) -> Path:
    return folder / f"corruption-{share:g}"


def _variant(section: Corruption, share: float, folder: Path) -> Path:
    out = _place(folder, share)
    inputs = [(str(path), sha256_of(path)) for path in find_inputs((section.input,))]
    made_from = hashlib.sha256(json.dumps([asdict(section), share, inputs], default=str).encode()).hexdigest()
    if (out / DONE).is_file() and json.loads((out / DONE).read_text())["hash"] == made_from:
        return out
    (out / DONE).unlink(missing_ok=True)  # else a killed call leaves it beside other data than it names
    pairs = folder / "pairs" / f"corruption-{share:g}.jsonl"
    pairs.parent.mkdir(parents=True, exist_ok=True)
    pairs.unlink(missing_ok=True)
    options = CorruptOptions(
        inputs=(section.input,), out=pairs, share=share, seed=section.seed, keys=section.keys,
        language=section.word_language, kinds=section.kinds,
    )  # fmt: skip
    said = corrupt_file(options)
    preprocess(
        PreprocessOptions(
            inputs=(str(pairs),), tokenizer=section.tokenizer, out=out, text_key=section.keys[0],
            language=section.language, source=section.source, topic=section.topic, topic_key=section.topic_key,
        )
    )  # fmt: skip
    write_atomic(out / DONE, json.dumps({"hash": made_from, "said": said}).encode())
    return out
