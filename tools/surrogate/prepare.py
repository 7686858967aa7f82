"""Token files that the factor `corruption` needs, made once for all arms: wrong pairs of each level, tokenised."""

import hashlib
import json
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
    places = planned_variants(study, folder)
    for level, out in places.items():
        assert study.corruption is not None  # study.py: _factor_faults
        _make(study.corruption, float(level), out)
    return places


def planned_variants(study: Study, folder: Path) -> dict[Level, Path]:
    """The same paths, whether or not they are there."""
    return {level: folder / f"corruption-{float(level):g}" for level in study.grid.get("corruption", ())}


def _make(section: Corruption, share: float, out: Path) -> None:
    inputs = [(str(path), sha256_of(path)) for path in find_inputs((section.input,))]
    made_from = hashlib.sha256(json.dumps([asdict(section), share, inputs], default=str).encode()).hexdigest()
    if (out / DONE).is_file() and json.loads((out / DONE).read_text())["hash"] == made_from:
        return
    (out / DONE).unlink(missing_ok=True)  # else a killed call leaves it beside other data than it names
    pairs = out.parent / "pairs" / f"{out.name}.jsonl"
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
