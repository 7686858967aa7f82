"""`syne data sort` against a plain sort in Python: order, ties, buckets, tails; nothing lost; memory bounded."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_mixers.errors import ConfigError, DataError
from data_mixers.manifest import DatasetManifest, ShardEntry, SourceEntry, read_manifest, write_manifest
from tests import tiny
from tests.rows import contents
from tests.tools.token_files import LAW, ORIGIN, Counted, documents_of, score, two_files_of_law
from tools.data import redistribute
from tools.data.scores_file import metadata_of, open_scores, scores_path
from tools.data.sort import SortOptions, sort
from tools.data.sort_order import document_ids, order_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return two_files_of_law(tmp_path / "data")


def rows_of(manifest: DatasetManifest, entry: SourceEntry, name: str = "default") -> list[dict[str, Any]]:
    """Every document in file order: its tokens, and its rows in both sidecars."""
    rows = []
    for shard in entry.shards:
        prefix = manifest.shard_prefix(shard)
        tokens = [tuple(ids.tolist()) for ids in documents_of(prefix)]
        documents = pq.read_table(f"{prefix}.documents.parquet").to_pylist()
        scores = open_scores(prefix, shard, name).read().to_pylist()
        rows += [{"tokens": t} | d | s for t, d, s in zip(tokens, documents, scores, strict=True)]
    return rows


def buckets_of(folder: Path, topic: str) -> list[list[dict[str, Any]]]:
    manifest = read_manifest(folder)
    entries = [e for e in manifest.sources if e.topic == topic and e.role == "train"]
    assert [entry.bucket for entry in entries] == [f"{n:02d}" for n in range(len(entries))]
    return [rows_of(manifest, entry) for entry in entries]


def original(folder: Path, topic: str) -> list[dict[str, Any]]:
    manifest = read_manifest(folder)
    return rows_of(manifest, next(e for e in manifest.sources if e.topic == topic and e.role == "train"))


def mean(row: dict[str, Any]) -> float:
    return row["nll_sum"] / row["nll_tokens"]  # type: ignore[no-any-return]


KEYS: dict[str, Any] = {
    "nll": mean,
    "lexical_diversity": lambda row: row["lexical_diversity"],
    "compression_ratio": lambda row: row["compression_ratio"],
}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("by", KEYS)
def test_the_order_is_that_of_a_plain_sort_with_ties_by_id(
    data: Path, by: str, descending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redistribute, "BLOCK_TOKENS", 300)
    monkeypatch.setattr(redistribute, "RANGE_TOKENS", 200)
    out = data.parent / "sorted"
    sort(SortOptions(data=data, out=out, by=by, buckets=4, descending=descending))
    sign = -1 if descending else 1
    for topic in ("law", "novel"):
        wanted = sorted(original(data, topic), key=lambda row: (sign * KEYS[by](row), row["id"]))
        buckets = buckets_of(out, topic)
        assert [row for bucket in buckets for row in bucket] == wanted
        sizes = [sum(len(row["tokens"]) for row in bucket) for bucket in buckets]
        longest = max(len(row["tokens"]) for row in wanted)
        assert all(abs(size - sum(sizes) / 4) < longest for size in sizes)
    entries = [e for e in read_manifest(out).sources if e.role == "train"]
    assert {e.sorted_by for e in entries} == {f"{by} descending" if descending else by}
    for entry in entries:
        assert entry.text_bytes == 3 * entry.num_tokens  # of the documents themselves, as write_documents says


def test_held_out_and_unchosen_sources_are_carried_over_unchanged(data: Path) -> None:
    out = data.parent / "sorted"
    sort(SortOptions(data=data, out=out, sources="*/law", buckets=2))
    before = {e.name: e for e in read_manifest(data).sources}
    after = {e.name: e for e in read_manifest(out).sources}
    assert set(after) == {"zh/web/law/00", "zh/web/law/01", "zh/book/novel", "zh/web/law@holdout"}
    for name in ("zh/book/novel", "zh/web/law@holdout"):
        assert after[name] == before[name]
        assert rows_of(read_manifest(out), after[name]) == rows_of(read_manifest(data), before[name])
    novels = [len(e.shards) for e in read_manifest(out).sources if e.topic == "novel"]
    assert novels == [1]


def test_the_files_are_equal_for_any_workers_and_after_an_interruption(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SortOptions(data=data, out=data.parent / "one", buckets=3)
    sort(options)
    sort(replace(options, out=data.parent / "two", workers=2))
    assert contents(data.parent / "two", with_work=False) == contents(data.parent / "one", with_work=False)

    real, calls = redistribute._write_bucket, []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments[0].name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(redistribute, "_write_bucket", failing)
    with pytest.raises(KeyboardInterrupt):
        sort(replace(options, out=data.parent / "three"))
    assert not (data.parent / "three" / "manifest.json").exists()
    cut = next(path for path in (data.parent / "one").glob("*.bin") if path.stem == calls[-1])
    (data.parent / "three" / f".{cut.name}.another-node.7.tmp").touch()  # a kill leaves that, an exception does not
    sort(replace(options, out=data.parent / "three"))
    assert len(calls) == 5 + 3  # the first topic is not written again
    assert contents(data.parent / "three", with_work=False) == contents(data.parent / "one", with_work=False)


def test_sorting_a_sorted_folder_again_changes_no_order(data: Path) -> None:
    sort(SortOptions(data=data, out=data.parent / "once", buckets=3))
    sort(SortOptions(data=data.parent / "once", out=data.parent / "twice", buckets=5))
    once, twice = (
        [row for bucket in buckets_of(data.parent / name, "law") for row in bucket] for name in ("once", "twice")
    )
    assert once == twice


def test_tails_are_reported_always_and_cut_on_request(data: Path) -> None:
    whole, cut = data.parent / "whole", data.parent / "cut"
    sort(SortOptions(data=data, out=whole, buckets=2))
    sort(SortOptions(data=data, out=cut, buckets=2, drop_tails=(0.1, 0.2)))
    ordered = sorted(original(data, "law"), key=lambda row: (mean(row), row["id"]))
    total = sum(len(row["tokens"]) for row in ordered)
    kept, start = [], 0
    for row in ordered:
        stop = start + len(row["tokens"])
        if stop > 0.1 * total and start < 0.8 * total:
            kept.append(row)
        start = stop
    assert [row for bucket in buckets_of(cut, "law") for row in bucket] == kept
    report = json.loads((whole / "sort_report.json").read_text())["zh/web/law"]
    assert report["num_dropped_documents"] == 0
    assert report["lowest"] == [[row["id"], mean(row)] for row in ordered[:5]]
    assert report["highest"] == [[row["id"], mean(row)] for row in ordered[-5:]]
    cut_report = json.loads((cut / "sort_report.json").read_text())["zh/web/law"]
    assert cut_report["num_dropped_documents"] == len(ordered) - len(kept)
    assert cut_report["num_dropped_tokens"] == total - sum(len(row["tokens"]) for row in kept)
    assert cut_report["quantiles"] == report["quantiles"]


def test_a_document_that_ends_at_the_border_of_a_tail_is_cut_and_one_that_crosses_it_stays(data: Path) -> None:
    (entry,) = tiny.manifest(data.parent / "eight", {LAW: 1}).sources[0].shards
    shards = [(Path("eight"), replace(entry, num_documents=8))]
    keys = np.arange(8.0)

    def kept(lengths: list[int]) -> list[int]:
        order, tails = order_of(
            keys, np.array(lengths), shards, descending=False, num_buckets=1, drop=(0.25, 0.25), keep_share=1.0,
            where="x",
        )  # fmt: skip
        assert tails.num_dropped_tokens == sum(lengths) - sum(lengths[n] for n in order.documents)
        return order.documents.tolist()

    # Of 32 tokens the tails are 0 to 8 and 24 to 32: documents of 4 tokens end and begin at both borders.
    assert kept([4] * 8) == [2, 3, 4, 5]
    # One token over each border: both that cross stay.
    assert kept([4, 5, 3, 4, 4, 3, 5, 4]) == [1, 2, 3, 4, 5, 6]


def test_thinning_keeps_every_quantile(data: Path) -> None:
    out = data.parent / "thinned"
    sort(SortOptions(data=data, out=out, buckets=1, keep_share=0.4))
    ordered = sorted(original(data, "law"), key=lambda row: (mean(row), row["id"]))
    (kept,) = buckets_of(out, "law")
    places = [ordered.index(row) for row in kept]
    assert len(places) == len(ordered) * 4 // 10
    assert set(np.diff(places)) == {2, 3}  # two of every five
    report = json.loads((out / "sort_report.json").read_text())["zh/web/law"]
    assert report["num_thinned_documents"] == len(ordered) - len(kept)
    assert report["num_dropped_documents"] == 0


def test_by_the_difference_of_two_models_and_both_scores_are_carried(data: Path) -> None:
    manifest = read_manifest(data)
    for shard in (s for e in manifest.sources for s in e.shards):
        for seed, name in ((7, "small"), (8, "large")):
            score(manifest.shard_prefix(shard), shard, name, seed=seed)
    out = data.parent / "sorted"
    sort(SortOptions(data=data, out=out, by="difference:small-large", buckets=3))
    found = []
    for entry in (e for e in read_manifest(out).sources if e.topic == "law" and e.role == "train"):
        small, large = (rows_of(read_manifest(out), entry, name) for name in ("small", "large"))
        found += [(mean(a) - mean(b), a["id"]) for a, b in zip(small, large, strict=True)]
    assert found == sorted(found)
    assert Counter(i for _, i in found) == Counter(row["id"] for row in original(data, "law"))


def test_scores_of_some_of_a_topics_files_are_left_behind_with_a_warning(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ordered = data.parent / "sorted"
    sort(SortOptions(data=data, out=ordered, buckets=2))
    first = next(entry for entry in read_manifest(ordered).sources if entry.name == "zh/web/law/00").shards[0]
    score(ordered / first.prefix, first, "weak")  # a call that was killed behind the first file
    sort(SortOptions(data=ordered, out=data.parent / "again", buckets=2))
    assert (
        "zh/web/law: the scores named weak are stale, mixed or of a part of it, so they are left behind" in caplog.text
    )
    assert not list((data.parent / "again").glob("*.scores-weak.parquet"))


def test_scores_of_unlike_windows_are_not_subtracted(data: Path) -> None:
    """One model in windows of 16 and of 128 tokens gives short documents the same NLL, and long ones another."""
    manifest = read_manifest(data)
    for shard in (s for e in manifest.sources for s in e.shards):
        for seq_length, name in ((64, "small"), (128, "large")):
            score(manifest.shard_prefix(shard), shard, name, seq_length=seq_length)
    message = r"difference:small-large: .*unlike windows .*'small': \(64, 8, 'fp32'\), 'large': \(128.*same"
    with pytest.raises(DataError, match=message):
        sort(SortOptions(data=data, out=data.parent / "sorted", by="difference:small-large"))
    sort(SortOptions(data=data, out=data.parent / "sorted", name="small"))


def test_signals_beside_some_of_the_scores_are_no_other_model(data: Path) -> None:
    manifest = read_manifest(data)
    shard = manifest.sources[0].shards[0]
    file = scores_path(manifest.shard_prefix(shard), "default")
    without = replace(ORIGIN, bin_sha256=shard.bin_sha256, tokenizer_digest=None)
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata(metadata_of(without)), file)
    sort(SortOptions(data=data, out=data.parent / "sorted", buckets=2))
    with pytest.raises(DataError, match="cannot be compared"):
        sort(SortOptions(data=data, out=data.parent / "other", by="lexical_diversity"))
    mixed = f"{manifest.sources[0].name}/*"
    with pytest.raises(DataError, match=r"have no lexical_diversity; run .* again with --tokenizer"):
        sort(SortOptions(data=data.parent / "sorted", out=data.parent / "b", by="lexical_diversity", sources=mixed))


def test_documents_with_nothing_to_measure_go_last_and_are_counted(data: Path) -> None:
    manifest = read_manifest(data)
    for shard in (s for e in manifest.sources for s in e.shards):
        values = [None if n % 5 == 0 else n / 100 for n in range(shard.num_documents)]
        score(manifest.shard_prefix(shard), shard, lexical_diversity=values)
    out = data.parent / "sorted"
    sort(SortOptions(data=data, out=out, by="lexical_diversity", buckets=2, descending=True))
    found = [row["lexical_diversity"] for bucket in buckets_of(out, "novel") for row in bucket]
    none = found.count(None)
    assert 0 < none == json.loads((out / "sort_report.json").read_text())["zh/book/novel"]["num_without_key"]
    assert found[-none:] == [None] * none
    assert found[:-none] == sorted((v for v in found if v is not None), reverse=True)


def _without_scores(folder: Path, manifest: DatasetManifest, prefix: Path, shard: ShardEntry) -> None:
    scores_path(prefix, "default").unlink()


def _with_nan(folder: Path, manifest: DatasetManifest, prefix: Path, shard: ShardEntry) -> None:
    score(prefix, shard, nll_sum=[float("nan")] * shard.num_documents)


def _of_another_model(folder: Path, manifest: DatasetManifest, prefix: Path, shard: ShardEntry) -> None:
    table = pq.read_table(scores_path(prefix, "default"))
    origin = replace(ORIGIN, bin_sha256=shard.bin_sha256, weights_sha256="e" * 64)
    pq.write_table(table.replace_schema_metadata(metadata_of(origin)), scores_path(prefix, "default"))


def _stale(folder: Path, manifest: DatasetManifest, prefix: Path, shard: ShardEntry) -> None:
    score(prefix, replace(shard, bin_sha256="0" * 64))


def _packed(folder: Path, manifest: DatasetManifest, prefix: Path, shard: ShardEntry) -> None:
    packed = tuple(replace(e, packed_seq_length=32) if shard in e.shards else e for e in manifest.sources)
    write_manifest(replace(manifest, sources=packed))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_scores, r"has no scores; run `syne data score-ppl --data .*`"),
        (_with_nan, r"no NLL for \d+ or more documents; delete them and run `syne data score-ppl"),
        (_of_another_model, "come from different models, windows or precisions"),
        (_stale, "holds scores of other tokens than"),
        (_packed, "is packed into windows of 32 tokens.*sort before packing"),
    ],
)
def test_what_cannot_be_sorted_is_refused_with_its_cure(data: Path, spoil: Any, message: str) -> None:
    manifest = read_manifest(data)
    shard = manifest.with_role("train")[0].shards[0]
    spoil(data, manifest, manifest.shard_prefix(shard), shard)
    with pytest.raises((ConfigError, DataError), match=message):
        sort(SortOptions(data=data, out=data.parent / "sorted", buckets=2))
    assert not (data.parent / "sorted" / "manifest.json").exists()


def test_a_folder_with_other_data_and_impossible_buckets_are_refused(data: Path) -> None:
    sort(SortOptions(data=data, out=data.parent / "sorted", buckets=2))
    with pytest.raises(ConfigError, match="holds other data; choose another --out"):
        sort(SortOptions(data=data, out=data.parent / "sorted", buckets=3))
    with pytest.raises(DataError, match=r"documents of \d+ tokens do not fill 500 buckets; use fewer --buckets"):
        sort(SortOptions(data=data, out=data.parent / "fine", buckets=500))
    with pytest.raises(ConfigError, match="--by ppl is not known; use nll"):
        sort(SortOptions(data=data, out=data.parent / "other", by="ppl"))
    with pytest.raises(ConfigError, match="holds other files"):
        sort(SortOptions(data=data, out=data.parent))
    with pytest.raises(ConfigError, match="is the data itself"):
        sort(SortOptions(data=data, out=data))


def test_the_command_sorts_and_says_what_is_wrong_without_a_traceback(data: Path) -> None:
    command = ("data", "sort", "--data", data, "--out", data.parent / "sorted", "--buckets", 2)
    done = tiny.syne(*command, "--drop-tails", "0.01")
    assert done.returncode == 2
    assert done.stderr == "error: --drop-tails '0.01': write two shares, e.g. 0.01,0.01\n"
    done = tiny.syne(*command, "--drop-tails", "0.1,0.1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{data.parent / 'sorted' / 'manifest.json'}\n"
    assert "zh/web/law: nll at shares of the tokens 0 %: " in done.stderr
    assert read_manifest(data.parent / "sorted").with_role("train")[0].bucket == "00"


def test_ids_of_a_topic_of_many_files_are_found_without_going_through_all_documents_for_each(tmp_path: Path) -> None:
    entry = {"num_tokens": 0, "text_bytes": 0, "bin_size_bytes": 0, "idx_size_bytes": 0}
    shards = [
        (tmp_path / f"file-{n}", ShardEntry(prefix="", num_documents=20, bin_sha256="", idx_sha256="", **entry))
        for n in range(100)
    ]
    documents = np.arange(0, 2000, 3).view(Counted)
    Counted.read = 0
    assert document_ids(shards, documents) == [f"file-{n // 20}:{n % 20}" for n in range(0, 2000, 3)]
    assert Counted.read <= 2 * len(documents)
