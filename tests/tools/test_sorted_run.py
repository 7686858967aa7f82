"""From scores to training: what `syne data sort` wrote is read from easy to hard, and memory stays bounded at size."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
    read_manifest,
    write_manifest,
)
from megatron_synE.config.examine import examine
from megatron_synE.config.load import load_config
from megatron_synE.data.indexed import IndexedFile, IndexedWriter
from megatron_synE.data.scheduled_dataset import ScheduledDataset
from tests import tiny
from tools.data.score import ScoreOptions, score_ppl
from tools.data.scores_file import SCHEMA, ScoresOrigin, metadata_of, open_scores, scores_path
from tools.data.sort import SortOptions, sort
from tools.mix import planned_reads

BUCKETS = 4


def document_ppl(folder: Path) -> dict[tuple[int, ...], float]:
    """Tokens of a Chinese training document -> its mean NLL."""
    manifest = read_manifest(folder)
    found = {}
    for entry in manifest.with_role("train"):
        (shard,) = entry.shards
        prefix = manifest.shard_prefix(shard)
        file = IndexedFile(prefix)
        starts = file.document_ranges()
        rows = open_scores(prefix, shard, "default").read().to_pylist()
        for row, start, stop in zip(rows, starts, starts[1:], strict=False):
            found[tuple(file.tokens(start, stop).tolist())] = row["nll_sum"] / row["nll_tokens"]
    return found


def test_a_run_with_a_curriculum_reads_a_sorted_folder_from_easy_to_hard(tmp_path: Path) -> None:
    hf = tiny.hf_folder(tmp_path / "hf")
    tiny.manifest(tmp_path / "data", tiny.TWO_LANGUAGES)
    score_ppl(ScoreOptions(data=tmp_path / "data", hf=hf, precision="fp32", device="cpu", seq_length=64))
    sort(SortOptions(data=tmp_path / "data", out=tmp_path / "train", sources="zh/*", buckets=BUCKETS))
    tree = tiny.run_tree(
        tmp_path,
        hf=hf,
        data={
            "stages": [
                {
                    "name": "adapt",
                    "tokens": 40 * 8 * 32,
                    "languages": {"zh": 0.8, "en": 0.2},
                    "curriculum": {"pacing": "low_to_high"},
                }
            ]
        },
        validation={"manifests": []},
    )
    config = tiny.write_run(tmp_path, tree)
    examination = examine(load_config(config, []).resolved, world_size=1)
    assert not examination.faults
    assert examination.schedule is not None
    dataset = ScheduledDataset(examination.schedule, examination.manifests)
    ppl = document_ppl(tmp_path / "data")
    by_start = {tokens[:4]: mean for tokens, mean in ppl.items()}
    names = [source.name for source in examination.schedule.sources]
    read: dict[str, list[float]] = {"law": [], "novel": []}
    for number in range(len(dataset)):
        sample = dataset[number]
        topic = names[sample.source_index].split("/")[2]
        if topic in read:
            # the documents that begin inside the window, found again by their first tokens
            for start in sample.document_starts[1:].tolist():
                mean = by_start.get(tuple(sample.tokens[start : start + 4].tolist()))
                if mean is not None:
                    read[topic].append(mean)
    for topic, means in read.items():
        quarters = [float(np.mean(part)) for part in np.array_split(np.array(means), BUCKETS)]
        assert len(means) > 20, topic
        assert quarters == sorted(quarters) and quarters[-1] > quarters[0] + 0.02, (topic, quarters)


def test_the_plan_shows_the_quantiles_of_the_buckets_as_they_are(tmp_path: Path) -> None:
    """Buckets 00 and 01 of a topic with 1 and 3 quarters of its tokens."""
    made = tiny.manifest(tmp_path / "train", {("zh", "web", "a"): 2000, ("zh", "web", "b"): 6000})
    entries = tuple(
        SourceEntry(
            name=f"zh/web/law/{bucket}", language="zh", source="web", topic="law", bucket=bucket, role="train",
            shards=entry.shards, sorted_by="nll",
        )
        for bucket, entry in zip(("00", "01"), made.sources, strict=True)
    )  # fmt: skip
    write_manifest(
        DatasetManifest(
            schema_version=made.schema_version,
            folder=made.folder,
            tokenizer=made.tokenizer,
            dtype=made.dtype,
            sources=entries,
        )
    )
    stage = {"name": "adapt", "tokens": 20 * 256, "languages": {"zh": 1.0}, "curriculum": {}}
    hf = tiny.hf_folder(tmp_path / "hf", num_hidden_layers=1)
    tree = tiny.run_tree(tmp_path, hf=hf, data={"stages": [stage]}, validation={"manifests": []})
    parts, _ = planned_reads(tiny.write_run(tmp_path, tree), [])
    total = sum(entry.num_tokens for entry in entries)
    border = f"{entries[0].num_tokens / total:.2f}"
    assert {part.source[-2:]: part.quantiles for part in parts} == {"00": f"0.00-{border}", "01": f"{border}-1.00"}
    assert border == "0.25"


NUM_DOCUMENTS, DOCUMENT_TOKENS = 60_000, 500
PEAK = """
import sys
from pathlib import Path
import pyarrow.dataset
from tools.checkpoint.meter import Meter
from tools.data import redistribute, sort
redistribute.BLOCK_TOKENS = redistribute.RANGE_TOKENS = 1 << 19
meter = Meter()
sort.sort(sort.SortOptions(data=Path(sys.argv[1]), out=Path(sys.argv[2]), buckets=4))
cost = meter.cost(size_bytes=1)
print(cost.peak_memory_bytes - cost.memory_before_bytes)
"""


def large_topic(folder: Path) -> None:
    """120 MB of tokens in one topic, with scores at random."""
    random = np.random.default_rng(0)
    prefix = folder / "zh__web__law_text_document"
    with IndexedWriter(prefix, dtype="int32") as writer:
        for number in range(0, NUM_DOCUMENTS, 1000):
            lengths = np.full(1000, DOCUMENT_TOKENS, dtype=np.int32)
            tokens = np.repeat(np.arange(number, number + 1000, dtype=np.int32), DOCUMENT_TOKENS)
            writer.add_documents(tokens, lengths)
    written = writer.written
    assert written is not None
    shard = ShardEntry(prefix=prefix.name, text_bytes=1, **vars(written))
    entry = SourceEntry(
        name="zh/web/law", language="zh", source="web", topic="law", bucket=None, role="train", shards=(shard,)
    )
    identity = TokenizerIdentity(digest="0" * 64, vocab_size=100_000, eos_id=2, bos_id=1)
    write_manifest(
        DatasetManifest(
            schema_version=SCHEMA_VERSION, folder=folder, tokenizer=identity, dtype="int32", sources=(entry,)
        )
    )
    origin = ScoresOrigin(
        bin_sha256=written.bin_sha256, weights_sha256="0", seq_length=1, overlap=0, precision="fp32",
        tokenizer_digest=None,
    )  # fmt: skip
    none = pa.nulls(NUM_DOCUMENTS, pa.float64())
    arrays = [
        pa.array(random.random(NUM_DOCUMENTS)),
        pa.array(np.ones(NUM_DOCUMENTS, dtype=np.int64)),
        none,
        none,
        none,
    ]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata_of(origin)))
    pq.write_table(table, scores_path(prefix, "default"))


def test_memory_is_that_of_a_block_and_a_range_not_of_the_topic(tmp_path: Path) -> None:
    large_topic(tmp_path / "data")
    done = tiny.python("-c", PEAK, tmp_path / "data", tmp_path / "sorted")
    assert done.returncode == 0, done.stderr[-3000:]
    # A block or range of 2 MB with its copies, some 60 bytes a document, Arrow's buffers; the topic has 120 MB.
    assert int(done.stdout.split()[-1]) < 60_000_000
    manifest = read_manifest(tmp_path / "sorted")
    shards = [shard for entry in manifest.sources for shard in entry.shards]
    files = [IndexedFile(manifest.shard_prefix(shard)) for shard in shards]
    found = np.concatenate([file.tokens(0, file.num_tokens)[::DOCUMENT_TOKENS] for file in files])
    keys = pq.read_table(scores_path(tmp_path / "data" / "zh__web__law_text_document", "default")).column("nll_sum")
    assert np.array_equal(found, np.argsort(keys.to_numpy(), kind="stable"))
