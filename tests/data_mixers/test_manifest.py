"""A manifest is believed only as far as the files on disk agree with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_mixers.errors import DataError
from data_mixers.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    ShardEntry,
    SourceEntry,
    TokenizerIdentity,
    read_manifest,
    write_manifest,
)
from megatron_synE.data.indexed import IndexedWriter


@pytest.fixture
def manifest(tmp_path: Path) -> DatasetManifest:
    """One source of two documents on disk."""
    with IndexedWriter(tmp_path / "zh_text_document", dtype="uint16") as writer:
        writer.add_document(np.array([1, 2, 3]))
        writer.add_document(np.array([4, 3]))
    assert writer.written is not None
    shard = ShardEntry(prefix="zh_text_document", text_bytes=7, **vars(writer.written))
    assert (shard.num_documents, shard.num_tokens, shard.bin_size_bytes) == (2, 5, 10)
    source = SourceEntry(
        name="zh/web/law", language="zh", source="web", topic="law", bucket=None, role="train", shards=(shard,)
    )
    identity = TokenizerIdentity(digest="d", vocab_size=5, eos_id=3, bos_id=None)
    result = DatasetManifest(
        schema_version=SCHEMA_VERSION, folder=tmp_path, tokenizer=identity, dtype="uint16", sources=(source,)
    )
    write_manifest(result)
    return result


def change(folder: Path, old: str, new: str) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_is_written_is_read_back_from_the_file_or_its_folder(manifest: DatasetManifest) -> None:
    assert read_manifest(manifest.folder) == manifest
    assert read_manifest(manifest.folder / "manifest.json") == manifest


def test_a_folder_can_be_moved(manifest: DatasetManifest, tmp_path: Path) -> None:
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    assert read_manifest(moved) == replace(manifest, folder=moved)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 2', '"schema_version": 1', r"manifest\.json: schema_version is 1"),
        ('"dtype"', '"type"', r"unknown key .*manifest\.json\.type; missing key .*\.dtype"),
        ('"topic": "law"', '"topic": 5', r"sources\[0\]\.topic is 5"),
        ('"role": "train"', '"role": "test"', r"sources\[0\]\.role is 'test'; it must be one of"),
        ('"num_tokens": 5', '"num_tokens": 6', r"zh_text_document\.bin: 6 tokens of uint16 are 12 bytes"),
        ('"bin_size_bytes": 10', '"bin_size_bytes": 12', r"zh_text_document\.bin has 10 bytes, the manifest says 12"),
        ('"prefix": "zh_text', '"prefix": "../zh_text', r"leaves the folder"),
        ('"vocab_size": 5', '"vocab_size": true', r"tokenizer\.vocab_size is True"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_key(
    manifest: DatasetManifest, old: str, new: str, message: str
) -> None:
    change(manifest.folder, old, new)
    with pytest.raises(DataError, match=message):
        read_manifest(manifest.folder)


def test_a_cut_off_index_is_named(manifest: DatasetManifest) -> None:
    path = manifest.folder / "zh_text_document.idx"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"zh_text_document\.idx has .* bytes, the manifest says"):
        read_manifest(manifest.folder)


def test_a_bin_shorter_than_its_index_says_is_named_even_if_the_manifest_agrees(manifest: DatasetManifest) -> None:
    path = manifest.folder / "zh_text_document.bin"
    path.write_bytes(path.read_bytes()[:-2])
    change(manifest.folder, '"bin_size_bytes": 10', '"bin_size_bytes": 8')
    change(manifest.folder, '"num_tokens": 5', '"num_tokens": 4')
    with pytest.raises(DataError, match=r"zh_text_document\.bin has 8 bytes, shorter than .*\.idx says \(10\)"):
        read_manifest(manifest.folder)


def test_missing_files_are_named(manifest: DatasetManifest) -> None:
    (manifest.folder / "zh_text_document.bin").unlink()
    with pytest.raises(DataError, match=r"zh_text_document\.bin is missing"):
        read_manifest(manifest.folder)
    with pytest.raises(DataError, match=r"nowhere.* does not exist; write it with `syne data preprocess"):
        read_manifest(manifest.folder / "nowhere")


def test_a_name_used_twice_is_refused(manifest: DatasetManifest) -> None:
    write_manifest(replace(manifest, sources=manifest.sources * 2))
    with pytest.raises(DataError, match="more than once: zh/web/law"):
        read_manifest(manifest.folder)
