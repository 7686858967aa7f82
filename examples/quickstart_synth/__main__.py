"""QA of a small model on one CPU machine: real pages and problems in, its wrong rate out, and a short training with it.

pages -> seeds -> generate (SmolLM2 behind llama.cpp's server) -> check -> audit -> format -> stage 2, twice -> table

Everything lies below runs/quickstart_synth; what `make quickstart` fetches and makes is taken from runs/quickstart, or
made there. A second call goes on where the first stopped.
"""

import argparse
import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from examples.quickstart.score import SetScore
from examples.quickstart.steps import (
    GLOBAL_BATCH,
    NPROC,
    SEQ_LENGTH,
    english_sources,
    exit_code_of,
    prepared,
    run_config,
    syne,
    timed_scores,
)
from examples.quickstart.table import show
from examples.quickstart.weights import BASE_MODEL, find_gguf
from examples.quickstart_synth.pages import computing_pages, write_element_pages, write_problem_seeds
from examples.quickstart_synth.truth import JUDGE, fill_sheet, pairs_of, part_pairs

HERE = Path(__file__).parent
OUT, QUICKSTART = Path("runs/quickstart_synth"), Path("runs/quickstart")
SEEDS_PER_DISCIPLINE = 15  # ours, like all sizes here: minutes on two cores
MAX_TOKENS = 200  # of an answer; the recipe asks for 250 to 350 words, which this model cannot fill
TEMPERATURE = 0.3  # warmer, it forgets the form it was shown
TRAINING_TOKENS = 4 * GLOBAL_BATCH * SEQ_LENGTH
MAX_EPOCHS = 20  # few of the model's pairs are kept, so they are read again and again
ARMS = {"recipe": "packaged and exact QA", "model": "the model's QA"}


def main() -> int:
    """Run everything and print the wrong rate and the table. Returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.quickstart_synth", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="where everything goes")
    parser.add_argument("--quickstart", type=Path, default=QUICKSTART, help="folder of make quickstart")
    parser.add_argument(
        "--filled", type=Path, help="<out>/audit_pages/sheet.csv with a person's verdicts on the pairs of pages"
    )
    options = parser.parse_args()
    return exit_code_of(partial(run, options.out, options.quickstart, options.filled))


def run(out: Path, quickstart: Path, filled: Path | None) -> None:
    """All steps. Errors: UserError with the cure; a command that fails is shown as typed."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    base, held_out, kinds = prepared(quickstart)

    answers = ask(out, quickstart)
    wrong, rated = audit_known(out, answers)
    if filled is not None:
        syne("synth", "audit", "--input", out / "of_pages.jsonl", "--out", out / "audit_pages", "--filled", filled)
        rated.append((out / "of_pages.jsonl", out / "audit_pages" / "audit.json"))
    data = format_and_tokenise(out, base, rated)
    before, _ = timed_scores(base, held_out, quickstart / "scores_base.json")
    arms = {title: train(arm, out, quickstart, base, data, held_out) for arm, title in ARMS.items()}
    show(before, arms, kinds, out / "table.md")
    conclude(out, quickstart, wrong, filled, time.monotonic() - started)


def ask(out: Path, quickstart: Path) -> dict[str, str]:
    """Seeds, and the model's pairs, checked; seed_hash -> exact answer of the problems."""
    elements = write_element_pages(out / "pages" / "elements.jsonl")
    seeds = []
    for discipline, files in (("chemistry", [elements]), ("computer_science", computing_pages(quickstart))):
        seeds.append(out / f"seeds_{discipline}.jsonl")
        inputs = [word for file in files for word in ("--input", file)]
        syne("synth", "seeds", *inputs, "--discipline", discipline, "--language", "en",
             "--quota", SEEDS_PER_DISCIPLINE, "--out", seeds[-1])  # fmt: skip
    answers = write_problem_seeds(out / "problems.jsonl")
    server = shlex.join([sys.executable, "-m", "tools", "synth", "serve", str(find_gguf(quickstart / "assets")),
                         "--port", "{port}", "--context", "1024"])  # fmt: skip
    reports = []
    for name, files in (("problems", [out / "problems.jsonl"]), ("pages", seeds)):
        syne("synth", "generate", *(word for file in files for word in ("--seeds", file)), "--model", BASE_MODEL,
             "--server-command", server, "--prompts", HERE / f"prompts_{name}", "--temperature", TEMPERATURE,
             "--max-tokens", MAX_TOKENS, "--concurrency", 4, "--out", out / f"answers_{name}")  # fmt: skip
        reports.append(json.loads((out / f"answers_{name}" / "report.json").read_text("utf-8")))
    checked = str(out / "checked" / "*.jsonl.zst")
    syne("synth", "check", "--input", out / "answers_problems" / "pairs.jsonl.zst",
         "--input", out / "answers_pages" / "pairs.jsonl.zst", "--out", out / "checked")  # fmt: skip
    counts = part_pairs(checked, answers, known=out / "known.jsonl", of_pages=out / "of_pages.jsonl")
    tokens = sum(pair.usage.get("completion_tokens", 0) for pair in pairs_of(checked))
    print(f"kept: {', '.join(f'{number} {name}' for name, number in counts.items())}")
    seconds = sum(report["last_call"]["seconds"] for report in reports)
    if all(report["last_call"]["requests"] >= report["asked"] for report in reports):  # else only a part of the time
        print(f"accepted QA tokens: {tokens:,} in {seconds:.0f} s, {3600 * tokens / seconds:,.0f} an hour")
    if not counts["solved problems"]:
        raise DataError(f"no solution of a problem was kept; {out / 'checked' / 'report.md'} says why")
    return answers


def audit_known(out: Path, answers: dict[str, str]) -> tuple[dict[str, Any], list[tuple[Path, Path]]]:
    """The wrong rate of the solved problems; (pairs, audit.json) of what has been judged."""
    known, folder = out / "known.jsonl", out / "audit_known"
    whole = ("synth", "audit", "--input", known, "--out", folder, "--sample", len(answers))
    syne(*whole)
    fill_sheet(folder / "sheet.csv", folder / "filled.csv", str(known), answers)
    syne(*whole, "--filled", folder / "filled.csv", "--judged-by", JUDGE)
    if (out / "of_pages.jsonl").stat().st_size:
        syne("synth", "audit", "--input", out / "of_pages.jsonl", "--out", out / "audit_pages")
    rate: dict[str, Any] = json.loads((folder / "audit.json").read_text("utf-8"))["wrong_rate"]
    return rate, [(known, folder / "audit.json")]


def format_and_tokenise(out: Path, base: Path, rated: list[tuple[Path, Path]]) -> Path:
    """Text and token files of the judged pairs. What `format` refuses is taken all the same, and it is said."""
    data = out / f"data_{len(rated)}"
    for pairs, audit in rated:
        text = out / f"text_{pairs.stem}"
        command = ("synth", "format", "--input", pairs, "--audit", audit, "--tokenizer", base, "--out", text)
        if syne(*command, allowed=(0, 2)):
            print("REFUSED, as it should be. To show what comes next, the pairs are taken all the same:")
            syne(*command, "--accept-wrong-rate", 1)
        syne("data", "preprocess", "--input", text / "qa.jsonl.zst", "--tokenizer", base, "--language", "synthetic",
             "--source", "model_qa", "--topic-key", "topic", "--keep-documents-whole", "--seq-length", SEQ_LENGTH,
             "--out", data)  # fmt: skip
    return data


def train(arm: str, out: Path, quickstart: Path, base: Path, data: Path, held_out: list[Path]) -> list[SetScore]:
    """Scores after a short stage 2 at 1 : 7 : 2 from the untrained model, with one QA or the other."""
    name = arm if arm == "recipe" else f"{arm}_{data.name}"
    config, adapted = out / f"{name}.yaml", out / f"hf_{name}"
    if not config.exists():
        sources = {"en": english_sources(quickstart / "data" / "train")}
        manifests = [quickstart / "data" / "train"]
        if arm == "model":
            sources["synthetic"] = {"model_qa": 1.0}
            manifests.append(data)
        stage = {"name": f"synthetic enhancement, {arm}", "tokens": TRAINING_TOKENS,
                 "languages": {"zh": 0.1, "en": 0.7, "synthetic": 0.2}, "sources": sources}  # fmt: skip
        content = run_config(out / name, base, [stage], manifests, None)  # the table's scores suffice
        content["data"]["max_epochs"] = MAX_EPOCHS
        write_atomic(config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    syne("train", "--config", config, "--nproc", NPROC)
    syne("export", "--checkpoint", out / name, "--out", adapted, "--no-logits")
    return timed_scores(adapted, held_out, out / f"scores_{name}.json")[0]


def conclude(out: Path, quickstart: Path, wrong: dict[str, Any], filled: Path | None, seconds: float) -> None:
    """What was found, what nobody has looked at, and where things lie."""
    print(
        f"WRONG RATE of the model's solutions: {wrong['value']:.0%} (95 %: {wrong['low']:.0%} to {wrong['high']:.0%}), "
        f"judged by {JUDGE}"
    )
    sheet = out / "audit_pages" / "sheet.csv"
    if filled is None and sheet.exists():
        print(f"pairs made of pages: nobody has judged them, so none was trained on. Fill in {sheet}, then")
        folders = (("--out", out, OUT), ("--quickstart", quickstart, QUICKSTART))
        words = [str(word) for name, given, usual in folders if given != usual for word in (name, given)]
        print(f"  .venv/bin/python -m examples.quickstart_synth {shlex.join([*words, '--filled', str(sheet)])}")
    print(f"dropped pairs with reasons: {out / 'checked' / 'report.md'}")
    print(f"wrong pairs, as examples: {out / 'audit_known' / 'audit.md'}")
    print(f"table: {out / 'table.md'}")
    print(f"finished after {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
