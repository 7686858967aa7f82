"""The commands of docs/walks do what their pages say, for a reader with real pages and a small model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_synE.model.llama import hf_config_of
from megatron_synE.model.presets import ARCHITECTURES
from tests import tiny
from tests.slurm.cluster import Cluster, unavailable
from tests.synthesis.real_packages import chinese_triples, science_pages
from tests.walk import commands, walk

WALKS = tiny.ROOT / "docs" / "walks"


def write_pages(
    file: Path, language: str, count: int, *, part: int = 0, of: int = 1, topics: Sequence[str] = ()
) -> None:
    """Pages of science from the longer half, other ones in each part; with topics, each page has one."""
    pages = sorted((page["text"] for page in science_pages() if page["language"] == language), key=len)
    pages = pages[len(pages) // 2 + part :: of][:count]
    assert len(pages) == count
    rows = [{"text": text} | ({"topic": topics[n % len(topics)]} if topics else {}) for n, text in enumerate(pages)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def small_model(folder: Path) -> None:
    tiny.hf_folder(folder)
    tiny.byte_tokenizer(folder)


def what_the_reader_of_own_pages_has(folder: Path) -> None:
    for language in ("zh", "en"):
        write_pages(folder / "pages" / language / "0.jsonl", language, 40)
    items = chinese_triples(most_alike=1)[:20]
    rows = [
        {"question": i["question"], "answer": i["answer"], "text": f"{i['question']}\n{i['answer']}"} for i in items
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    small_model(folder / "models" / "small")


def test_own_pages_and_items_become_a_study_that_is_planned(tmp_path: Path) -> None:
    what_the_reader_of_own_pages_has(tmp_path)
    said = walk(WALKS / "own_pages.md", tmp_path)
    assert "2 arms" in said or "4 runs" in said, said
    assert "zh/items/" in (tmp_path / "data/mine/manifest.json").read_text()


@pytest.mark.slow
def test_own_pages_and_items_become_a_table(tmp_path: Path) -> None:
    what_the_reader_of_own_pages_has(tmp_path)
    said = walk(WALKS / "own_pages.md", tmp_path, ("slow",))
    assert "| items (primary) | mix=zh 50 |" in said
    assert (tmp_path / "runs/study/figure.png").exists()


ZH = ("web", "encyclopedia", "book", "qa_forum")
EN = (*ZH, "paper", "math", "code")
REHEARSAL = {
    "HOLDOUT": "2", "OVERRIDES": "data.max_epochs=1e9", "PARTITION": "main",
    "SMALL": "model.preset=tiny init.from=random init.path=null training.seq_length=2048",
}  # fmt: skip


def what_the_reader_of_stage_1_has(folder: Path) -> None:
    """The 8B's folder without its weights, under a tokenizer of bytes."""
    for language, sources, count in (("zh", ZH, 24), ("en", EN, 14)):
        for number, source in enumerate(sources):
            file = folder / "pages" / language / source / "0.jsonl"
            write_pages(file, language, count, part=number, of=len(sources), topics=("science",))
    small_model(folder / "models" / "Meta-Llama-3-8B")
    (folder / "models/Meta-Llama-3-8B/model.safetensors").unlink()
    config = json.dumps(hf_config_of(ARCHITECTURES["llama3_8b"]))
    (folder / "models/Meta-Llama-3-8B/config.json").write_text(config, encoding="utf-8")
    (folder / "examples").symlink_to(tiny.ROOT / "examples")


@pytest.mark.slow
def test_stage_1_on_eight_nodes_is_planned_rendered_and_checked(tmp_path: Path) -> None:
    what_the_reader_of_stage_1_has(tmp_path)
    said = walk(WALKS / "stage1_on_8_nodes.md", tmp_path, **REHEARSAL)
    assert "data_parallel_size: 16" in said
    assert "#SBATCH --nodes=8" in said and "#SBATCH --partition=main" in said
    report = json.loads((tmp_path / "runs/llama3-8b-stage1/slurm/preflight.json").read_text())
    assert report["faults"] == []


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_takes_the_job_of_stage_1(tmp_path: Path) -> None:
    """On two nodes, as many as the test's Slurm has."""
    if reason := unavailable():
        pytest.skip(reason)
    what_the_reader_of_stage_1_has(tmp_path)
    page = WALKS / "stage1_on_8_nodes.md"
    walk(page, tmp_path, **REHEARSAL)
    (line,) = [text for text in commands(page, ("cluster",)) if text not in commands(page)]
    with Cluster() as cluster:
        two = 'sbatch() { command sbatch --nodes=2 "$@"; }\n'
        done = cluster.run("bash", "-euc", two + line, cwd=tmp_path)
    assert "to start at" in done.stderr


def test_a_controller_and_a_signal_are_added_as_the_page_says(tmp_path: Path) -> None:
    for name in ("data_mixers", "megatron_synE", "tools"):
        shutil.copytree(tiny.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests/data_mixers").mkdir(parents=True)
    shutil.copy(tiny.ROOT / "pyproject.toml", tmp_path)
    write_pages(tmp_path / "pages.jsonl", "zh", 12)
    small_model(tmp_path / "models" / "small")
    prepared = "syne data preprocess --input pages.jsonl --tokenizer models/small --out data/pages --language zh"
    said = walk(WALKS / "new_code.md", tmp_path, before=prepared, PYTHONPATH=str(tmp_path))
    assert "1 passed" in said
    assert "| sign | " in said  # of the simulation
    assert "'velocitune', 'sign']" in said  # of the reference
    asked = (
        "from data_mixers.control_settings import idle_settings as i; print(i('sign', ['alpha', 'floor', 'targets']))"
    )
    idle = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert idle.stdout == "['targets']\n"
    assert (tmp_path / "data/sorted/manifest.json").read_text().count("mean_sentence_length") >= 1


@pytest.mark.slow
def test_ten_minutes_on_a_laptop(tmp_path: Path) -> None:
    """In a copy of the tracked files, with this environment."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=tiny.ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny.ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(tiny.ROOT / ".venv")
    built = 'make() { command make -o .venv/lock.sha256 -o .venv/package.stamp "$@"; }\nsource() { :; }'
    said = walk(WALKS / "laptop.md", tmp_path, ("slow",), before=built, timeout=1800)
    assert "all Chinese" in said
    assert (tmp_path / "runs/quickstart/report.html").stat().st_size > 10_000
