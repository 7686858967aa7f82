"""From the newest checkpoint back: its parents, the weights the run began with, the data, and the files behind it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_mixers.errors import UserError
from data_mixers.manifest import DatasetManifest, SourceEntry
from megatron_synE.checkpoint import layout
from tools.data.sidecar import sidecar_path, source_files
from tools.report.content import Block, Missing, Section, Table, Text
from tools.report.data_behind import manifests_of, way_back
from tools.report.metrics_file import number
from tools.report.numbers import short, size
from tools.report.run_record import RunRecord

HASH = 16
"""Digits of a hash that are shown."""
MOST_PARENTS = 64
MOST_ROWS = 1 << 20
"""Documents looked at for each source; beyond, the names of its files are those of the first ones."""
MOST_FILES = 8
"""Of a source that are listed with their way back."""


def lineage(runs: Sequence[RunRecord]) -> Section:
    """Per run: checkpoints, what they were trained from, sources with hashes, source files, versions."""
    blocks: list[Block] = []
    for run in runs:
        if len(runs) > 1:
            blocks.append(Text(f"{run.name}:"))
        blocks += [*_checkpoints(run), *_ancestors(run), *_weights(run), *_data(run), *_versions(run)]
    return Section("Lineage", blocks)


def _checkpoints(run: RunRecord) -> list[Block]:
    if not run.checkpoints:
        return [Missing(f"{run.name} holds no checkpoint")]
    rows = []
    for checkpoint in run.checkpoints:
        manifest = checkpoint.manifest or {}
        files = manifest.get("files")
        entries = [entry for entry in files.values() if isinstance(entry, dict)] if isinstance(files, dict) else []
        num_bytes = sum(number(entry, "size_bytes") or 0.0 for entry in entries)
        rows.append(
            [
                checkpoint.folder.name, _hash(manifest.get("lineage_hash")), _hash(manifest.get("schedule_hash")),
                checkpoint.fault or "whole", short(run.tokens_at(checkpoint.iteration) or 0.0), size(num_bytes),
            ]
        )  # fmt: skip
    header = ["checkpoint", "lineage hash", "schedule hash", "state", "tokens read", "size"]
    return [Table(header=header, rows=rows, num_text_columns=4)]


def _ancestors(run: RunRecord) -> list[Block]:
    """From the newest checkpoint to where its weights came from; each link is checked against the parent's own hash."""
    whole = [checkpoint for checkpoint in run.checkpoints if checkpoint.fault is None]
    if not whole:
        return []
    rows, manifest = [], whole[-1].manifest or {}
    seen: set[str] = set()
    while len(seen) < MOST_PARENTS:
        parent, expected = manifest.get("parent"), manifest.get("parent_lineage_hash")
        if not isinstance(parent, str) or parent in seen:
            break
        seen.add(parent)
        manifest, state = _parent(parent, expected)
        rows.append([parent, _hash(expected), state])
    return [Table(header=["trained from", "its lineage hash", "state"], rows=rows, num_text_columns=3)] if rows else []


def _parent(parent: str, expected: object) -> tuple[Mapping[str, Any], str]:
    """(its manifest, what can be said of it)."""
    if expected is None:
        return {}, "random weights" if parent == "random" else "Hugging Face weights"
    try:
        manifest = layout.read_manifest(Path(parent))
    except (UserError, OSError):
        return {}, "no longer there"
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # of another version, or no path at all
        return {}, f"cannot be read ({type(error).__name__}: {error})"
    same = manifest.get("lineage_hash") == expected
    return manifest, "there, with this hash" if same else "there, but with ANOTHER hash: it was replaced"


def _weights(run: RunRecord) -> list[Block]:
    hashes = run.manifest.get("source_hashes")
    if not isinstance(hashes, dict) or not hashes:
        return []
    rows = [[str(name), str(digest)] for name, digest in hashes.items()]
    return [Table(header=["weights the run began with", "sha256"], rows=rows, num_text_columns=2)]


def _data(run: RunRecord) -> list[Block]:
    manifests, faults = manifests_of(run)
    blocks: list[Block] = [Missing(fault) for fault in faults]
    rows, files = [], []
    scheduled = {} if run.schedule is None else {source.name: source for source in run.schedule.sources}
    for manifest in manifests:
        for entry in manifest.with_role("train"):
            if scheduled and entry.name not in scheduled:
                continue
            state = "–"
            if entry.name in scheduled:
                was = [shard.sha256 for shard in scheduled[entry.name].shards]
                same = was == [shard.bin_sha256 for shard in entry.shards]
                state = "the hashes are the schedule's" if same else "OTHER hashes than the schedule's: it was replaced"
            digests = ", ".join(_hash(shard.bin_sha256) for shard in entry.shards[:2])
            more = f" and {len(entry.shards) - 2} more" if len(entry.shards) > 2 else ""
            rows.append(
                [entry.name, str(manifest.folder), digests + more, state, short(entry.num_tokens),
                 f"{entry.num_documents:,}"]
            )  # fmt: skip
            files += _files(manifest, entry)
    if rows:
        header = ["source", "folder", "sha256 of its token files", "state", "tokens", "documents"]
        blocks.append(Table(header=header, rows=rows, num_text_columns=4))
    if files:
        header = ["source", "file its documents came from", "what is known of it", "documents"]
        blocks.append(Table(header=header, rows=files, num_text_columns=3))
    return blocks


def _files(manifest: DatasetManifest, entry: SourceEntry) -> list[list[str]]:
    """Source files with their documents, the largest first, each followed by the steps back from it."""
    counts: Counter[str] = Counter()
    left = MOST_ROWS
    for shard in entry.shards:
        prefix = manifest.shard_prefix(shard)
        if left <= 0 or not sidecar_path(prefix).is_file():
            continue
        try:
            found, seen = source_files(prefix, most_rows=left)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own faults are ValueErrors and KeyErrors
            return [[entry.name, str(sidecar_path(prefix)), f"cannot be read ({error})", "–"]]
        left -= seen
        counts.update(found)
    if not counts:
        return [[entry.name, "–", "no .documents.parquet beside its token files", "–"]]
    rows = []
    for file, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_FILES]:
        for step, (origin, what) in enumerate(way_back(Path(file))):
            rows.append([entry.name, f"{'← ' * step}{origin}", what, f"{count:,}" if step == 0 else ""])
    if len(counts) > MOST_FILES:
        rows.append([entry.name, f"and {len(counts) - MOST_FILES} more files", "", ""])
    return rows


def _versions(run: RunRecord) -> list[Block]:
    attempt = run.manifest.get("attempt")
    attempt = attempt if isinstance(attempt, dict) else {}
    rows = []
    for group in ("git", "versions"):
        values = attempt.get(group)
        rows += [[str(name), str(value)] for name, value in values.items()] if isinstance(values, dict) else []
    command = attempt.get("command")
    if isinstance(command, list):
        rows.append(["command", " ".join(map(str, command))])
    return [Table(header=["last start ran", "version"], rows=rows, num_text_columns=2)] if rows else []


def _hash(value: object) -> str:
    return value[:HASH] if isinstance(value, str) else "–"
