"""`syne data stats` and `sample` on folders with, without and with part of what lies beside token files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import MANIFEST_NAME, read_manifest
from megatron_synE.data.tokenizers import load_tokenizer
from tests.tools import corpus
from tests.tools.token_files import documents_of, write_scores
from tools.cli import app
from tools.data.options import SampleOptions
from tools.data.preprocess import PreprocessOptions, preprocess
from tools.data.sample import samples, shown
from tools.data.scores_file import scores_path
from tools.data.stats import PPL_EDGES, stats
from tools.data.verify import verify

TEXTS = {
    "law": corpus.documents(60, seed=1, kinds=(corpus.ZH,)),
    "computing": corpus.documents(40, seed=2, kinds=(corpus.CODE, corpus.EN)),
}


def _texts_in_file_order(prefix: Path, tokenizer_path: Path) -> list[str]:
    """Each document's text, found by its ids, so that rows beside it can be told apart."""
    tokenizer = load_tokenizer(tokenizer_path)
    known = {
        tuple(ids.tolist()): text
        for texts in TEXTS.values()
        for ids, text in zip(tokenizer.encode_ordinary_batch(texts), texts, strict=True)
    }
    return [known[tuple(ids[:-1].tolist())] for ids in documents_of(prefix)]


def _nll(text: str) -> float:
    """A made-up score that is different for every text: nats per token rise with the document's number."""
    return 1.0 + int(text.partition(".")[0]) / 20


def _describe(folder: Path, tokenizer_path: Path, *, scores: bool) -> None:
    """Documents and scores as docs/data.md has them, written by nothing of what reads them."""
    for entry in read_manifest(folder).sources:
        prefix = folder / entry.shards[0].prefix
        texts = _texts_in_file_order(prefix, tokenizer_path)
        lengths = np.array([len(ids) for ids in documents_of(prefix)])
        rows = {
            "id": [f"{entry.topic}-{text.partition('.')[0]}" for text in texts],
            "file": [f"{entry.topic}.jsonl"] * len(texts),
            "place": [int(text.partition(".")[0]) * 100 for text in texts],
            "topic": [entry.topic] * len(texts),
            "topic_confidence": [0.9] * len(texts),
            "num_tokens": lengths,
            "text_bytes": [len(text.encode()) for text in texts],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), f"{prefix}.documents.parquet")
        if scores:
            scored = {
                "nll_sum": [_nll(text) * (n - 1) for text, n in zip(texts, lengths, strict=True)],
                "nll_tokens": lengths - 1,
                "compression_ratio": [2.0] * len(texts),
                "lexical_diversity": [0.5] * len(texts),
                "characters_per_token": [1.5] * len(texts),
            }
            write_scores(scores_path(prefix, "default"), of=entry.shards[0].bin_sha256, **scored)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.hf_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder(tmp_path: Path, tokenizer_path: Path) -> Path:
    for topic, texts in TEXTS.items():
        corpus.write_jsonl(tmp_path / f"{topic}.jsonl", texts)
        preprocess(
            PreprocessOptions(
                inputs=(str(tmp_path / f"{topic}.jsonl"),),
                tokenizer=tokenizer_path,
                out=tmp_path / "data",
                language="zh" if topic == "law" else "en",
                topic=topic,
            )
        )
    for path in (tmp_path / "data").glob("*.documents.parquet"):
        path.unlink()  # each test writes what it needs
    return tmp_path / "data"


def test_numbers_are_those_of_the_texts(folder: Path, tokenizer_path: Path) -> None:
    _describe(folder, tokenizer_path, scores=True)
    found = {entry.topic: entry for entry in stats(folder)}
    tokenizer = load_tokenizer(tokenizer_path)
    for topic, texts in TEXTS.items():
        lengths = np.array([len(ids) + 1 for ids in tokenizer.encode_ordinary_batch(texts)])
        entry = found[topic]
        assert (entry.num_documents, entry.num_tokens) == (len(texts), lengths.sum())
        assert entry.text_bytes == sum(len(text.encode()) for text in texts)
        assert entry.longest == lengths.max()
        assert entry.length_quantiles == pytest.approx(np.quantile(lengths, [0.05, 0.25, 0.5, 0.75, 0.95]))
        nll = np.array([_nll(text) for text in texts])
        assert entry.ppl_quantiles == pytest.approx(np.quantile(np.exp(nll), [0.05, 0.25, 0.5, 0.75, 0.95]))
        total = float((nll * (lengths - 1)).sum())
        assert entry.ppl == pytest.approx(math.exp(total / (lengths - 1).sum()))
        assert entry.bits_per_byte == pytest.approx(total / math.log(2) / entry.text_bytes)
        assert entry.ppl_histogram is not None and sum(entry.ppl_histogram) == len(texts)
        first = next(n for n, edge in enumerate(PPL_EDGES) if edge > math.exp(nll[0])) - 1
        assert entry.ppl_histogram[first] >= 1 and not any(entry.ppl_histogram[:first])
        assert entry.missing == ()


@pytest.mark.parametrize("has_manifest", [True, False])
def test_folders_without_companions_or_manifest_are_counted_and_the_gaps_named(
    folder: Path, has_manifest: bool
) -> None:
    if not has_manifest:
        (folder / MANIFEST_NAME).unlink()
    found = stats(folder)
    assert [entry.num_documents for entry in found] == [40, 60]
    assert all(entry.ppl is None and entry.text_bytes is None for entry in found)
    output = CliRunner().invoke(app, ["data", "stats", "--data", str(folder)]).output
    assert "no .documents.parquet" in output and "no scores" in output


def test_companions_of_another_writing_are_refused(folder: Path, tokenizer_path: Path) -> None:
    _describe(folder, tokenizer_path, scores=True)
    path = next(folder.glob("*law*.scores.parquet"))
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(1), path)
    with pytest.raises(DataError, match=r"has 59 rows, .* has 60 documents"):
        stats(folder)
    pyarrow.parquet.write_table(table.drop_columns(["nll_tokens"]), path)
    with pytest.raises(DataError, match="nll_tokens"):
        stats(folder)
    # As many documents, but another seed's, or another tokenizer's.
    write_scores(path, of="0" * 64, **table.to_pydict())
    write_scores(path.with_name(path.name.replace("scores", "scores-weak")), of="0" * 64, **table.to_pydict())
    cure = f"run `syne data score-ppl --data {folder}"
    with pytest.raises(DataError, match=rf"law.*scores\.parquet holds scores of other tokens .*; {cure}` again"):
        samples(SampleOptions(data=folder, tokenizer=tokenizer_path))
    for name, asked in (("default", ""), ("weak", " --name weak")):
        with pytest.raises(DataError, match=rf"law.*\.parquet holds scores of other tokens .*; {cure}{asked}` again"):
            stats(folder, scores_name=name)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        stats(folder)


@pytest.mark.parametrize("scores", [True, False])
def test_text_json_and_figure_come_from_one_command(folder: Path, tokenizer_path: Path, scores: bool) -> None:
    _describe(folder, tokenizer_path, scores=scores)
    figure = folder.parent / "stats.png"
    arguments = ["data", "stats", "--data", str(folder), "--plot", str(figure), "--format", "json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    entries: list[dict[str, Any]] = json.loads(result.output)
    assert [entry["name"] for entry in entries] == ["en/web/computing", "zh/web/law"]
    assert (entries[0]["ppl"] is None) != scores
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 20_000
    pdf = figure.with_suffix(".pdf")
    with pytest.raises(ConfigError, match=r"stats\.pdf: the figure is a picture in \.png"):
        CliRunner().invoke(app, ["data", "stats", "--data", str(folder), "--plot", str(pdf)], catch_exceptions=False)
    assert not pdf.exists()


def test_a_byte_that_changed_is_found_by_verify_alone(folder: Path) -> None:
    command = ["data", "stats", "--data", str(folder)]
    files = [path for suffix in ("bin", "idx") for path in sorted(folder.rglob(f"*.{suffix}"))]
    size = sum(path.stat().st_size for path in files)
    whole = CliRunner().invoke(app, [*command, "--verify"])
    assert f"verified: {size:,} bytes of token files" in whole.stderr and "en/web/computing" in whole.stdout
    raw = bytearray(files[0].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[0].write_bytes(raw)
    assert CliRunner().invoke(app, command).exit_code == 0
    with pytest.raises(DataError, match=rf"^1 of 4 token files are not .*{files[0].name} has another sha256\. Copy"):
        verify(folder)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].unlink()
    with pytest.raises(DataError, match=r"^3 of 4 token files .*sha256; .*idx is missing; .* bytes, not [\d,]+\. "):
        verify(folder)


def test_a_percentile_shows_documents_round_it(folder: Path, tokenizer_path: Path) -> None:
    _describe(folder, tokenizer_path, scores=True)
    for percentile in (0, 50, 100):
        found = samples(SampleOptions(data=folder, tokenizer=tokenizer_path, topic="law", percentile=percentile, num=3))
        numbers = [int(entry.text.partition(".")[0]) for entry in found]
        assert len(set(numbers)) == 3
        assert all(abs(number - percentile / 100 * 59) <= 3 for number in numbers)
        for entry, number in zip(found, numbers, strict=True):
            assert entry.text == TEXTS["law"][number]
            assert (entry.id, entry.file, entry.place) == (f"law-{number}", "law.jsonl", number * 100)
            assert entry.ppl == pytest.approx(math.exp(_nll(entry.text)))
            assert entry.percentile == pytest.approx(100 * number / 59)


def test_the_same_seed_shows_the_same_documents(folder: Path, tokenizer_path: Path) -> None:
    one, again, other = (samples(SampleOptions(data=folder, tokenizer=tokenizer_path, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert [entry.source for entry in one] == ["en/web/computing"] * 5 + ["zh/web/law"] * 5
    assert all(entry.text in TEXTS[entry.topic or ""] and entry.id is None for entry in one)


def test_what_does_not_fit_is_told(folder: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scores\.parquet is missing.*score-ppl"):
        samples(SampleOptions(data=folder, tokenizer=tokenizer_path, percentile=50))
    with pytest.raises(ConfigError, match=r"no source fits --source fr/.*there are en/web/computing, zh/web/law"):
        samples(SampleOptions(data=folder, tokenizer=tokenizer_path, source="fr/*"))
    other = corpus.hf_folder(tmp_path / "other", vocab_size=500)
    with pytest.raises(ConfigError, match="another tokenizer"):
        samples(SampleOptions(data=folder, tokenizer=other))
    result = CliRunner().invoke(app, ["data", "sample", "--data", str(folder)])
    assert result.exit_code != 0


def test_a_topic_is_looked_up_where_no_manifest_says_it(folder: Path, tokenizer_path: Path) -> None:
    _describe(folder, tokenizer_path, scores=False)
    (folder / MANIFEST_NAME).unlink()
    options = SampleOptions(data=folder, tokenizer=tokenizer_path, topic="law", num=100)
    assert sorted(entry.text for entry in samples(options)) == sorted(TEXTS["law"])
    with pytest.raises(ConfigError, match="no document fits"):
        samples(replace(options, topic="art"))
    for path in folder.glob("*.documents.parquet"):
        path.unlink()
    with pytest.raises(DataError, match=r"documents\.parquet is missing, so a document's topic cannot be told"):
        samples(options)


def test_raw_files_are_sampled_too(tmp_path: Path) -> None:
    path = corpus.write_jsonl(tmp_path / "a.jsonl", TEXTS["law"], topics=["law", "Others"] * 30)
    options = SampleOptions(inputs=(str(path),), topic="law", num=4, seed=3)
    found = samples(options)
    assert len(found) == 4 and found == samples(options)
    raw = path.read_bytes()
    for entry in found:
        assert entry.place is not None
        line = json.loads(raw[entry.place :].split(b"\n")[0])
        assert (line["text"], line["topic"]) == (entry.text, "law")
    assert "more characters" in shown(found[0], max_characters=5)


def test_raw_files_are_sampled_by_source(tmp_path: Path) -> None:
    for source in ("law", "computing"):
        (tmp_path / source).mkdir()
        corpus.write_jsonl(tmp_path / source / "a.jsonl", TEXTS[source])
    options = SampleOptions(inputs=(str(tmp_path),), source="la*", num=50)
    assert {entry.source for entry in samples(options)} == {"law"}
    with pytest.raises(ConfigError, match=r"no document fits in .*, whose sources are computing, law$"):
        samples(replace(options, source="art"))


def test_decoding_gives_the_text_back_for_every_kind_of_tokenizer(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    text = "话说天下 it's  a fine\n\tday é 🙂"
    (ids,) = tokenizer.encode_ordinary_batch([text])
    assert tokenizer.decode([*ids.tolist(), tokenizer.eos_id]) == f"{text}<|end_of_text|>"


def test_decoding_undoes_sentencepiece_marks_and_byte_pieces(tmp_path: Path) -> None:
    import sentencepiece

    model = tmp_path / "tokenizer.model"
    with model.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus.documents(100)), model_writer=stream, vocab_size=400,
            byte_fallback=True, character_coverage=0.99, model_type="bpe",
        )  # fmt: skip
    tokenizer = load_tokenizer(model)
    text = "let x be 🙂 話"
    (ids,) = tokenizer.encode_ordinary_batch([text])
    assert tokenizer.decode(ids.tolist()).strip() == text
