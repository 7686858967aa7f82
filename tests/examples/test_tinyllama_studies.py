"""docs/walks/tinyllama_studies.md makes what examples/surrogate/tinyllama reads: every arm, held-out sets included."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data_mixers.manifest import read_manifest
from tests import tiny
from tests.synthesis.real_packages import science_pages
from tests.walk import walk
from tools.surrogate.arms import arms_of, check_jobs, jobs_of
from tools.surrogate.prepare import variants
from tools.surrogate.study import read_study

PAGE = tiny.ROOT / "docs/walks/tinyllama_studies.md"
STUDIES = Path("examples/surrogate/tinyllama")
DISCIPLINES = ("chemistry", "computer_science")
LITTLE: dict[str, Any] = {
    "data.stages.0.tokens": 32 * 512 * 2048, "data.max_epochs": 1e9, "lr_schedule.warmup_tokens": 512 * 2048,
}  # fmt: skip
"""Thirty-two steps over some hundred thousand bytes, read again and again."""


def texts(language: str, part: int, of: int) -> list[str]:
    pages = sorted((page["text"] for page in science_pages() if page["language"] == language), key=len)
    return pages[len(pages) // 2 + part :: of]


def write_lines(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def pairs(of_texts: list[str]) -> list[dict[str, str]]:
    rows = []
    for number, text in enumerate(of_texts):
        question, answer = text[: len(text) // 2], text[len(text) // 2 :]
        rows.append({"question": question, "answer": answer, "text": text, "discipline": DISCIPLINES[number % 2]})
    return rows


def what_the_reader_has(folder: Path) -> list[str]:
    """The texts of the held-out pairs: one of them is copied into the pairs, another one into WebInstruct."""
    held = texts("en", 0, 4)[:10]
    write_lines(folder / "heldout_pairs/0.jsonl", pairs(held))
    write_lines(folder / "pairs/0.jsonl", pairs([held[0], *texts("en", 1, 4), *texts("en", 2, 4)]))
    write_lines(folder / "webinstruct/0.jsonl", [{"text": text} for text in (held[1], *texts("zh", 0, 4))])
    write_lines(folder / "cosmopedia/0.jsonl", [{"text": text} for text in texts("zh", 1, 4)])
    for language, part in (("zh", 2), ("en", 3)):
        topics = ("law", "computing")
        rows = [{"text": text, "topic": topics[n % 2]} for n, text in enumerate(texts(language, part, 4))]
        write_lines(folder / "pages" / language / "0.jsonl", rows)
    tiny.hf_folder(folder / "models/TinyLlama_v1.1")
    tiny.byte_tokenizer(folder / "models/TinyLlama_v1.1")
    (folder / "examples").symlink_to(tiny.ROOT / "examples")
    return held


def documents(folder: Path) -> list[str]:
    found = []
    for file in folder.glob("*.zst"):
        with zstandard.open(file, "rt", encoding="utf-8") as lines:
            assert isinstance(lines, io.TextIOBase)
            found += [json.loads(line)["text"] for line in lines]
    return found


def test_every_study_reads_what_the_page_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = what_the_reader_has(tmp_path)
    walk(PAGE, tmp_path, HOLDOUT="2", PLAN="--no-data")
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data/tinyllama"
    sets = {s.name for name in ("normal", "synthetic") for s in read_manifest(data / name).with_role("validation")}
    web = {f"{language}/web/{topic}@holdout" for language in ("zh", "en") for topic in ("law", "computing")}
    assert sets == web | {f"synthetic/qa/{discipline}@validation" for discipline in DISCIPLINES}
    for name, copied in (("pairs", held[0]), ("webinstruct", held[1])):
        given = [json.loads(line)["text"] for line in (tmp_path / name / "0.jsonl").read_text("utf-8").splitlines()]
        assert copied in given
        kept = documents(data / f"{name}-documents")
        assert kept and not set(held) & set(kept)
    paths = sorted(path for path in STUDIES.glob("*.yaml") if path.stem != "base")
    assert len(paths) == 6
    for path in paths:
        study = read_study(path)
        study = dataclasses.replace(study, set=study.set | LITTLE)
        if study.corruption is not None:  # numbers alone: nouns and adjectives need WordNet's files
            section = dataclasses.replace(study.corruption, kinds=("number",))
            study = dataclasses.replace(study, corruption=section, grid={"corruption": [0.0, 0.3]})
        arms = arms_of(study, path, variants=variants(study, tmp_path / "variants"))
        check_jobs(study, path, jobs_of(study, arms), world_size=8)  # every fault of every arm, and groups without sets
