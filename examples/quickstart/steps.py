"""Steps that several examples share: weights and text, a run's configuration, scores, one `syne` command."""

import hashlib
import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError, UserError
from data_mixers.manifest import read_manifest
from examples.quickstart import assets, corpora
from examples.quickstart.score import SetScore, score_hf
from examples.quickstart.weights import unpack_weights
from megatron_synE.exit_codes import INTERRUPTED
from megatron_synE.runtime.cpu_features import cpu_has_bf16
from megatron_synE.runtime.launch import die_with_parent
from tools.cli import of_the_disk
from tools.cli_options import escape_what_stdout_lacks
from tools.data.preprocess import PreprocessOptions, preprocess

SEQ_LENGTH = 512
GLOBAL_BATCH = 8
STEP_TOKENS = GLOBAL_BATCH * SEQ_LENGTH
NPROC = 2
CODE_SHARE = 0.15  # of English, as in the recipe
# A validation pass of 1,500 tokens a set takes 15 s in bf16 but nearly a minute in fp32 without AMX: there the run's
# own passes read less. The table's scores come from plain transformers and always read whole sets.
VALIDATION_TOKENS = {"bf16": 1500, "fp32": 500}


def exit_code_of(work: Callable[[], None]) -> int:
    """Of an example whose whole is `work`; what a person can mend is one message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    escape_what_stdout_lacks()
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (fault := of_the_disk(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return DataError.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return 0


def prepared(out: Path) -> tuple[Path, list[Path], dict[str, str]]:
    """Weights, text and token files below `out`; code is an English source, as in the recipe.

    (The model's folder, files of held-out text, set name -> what was kept from training: documents, source, retention.)
    """
    assets.fetch(out / "assets")
    assets.write_licences(out / "assets", out)
    base = unpack_weights(out / "assets", out / "hf_base")
    report = corpora.build(out / "assets", out)
    for name in report.missing:
        print(f"not on this machine, left out: {name}")
    for entry in sorted(report.sets, key=lambda entry: Path(entry.path)):
        preprocess(
            PreprocessOptions(
                inputs=(str(out / entry.path),),
                tokenizer=base,
                out=out / "data" / entry.role,
                language="en" if entry.language == "code" else entry.language,
                source=entry.source,
                topic=entry.topic,
                role=entry.role,
            )
        )
    validation = report.of_role("validation")
    kinds: dict[str, str] = {entry.name: entry.held_out or "documents" for entry in validation}
    return base, sorted(out / entry.path for entry in validation), kinds


def english_sources(train: Path) -> dict[str, float]:
    """Shares of the English sources by the tokens there are, code apart."""
    sizes = {(s.language, s.source): s.num_tokens for s in read_manifest(train).sources}
    text = {
        source: size for (language, source), size in sizes.items() if language == "en" and source != "python_stdlib"
    }
    english = {source: (1 - CODE_SHARE) * size / sum(text.values()) for source, size in text.items()}
    return english | {"python_stdlib": 1 - sum(english.values())}


def run_config(
    run_dir: Path, base: Path, stages: list[dict[str, Any]], manifests: Sequence[Path], validation: Path | None
) -> dict[str, Any]:
    """A run from `base`; where there is text for it, it validates before its first step, half-way and at the end."""
    total = tokens_read(stages)
    config: dict[str, Any] = {
        "run": {"name": f"quickstart-{run_dir.name}", "dir": str(run_dir)},
        "init": {"from": "hf", "path": str(base)},
        "training": {
            "seq_length": SEQ_LENGTH,
            "global_batch_size": GLOBAL_BATCH,
            "micro_batch_size": 2,
            "precision": "auto",
        },
        # Ours, for 150 thousand tokens on 135M parameters; 100 B tokens on 8B want the recipe's 1e-5.
        "optimizer": {"lr": 1.0e-4},
        "lr_schedule": {"style": "wsd", "start_lr": 1.0e-5, "warmup_tokens": 3 * STEP_TOKENS,
                        "decay_tokens": total // 5, "decay_style": "1-sqrt"},
        "data": {"manifests": [str(manifest) for manifest in manifests], "stages": stages, "num_workers": 0},
        "checkpoint": {"keep_last": 1},
        "device": "cpu",
    }  # fmt: skip
    if validation is not None:
        config["validation"] = {
            "manifests": [str(validation)],
            "interval_tokens": max(1, total // 2),
            "max_tokens_per_topic": VALIDATION_TOKENS["bf16" if cpu_has_bf16() else "fp32"],
            "micro_batch_size": 4,
        }
    return config


def tokens_read(stages: Sequence[Mapping[str, Any]]) -> int:
    """By a run of these stages, each of which ends with a whole step."""
    return sum(-(-int(stage["tokens"]) // STEP_TOKENS) for stage in stages) * STEP_TOKENS


def timed_scores(hf: Path, files: list[Path], cache: Path) -> tuple[list[SetScore], float]:
    """Scores by plain transformers, kept in `cache`; and the seconds scoring took when it was done."""
    texts = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    stamp = {"weights": (hf / "model.safetensors").stat().st_mtime_ns, "texts": texts}
    if cache.exists():
        kept = json.loads(cache.read_text())
        if kept["stamp"] == stamp:
            return [SetScore(**score) for score in kept["scores"]], float(kept["seconds"])
    started = time.monotonic()
    scores = score_hf(hf, files, seq_length=SEQ_LENGTH)
    seconds = time.monotonic() - started
    kept = {"stamp": stamp, "seconds": seconds, "scores": [vars(score) for score in scores]}
    write_atomic(cache, json.dumps(kept, indent=1).encode())
    return scores, seconds


def load_scores(cache: Path) -> list[SetScore]:
    return [SetScore(**score) for score in json.loads(cache.read_text())["scores"]]


def syne(*arguments: object, allowed: tuple[int, ...] = (0,)) -> int:
    """The exit code of one `syne` command, shown as typed. Errors: DataError if it is not one of `allowed`."""
    words = [str(argument) for argument in arguments]
    print("$ syne " + shlex.join(words), flush=True)
    # A command that outlived a killed example would hold its folder, and the same call could not go on.
    done = subprocess.run([sys.executable, "-m", "tools", *words], check=False, preexec_fn=die_with_parent)
    if done.returncode not in allowed:
        raise DataError(f"syne {words[0]} ended with exit code {done.returncode}; its message stands above")
    return done.returncode
