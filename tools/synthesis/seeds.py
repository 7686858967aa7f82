"""`syne synth seeds`: from pages to snippets that a model is asked about.

    train (English only) ─ Punkt's tables
    cut (a task a piece of input) ─ discipline of each page, its snippets ─> candidates
    exact and near-duplicates, as in `syne data clean` ─> choose: a quota per discipline ─> seeds, report
Every page and every snippet is counted in exactly one place of the report.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.data.calls import Call, deciding
from tools.data.clean import clean
from tools.data.documents import TOPIC_KEY, Document, DocumentWriter, TaskDocuments
from tools.data.exact_duplicates import content_hash
from tools.data.options import CleanOptions
from tools.data.readers import InputTask, find_inputs, plan_tasks
from tools.data.stage import Report, only_one, remove_work
from tools.data.units import num_han, units_of
from tools.synthesis.options import SEED_RULES, SeedOptions
from tools.synthesis.output import check_no_input, check_out, documents_of
from tools.synthesis.record import DISCIPLINES
from tools.synthesis.seed_rules import LANGUAGES, Picked, SeedRules, read_seed_rules
from tools.synthesis.snippets import TRAINING_CHARACTERS, load_punkt, snippets, train_punkt

PUNKT = "punkt.json"


def write_seeds(options: SeedOptions) -> dict[str, Any]:
    """Write the seeds and <out>.report.json, which is returned. The result depends neither on workers nor on kills.

    Errors: ConfigError for options and rules that do not fit, DataError if there is no document or nothing is left.
    Memory: a page, tables of the dedup (clean.py), 8 bytes a snippet.
    """
    check_out(options.out)
    for name, value, known in (
        ("language", options.language, LANGUAGES), ("discipline", options.discipline, DISCIPLINES),
    ):  # fmt: skip
        if value is not None and value not in known:
            raise ConfigError(f"--{name} {value} is none of {', '.join(known)}")
    for language in LANGUAGES:
        read_seed_rules(language, options.rules)
    tasks = plan_tasks(find_inputs(options.inputs))
    check_no_input(options.out, tasks)
    work = options.out.with_name(f".{options.out.name}.work")
    rules = {language: (options.rules / f"{language}.json").read_text("utf-8") for language in LANGUAGES}
    decided = deciding(options, rules=rules)
    call = Call(out=work, command="seeds", options=decided, tasks=tasks, workers=options.workers)
    with only_one(work):
        mark = work / "call"
        if not mark.exists() or mark.read_text() != call.fingerprint:
            for entry in work.iterdir():
                if entry.name != ".in_use":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_atomic(mark, call.fingerprint.encode())
        read = [{"file": file, "size_bytes": size} for file, size, _ in call.inputs]
        report = {"command": "synth seeds", "inputs": read, **_make(options, call)}
        path = options.out.with_name(f"{options.out.name}.report.json")
        write_atomic(path, json.dumps(report, ensure_ascii=False, indent=1).encode())
    remove_work(work)
    return report


def _make(options: SeedOptions, call: Call) -> dict[str, Any]:
    train = partial(_train, options, call.tasks, call.out / PUNKT)
    call.run("Punkt", train, sizes=(TRAINING_CHARACTERS,), unit="M characters")
    (call.out / "candidates").mkdir(exist_ok=True)
    pages: Counter[str] = Counter()
    cut = not_chosen = 0
    for result in call.run("cut", partial(_cut_task, options, call.tasks, call.out)):
        pages.update(result["pages"])
        cut += result["snippets"]
        not_chosen += result["not_chosen"]
    if not pages:
        raise DataError(f"there is no page in {', '.join(options.inputs)}")
    if not cut:
        raise DataError(
            f"no snippet in {sum(pages.values())} pages ({dict(pages)}); look at the rules in {options.rules}"
        )
    deduped = call.out / "deduped"
    cleaned = clean(
        CleanOptions(
            inputs=(str(call.out / "candidates"),), out=deduped, rules=SEED_RULES / "dedup.yaml",
            near_duplicates=options.near_duplicates, workers=options.workers,
        )
    )  # fmt: skip
    chosen, over_quota = _choose(options, deduped)
    lost = sum(map(Counter, cleaned.dropped.values()), Counter[str]())
    counted = {
        "cut": cut, "beyond_per_page": not_chosen, "exact_duplicate": lost["exact_duplicate"],
        "near_duplicate": lost["near_duplicate"], "over_quota": over_quota, "seeds": sum(chosen.values()),
    }  # fmt: skip
    if cut != sum(counted.values()) - cut:
        raise DataError(f"snippets were lost: {counted}")
    by_discipline: dict[str, dict[str, int]] = {}
    for (language, discipline), number in sorted(chosen.items()):
        by_discipline.setdefault(language, {})[discipline] = number
    return {"pages": {"read": sum(pages.values()), **dict(sorted(pages.items()))}, "snippets": counted,
            "seeds": by_discipline}  # fmt: skip


def _train(options: SeedOptions, tasks: list[InputTask], path: Path, index: int, report: Report) -> None:
    def texts() -> Iterator[str]:
        characters = 0
        for task in tasks:
            for document in TaskDocuments(task, text_key=options.text_key):
                if _language(options, document, units_of(document.text)) != "en":
                    continue
                yield document.text
                report(len(document.text))
                characters += len(document.text)
                if characters >= TRAINING_CHARACTERS:
                    return

    train_punkt([] if options.whole else texts(), path)


def _language(options: SeedOptions, document: Document, units: list[str]) -> str:
    named = options.language or document.fields.get("language")
    return named if isinstance(named, str) and named else ("zh" if 2 * num_han(units) > len(units) else "en")


def _cut_task(options: SeedOptions, tasks: list[InputTask], work: Path, index: int, report: Report) -> dict[str, Any]:
    rules = {language: read_seed_rules(language, options.rules) for language in LANGUAGES}
    punkt = load_punkt(work / PUNKT, rules["en"].abbreviations)
    pages: Counter[str] = Counter()
    found = not_chosen = 0
    documents = TaskDocuments(tasks[index], text_key=options.text_key, on_bytes=report)
    with DocumentWriter(work / "candidates" / f"{index:07d}.jsonl.zst") as writer:
        for document in documents:
            units = units_of(document.text)
            language = _language(options, document, units)
            if language not in rules:
                pages["other_language"] += 1
                continue
            picked = _pick(options, document, rules[language], len(units))
            if picked is None:
                pages["no_discipline"] += 1
                continue
            fits = rules[language].whole_window[0] <= len(units) <= rules[language].whole_window[1]
            texts = (
                [document.text.strip()] * fits if options.whole
                else list(snippets(document.text, language, rules[language], punkt))
            )  # fmt: skip
            pages["with_snippets" if texts else "no_snippet"] += 1
            found += len(texts)
            order = sorted(range(len(texts)), key=lambda place: _key(options.seed, content_hash(texts[place]).hex()))
            not_chosen += max(0, len(texts) - options.per_page)
            for place in sorted(order[: options.per_page]):
                writer.write(_seed(document, texts[place], language, picked))
    if documents.bad:
        pages["no_document"] = len(documents.bad)
    return {"pages": dict(pages), "snippets": found, "not_chosen": not_chosen}


def _pick(options: SeedOptions, document: Document, rules: SeedRules, num_units: int) -> Picked | None:
    if options.discipline is not None:
        return Picked(options.discipline, "option", 0.0)
    given = (document.fields.get(key) for key in (TOPIC_KEY, "url"))
    topic, url = (value if isinstance(value, str) else None for value in given)
    return rules.pick(document.text, num_units=num_units, topic=topic, url=url)


def _seed(document: Document, text: str, language: str, picked: Picked) -> dict[str, Any]:
    digest = content_hash(text).hex()
    own = {key: document.fields[key] for key in ("url", TOPIC_KEY) if isinstance(document.fields.get(key), str)}
    return {
        "id": digest, "text": text, "seed_id": document.id, "seed_hash": digest, "discipline": picked.discipline,
        "language": language, "picked_by": picked.by, "keywords_per_hundred": round(picked.per_hundred, 2),
    } | own  # fmt: skip


def _key(seed: int, digest: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {digest}".encode(), digest_size=8).digest(), "little")


def _choose(options: SeedOptions, deduped: Path) -> tuple[Counter[tuple[str, str]], int]:
    """Writes the seeds in input order: of every discipline and language those with the lowest keys. How many of each,
    and how many were too many."""

    def seeds() -> Iterator[dict[str, Any]]:
        tasks = plan_tasks(sorted(deduped.glob("*.jsonl.zst")))
        return (document.fields for _, document in documents_of(tasks, text_key="text"))

    highest: dict[tuple[str, str], int] = {}
    if options.quota is not None:
        keys: dict[tuple[str, str], array[int]] = {}
        for seed in seeds():
            of_its_kind = keys.setdefault((seed["language"], seed["discipline"]), array("Q"))
            of_its_kind.append(_key(options.seed, seed["seed_hash"]))
        for group, of_group in keys.items():
            if len(of_group) > options.quota:
                highest[group] = int(
                    np.partition(np.frombuffer(of_group, dtype=np.uint64), options.quota)[options.quota]
                )
    chosen: Counter[tuple[str, str]] = Counter()
    over_quota = 0
    with DocumentWriter(options.out) as writer:
        for seed in seeds():
            group = seed["language"], seed["discipline"]
            if group in highest and _key(options.seed, seed["seed_hash"]) >= highest[group]:
                over_quota += 1
                continue
            writer.write(seed)
            chosen[group] += 1
    return chosen, over_quota
