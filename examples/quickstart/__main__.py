"""The whole line on one CPU machine: real weights and text in, an adapted Llama and a table out.

fetch -> HF folder -> text -> token files -> train two stages as one run (DP2) -> export -> verify -> score -> table

Everything lies below runs/quickstart; a second call goes on where the first stopped.
"""

import argparse
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError
from examples.quickstart.plot import metrics_rows, plot
from examples.quickstart.score import SetScore, pooled
from examples.quickstart.steps import (
    NPROC,
    STEP_TOKENS,
    english_sources,
    exit_code_of,
    load_scores,
    prepared,
    run_config,
    syne,
    timed_scores,
    tokens_read,
)
from examples.quickstart.table import show
from megatron_synE.runtime.cpu_features import cpu_has_bf16

Arm = Literal["bilingual", "chinese_only"]
ARMS: dict[Arm, str] = {"bilingual": "2:8, then 1:7:2", "chinese_only": "Chinese only"}

CALIBRATION_ITERATIONS = 5
STAGE_1_SHARE = 0.75  # ours; the recipe's 92.5 % would leave too few QA tokens to see anything
FEWEST_TOKENS, MOST_TOKENS = 12 * STEP_TOKENS, 50 * STEP_TOKENS
LEAST_TOKENS = 4 * STEP_TOKENS  # a warm-up of 3 steps and a decay of a fifth (run_config) do not fit into fewer
BUDGET_SECONDS = 690.0  # of the 12 minutes; the rest is for a slower last step
OUT = Path("runs/quickstart")
AFTER_TRAINING_SECONDS = 60.0  # export, verification, table and plot without the scoring, measured on two cores


def main() -> int:
    """Run one arm and print its table. Returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=list(ARMS), default="bilingual", help="which mixture to train on")
    parser.add_argument("--out", type=Path, default=OUT, help="where everything goes")
    parser.add_argument(
        "--tokens", type=int, help="train on so many tokens (up to a whole step) instead of fitting them to the time"
    )
    options = parser.parse_args()
    return exit_code_of(partial(run, options.arm, options.out, options.tokens))


def run(arm: Arm, out: Path, tokens: int | None) -> None:
    """All steps of one arm. Errors: UserError with the cure; a command that fails is shown as typed."""
    started = time.monotonic()
    config, run_dir = out / f"{arm}.yaml", out / arm
    if tokens is not None:
        tokens = asked_tokens(tokens, config, run_dir)
    base, held_out, kinds = prepared(out)
    before, seconds = timed_scores(base, held_out, out / "scores_base.json")
    if not config.exists():
        # Under another name: a call interrupted here must not leave a configuration that was never fitted to the time.
        calibration = out / f"{arm}.calibration.yaml"
        write_config(calibration, arm, out, base, tokens or MOST_TOKENS)
        syne("train", "--config", calibration, "--nproc", NPROC,
             f"training.stop_after_iterations={CALIBRATION_ITERATIONS}", allowed=(0, 75))  # fmt: skip
        fitted = tokens or fitted_tokens(run_dir, left=BUDGET_SECONDS - (time.monotonic() - started) - seconds)
        write_config(config, arm, out, base, fitted)
        calibration.unlink()
    syne("train", "--config", config, "--nproc", NPROC)
    adapted = out / f"hf_{arm}"
    syne("export", "--checkpoint", run_dir, "--out", adapted, "--no-logits")  # the next command compares them
    syne("verify", "--hf", adapted, "--checkpoint", run_dir)
    timed_scores(adapted, held_out, out / f"scores_{arm}.json")

    arms = {ARMS[a]: load_scores(out / f"scores_{a}.json") for a in ARMS if (out / f"scores_{a}.json").exists()}
    show(before, arms, kinds, out / "table.md")
    plot(run_dir / "metrics.jsonl", out / f"{arm}.png")
    say_english_loss(before, arms, kinds)
    say_unequal(
        {ARMS[a]: tokens_of(out / f"{a}.yaml") for a in ARMS if ARMS[a] in arms and (out / f"{a}.yaml").exists()}
    )
    say_where(out, arm, run_dir, adapted, time.monotonic() - started)


def asked_tokens(tokens: int, config: Path, run_dir: Path) -> int:
    """In whole steps, which is said. Errors: ConfigError if they are too few, or the run there has others."""
    if tokens < LEAST_TOKENS:
        raise ConfigError(
            f"--tokens {tokens}: warm-up and decay of the learning rate need {LEAST_TOKENS:,}; ask for as many or more"
        )
    whole = -(-tokens // STEP_TOKENS) * STEP_TOKENS
    if config.exists() and (there := tokens_of(config)) != whole:
        raise ConfigError(
            f"--tokens {tokens}: the run of {config} reads {there:,}; remove {config} and {run_dir} to train anew, "
            "or leave --tokens out"
        )
    if whole != tokens:
        print(f"--tokens {tokens:,}: {whole:,}, which are {whole // STEP_TOKENS} whole steps of {STEP_TOKENS:,}")
    return whole


def tokens_of(config: Path) -> int:
    """That the run of this file reads."""
    return tokens_read(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["stages"])


def write_config(path: Path, arm: Arm, out: Path, base: Path, tokens: int) -> None:
    """The run of one arm: the paper's language shares, sources inside a language by the tokens there are."""
    stage_1 = int(tokens // STEP_TOKENS * STAGE_1_SHARE) * STEP_TOKENS
    sources = {"en": english_sources(out / "data" / "train")}
    stages: list[dict[str, Any]] = [
        {"name": "bilingual adaptation", "tokens": stage_1, "languages": {"zh": 0.2, "en": 0.8}, "sources": sources},
        {
            "name": "synthetic enhancement",
            "tokens": tokens - stage_1,
            "languages": {"zh": 0.1, "en": 0.7, "synthetic": 0.2},
            "sources": sources,
        },
    ]
    if arm == "chinese_only":
        stages = [{"name": "Chinese only", "tokens": tokens, "languages": {"zh": 1.0}}]
    config = run_config(out / arm, base, stages, [out / "data" / "train"], out / "data" / "validation")
    write_atomic(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())


def fitted_tokens(run_dir: Path, *, left: float) -> int:
    """How many tokens fit into the time that is left, by the speed of the calibration steps; printed."""
    rows = metrics_rows(run_dir / "metrics.jsonl")
    seconds = sorted(row["step_seconds"] for row in rows if row["kind"] == "train")
    step = seconds[len(seconds) // 2]
    # Two more validation passes, and start, load, save and export of a checkpoint.
    validation = sum(row["seconds"] for row in rows if row["kind"] == "validation_time")
    budget = left - 2 * validation - AFTER_TRAINING_SECONDS
    tokens = int(budget / step) * STEP_TOKENS
    fitted = min(max(tokens, FEWEST_TOKENS), MOST_TOKENS)
    print(
        f"calibration: {STEP_TOKENS / step:.0f} tokens/s, {budget:.0f} s left for training: "
        f"{fitted:,} tokens (between {FEWEST_TOKENS:,} and {MOST_TOKENS:,}); "
        f"{'bf16' if cpu_has_bf16() else 'fp32: this CPU has neither avx512_bf16 nor AMX'}"
    )
    return fitted


def say_english_loss(before: list[SetScore], arms: dict[str, list[SetScore]], kinds: dict[str, str]) -> None:
    """How much English that was never trained on each arm forgot, and whether 2:8 forgot less, as it should."""

    def english(scores: list[SetScore]) -> float:
        return pooled(
            "English", [s for s in scores if s.name.startswith("en/") and kinds[s.name] != "documents"]
        ).bits_per_byte

    changes = {arm: english(scores) - english(before) for arm, scores in arms.items()}
    for arm, change in changes.items():
        print(f"English from sources never trained on, {arm}: {change:+.4f} bits per byte")
    if len(changes) == len(ARMS):
        bilingual, chinese = changes[ARMS["bilingual"]], changes[ARMS["chinese_only"]]
        order = "keeps English better than" if bilingual < chinese else "does NOT keep English better than"
        print(f"{ARMS['bilingual']} {order} {ARMS['chinese_only']} ({bilingual:+.4f} against {chinese:+.4f})")
        if max(bilingual, chinese) <= 0:
            print("no arm forgot English: both predict it better than the base does")


def say_unequal(tokens: dict[str, int]) -> None:
    """That the arms, by what each has read, do not compare."""
    if len(set(tokens.values())) > 1:
        read = ", ".join(f"{count:,} ({arm})" for arm, count in tokens.items())
        print(f"CAUTION: the arms did not read as many tokens: {read}; for a fair comparison train one anew")


def say_where(out: Path, arm: Arm, run_dir: Path, adapted: Path, seconds: float) -> None:
    """Where every file lies, and what to run next."""
    for title, path in (
        ("adapted model (opens in from_pretrained)", adapted),
        ("run: configuration, metrics.jsonl, TensorBoard, checkpoint", run_dir),
        ("plot of losses, learning rate and mixture", out / f"{arm}.png"),
        ("table", out / "table.md"),
        ("configuration", out / f"{arm}.yaml"),
        ("token files and manifests", out / "data"),
        ("text", out / "text"),
        ("licences of weights and text", out / "LICENCES.md"),
    ):
        print(f"{title}: {path}")
    print(f"finished after {seconds / 60:.1f} minutes")
    other = next(name for name in ARMS if name != arm)
    total = [row["consumed_tokens"] for row in metrics_rows(run_dir / "metrics.jsonl") if row["kind"] == "train"][-1]
    words = ["--arm", other, "--tokens", str(total), *([] if out == OUT else ["--out", str(out)])]
    print(f"next: .venv/bin/python -m examples.quickstart {shlex.join(words)}")


if __name__ == "__main__":
    sys.exit(main())
