"""What was trained on: the samples shown are those of the run, and the way back ends at the files they came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from data_mixers.manifest import read_manifest
from data_mixers.ratios import WEIGHT_UNIT
from data_mixers.schedule import Schedule, scheduled_source
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from megatron_synE.data.tokenizers import Tokenizer, load_tokenizer
from tests.openai_server import ROOT, served
from tests.report import run_folders
from tests.rows import write
from tests.synthesis.test_seeds import EN
from tests.tools import corpus
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.report import samples as samples_module
from tools.report.content import Excerpt, Missing, Section, Table
from tools.report.data_behind import way_back
from tools.report.lineage import lineage
from tools.report.run_record import RunRecord, read_run
from tools.report.samples import parse_steps, samples
from tools.synthesis.check import check
from tools.synthesis.format import format_pairs
from tools.synthesis.generate import generate
from tools.synthesis.options import CheckOptions, FormatOptions, GenerateOptions, SeedOptions
from tools.synthesis.seeds import write_seeds
from tools.synthesis.verifiable.stream import write_items

TEXTS = [f"<script>alert({number})</script> {text}" for number, text in enumerate(corpus.documents(60))]
STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages in one file, tokenised; a run of four steps of 8 samples of 32 tokens over them."""
    root = tmp_path_factory.mktemp("samples")
    tokenizer = corpus.hf_folder(root / "hf")
    pages = corpus.write_jsonl(root / "pages.jsonl", TEXTS)
    (root / "sources.json").write_text(json.dumps({"files": {"pages.jsonl": {"url": "https://pages.example/a"}}}))
    preprocess(PreprocessOptions(inputs=(str(pages),), tokenizer=tokenizer, out=root / "run" / "data", language="en",
                                 topic="law"))  # fmt: skip
    (entry,) = read_manifest(root / "run" / "data").sources
    empty = Schedule(seed=7, seq_length=run_folders.SEQ_LENGTH, sources=(scheduled_source(entry),))
    num_samples = STEPS * run_folders.BATCH
    schedule = empty.append_weights("adapt", num_samples=num_samples, weights={entry.name: WEIGHT_UNIT})
    run_folders.write(root / "run", STEPS, names=[entry.name])
    (root / "run" / "schedule.json").write_text(schedule.to_json())
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> RunRecord:
    return read_run(root / "run")


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return load_tokenizer(root / "hf", engine="reference")


def excerpts(section: Section) -> list[Excerpt]:
    return [block for block in section.blocks if isinstance(block, Excerpt)]


def test_a_sample_shows_the_tokens_that_the_run_read_and_the_documents_they_are_of(
    root: Path, run: RunRecord, tokenizer: Tokenizer
) -> None:
    assert run.schedule is not None
    dataset = ScheduledDataset(run.schedule, [read_manifest(root / "run" / "data")])
    shown = excerpts(samples([run], 9, tokenizer=root / "hf"))
    numbers = [int(entry.title.split("sample ")[1].split(":")[0]) for entry in shown]
    assert len(numbers) == 9 and numbers == sorted(set(numbers)) and numbers[-1] < STEPS * run_folders.BATCH
    for number, entry in zip(numbers, shown, strict=True):
        assert entry.title == f"step {number // 8 + 1}, sample {number}: en/web/law"
        parts = entry.text.split("\n――――――――\n")
        ids = [id_ for id_ in dataset[number].tokens.tolist() if id_ != tokenizer.eos_id]
        assert "".join(parts) == tokenizer.decode(ids)
        files = [fact.split(", ")[-1] for fact in entry.facts if fact.startswith("document ")]
        assert len(files) == len(parts)
        for part, file in zip(parts, files, strict=True):
            name, _, place = file.rpartition(":")
            assert name == str(root / "pages.jsonl")
            line = (root / "pages.jsonl").read_bytes()[int(place) :].split(b"\n")[0]  # a place is a byte
            assert part.strip("�") in json.loads(line)["text"]  # a cut may split a character


def test_documents_beyond_the_most_of_a_sample_are_counted(
    root: Path, run: RunRecord, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten windows end to end: beside its first document each holds one for every EOS that is not its last token."""
    monkeypatch.setattr(samples_module, "MOST_DOCUMENTS", 1)
    prefix = root / "run" / "data" / read_manifest(root / "run" / "data").sources[0].shards[0].prefix
    file, told = IndexedFile(prefix), []
    for start in range(0, 320, 32):
        facts, _ = samples_module._documents(file, prefix, start, 32, tokenizer)
        inside = file.tokens(start, start + 32).tolist().count(tokenizer.eos_id)
        assert facts[1:] == ([f"and {inside} more documents"] if inside else [])
        told.append(inside)
    assert max(told) > 0


def test_only_samples_of_the_steps_asked_for_are_shown(root: Path, run: RunRecord) -> None:
    shown = excerpts(samples([run], 99, steps=(2, 3), tokenizer=root / "hf"))
    assert [entry.title.split(":")[0] for entry in shown] == [f"step {n // 8 + 1}, sample {n}" for n in range(8, 24)]
    section = samples([run], 1, steps=(5, 9))
    assert section.blocks == [
        Missing("made: no sample can be shown: steps 5:9 were not read; the run stands at step 4")
    ]
    assert (parse_steps("2:3"), parse_steps("4:4"), parse_steps(None)) == ((2, 3), (4, 4), None)
    for text in ("2", "3:2", "0:4", ":4", "2:", "a:b", "²:4", "1:2:3"):
        with pytest.raises(ConfigError, match=f"^--steps {text}: give two steps A:B"):
            parse_steps(text)


def test_without_the_tokenizer_or_with_another_the_ids_are_shown(root: Path, run: RunRecord, tmp_path: Path) -> None:
    other = corpus.hf_folder(tmp_path / "other", vocab_size=500)
    for tokenizer, why in ((None, "no tokenizer is known"), (other, "is another tokenizer than the data's")):
        section = samples([run], 2, tokenizer=tokenizer)
        assert any(isinstance(block, Missing) and why in block.text for block in section.blocks)
        assert all(part.isdecimal() for entry in excerpts(section) for part in entry.text.replace("―", "").split())


def test_data_that_was_written_again_is_not_shown_as_what_was_read(root: Path, run: RunRecord) -> None:
    assert run.schedule is not None
    source = run.schedule.sources[0]
    other = replace(source, shards=(replace(source.shards[0], sha256="f" * 64),))
    changed = replace(run, schedule=replace(run.schedule, sources=(other,)))
    (entry,) = excerpts(samples([changed], 1, tokenizer=root / "hf"))
    assert entry.text == ""
    assert any("was written again since" in fact for fact in entry.facts)
    wider = replace(source, shards=(*source.shards, *source.shards))  # the folder has fewer files than were read
    fewer = replace(run, schedule=replace(run.schedule, sources=(wider,)))
    facts = [entry.facts for entry in excerpts(samples([fewer], 32, tokenizer=root / "hf"))]
    assert any("fewer files" in fact for told in facts for fact in told)
    states = [row[3] for block in lineage([changed]).blocks if isinstance(block, Table) and block.header[0] == "source"
              and block.header[3] == "state" for row in block.rows]  # fmt: skip
    assert states == ["OTHER hashes than the schedule's: it was replaced"]


def test_of_data_whose_token_files_are_gone_the_lineage_is_told(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(root / "run", folder)
    (folder / "run_config.yaml").write_text(json.dumps(run_folders.config(folder, "made")))
    for file in (folder / "data").glob("*.bin"):
        file.unlink()
    run = read_run(folder)
    blocks = lineage([run]).blocks
    assert not any(isinstance(block, Missing) and "data" in block.text for block in blocks)
    (state,) = [row[3] for block in blocks if isinstance(block, Table) and block.header[:1] == ["source"]
                and block.header[3] == "state" for row in block.rows]  # fmt: skip
    assert state == "the hashes are the schedule's"
    (entry,) = excerpts(samples([run], 1, tokenizer=root / "hf"))
    assert entry.text == "" and any(".bin is missing" in fact for fact in entry.facts)


def test_checkpoints_are_told_with_hashes_tokens_and_bytes_also_those_that_are_not_whole(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path / "run", 20) / "checkpoints" / "iter_0000010"
    folder.mkdir(parents=True)
    files = {"a.distcp": {"size_bytes": 1000, "sha256": "0"}, "state.json": {"size_bytes": 536, "sha256": "0"}}
    manifest = {"schema_version": 1, "files": files, "lineage_hash": "ab" * 32, "schedule_hash": "cd" * 32}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (table,) = [b for b in lineage([read_run(tmp_path / "run")]).blocks if isinstance(b, Table)
                and b.header[0] == "checkpoint"]  # fmt: skip
    ((name, own, schedule, state, tokens, num_bytes),) = table.rows
    assert (name, own, schedule, tokens, num_bytes) == ("iter_0000010", "ab" * 8, "cd" * 8, "2.56 k", "1.50 KiB")
    assert state.endswith("does not list .metadata; not a whole checkpoint")


def test_the_way_back_goes_to_the_file_and_to_where_it_was_fetched(root: Path, run: RunRecord) -> None:
    rows = [list(row) for block in lineage([run]).blocks if isinstance(block, Table) for row in block.rows]
    assert [row for row in rows if row[0] == "en/web/law" and row[-1] == "60"] != []
    (file,) = [row for row in rows if row[1] == str(root / "pages.jsonl")]
    assert file[2].startswith("fetched from https://pages.example/a ") and file[3] == "60"


def test_the_way_back_of_pairs_goes_through_every_call_that_made_them(tmp_path: Path) -> None:
    made, kept = tmp_path / "made.jsonl", tmp_path / "checked"
    write_items("algebra", "en", num=20, seed=1, out=made)
    assert check(CheckOptions(inputs=(str(made),), out=kept)).num_kept > 0
    tokenizer = corpus.hf_folder(tmp_path / "hf")
    format_pairs(FormatOptions(inputs=(str(kept),), out=tmp_path / "text", tokenizer=tokenizer, audit=None))
    (checked,) = kept.glob("*.jsonl.zst")
    text = tmp_path / "text" / "qa.jsonl.zst"
    assert list(way_back(text)) == [
        (text, f"made by syne synth format from {checked}"),
        (checked, f"made by syne synth check from {made}"),
        (made, "no record beside it"),
    ]


def test_the_way_back_of_answers_goes_to_the_pages_that_their_seeds_are_of(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    pages = write(tmp_path / "pages" / "p.jsonl", ({"id": f"p{i}", "text": text} for i, text in enumerate(EN)))
    (tmp_path / "pages" / "sources.json").write_text(json.dumps({"files": {"p.jsonl": {"url": "https://p.example"}}}))
    seeds, out = tmp_path / "seeds.jsonl", tmp_path / "qa"
    write_seeds(SeedOptions(inputs=(str(pages),), out=seeds, near_duplicates=False))
    with served(ROOT / "tests/synthesis/faulty_model_server.py", tmp_path / "log") as url:
        generate(GenerateOptions(seeds=(str(seeds),), out=out, model="m", endpoints=(url,)))
    steps = list(way_back(out / "pairs.jsonl.zst"))
    assert steps[:2] == [
        (out / "pairs.jsonl.zst", f"made by syne synth generate from {seeds}"),
        (seeds, f"made by syne synth seeds from {pages}"),
    ]
    assert steps[2][0] == pages and steps[2][1].startswith("fetched from https://p.example ")
    assert len(steps) == 3


def test_the_document_of_a_token_is_the_one_whose_range_holds_it(root: Path) -> None:
    manifest = read_manifest(root / "run" / "data")
    file = IndexedFile(manifest.shard_prefix(manifest.sources[0].shards[0]))
    ranges = file.document_ranges().tolist()
    for token in range(0, file.num_tokens, 7):
        number = file.document_at(token)
        assert ranges[number] <= token < ranges[number + 1]
