"""Our .bin/.idx files are Megatron's, read and written both ways, and damage is named."""

from pathlib import Path

import numpy as np
import pytest

from data_mixers.errors import DataError
from megatron_synE.data import indexed
from megatron_synE.data.indexed import IndexedFile, IndexedWriter, token_dtype

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 2], [3, 2]]


def write(prefix: Path, documents: list[list[int]] = DOCUMENTS, dtype: str = "uint16") -> Path:
    with IndexedWriter(prefix, dtype=dtype) as writer:  # type: ignore[arg-type]
        for document in documents:
            writer.add_document(np.array(document, dtype=np.int32))
    return prefix


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(write(tmp_path / "a", dtype=dtype)))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert dataset[0].dtype == np.dtype(dtype)


def test_we_write_the_very_bytes_that_megatron_writes(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours")
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


def test_documents_of_several_sequences_keep_their_boundaries(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.int32)
    for document in ([[1, 2], [3]], [[4, 5, 6]], [[], [7, 8]]):
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int32))
        builder.end_document()
    builder.finalize(str(tmp_path / "a.idx"))
    file = IndexedFile(tmp_path / "a")
    assert (file.num_documents, file.num_tokens) == (3, 8)
    assert file.tokens(1, 7).tolist() == [2, 3, 4, 5, 6, 7]
    assert file.document_starts_in(0, 8).tolist() == [0, 3, 6]
    assert file.document_starts_in(1, 6).tolist() == [3]
    assert file.document_starts_in(3, 7).tolist() == [3, 6]
    assert file.document_ranges().tolist() == [0, 3, 6, 8]


def test_document_starts_equal_a_slow_search_on_every_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [[7] * int(rng.integers(0, 6)) for _ in range(40)]
    file = IndexedFile(write(tmp_path / "a", documents))
    starts = {sum(map(len, documents[:i])) for i in range(40)}
    for begin in range(0, file.num_tokens, 3):
        for end in range(begin, file.num_tokens, 7):
            assert file.document_starts_in(begin, end).tolist() == sorted(s for s in starts if begin <= s < end)


def test_a_document_may_have_no_sequence(tmp_path: Path) -> None:
    prefix = write(tmp_path / "a")
    raw = bytearray((tmp_path / "a.idx").read_bytes())
    raw[34 + 12 * 4 + 8 * 2] = 1  # boundaries 0 1 1 3 4: the third document has two of the four sequences
    (tmp_path / "a.idx").write_bytes(raw)
    assert IndexedFile(prefix).document_ranges().tolist() == [0, 3, 3, 9, 11]


def test_the_document_of_every_token_is_that_of_a_slow_search(tmp_path: Path) -> None:
    file = IndexedFile(write(tmp_path / "a", [[1, 2], [], [3, 4, 5], [6]]))
    assert [file.document_at(token) for token in range(file.num_tokens)] == [0, 0, 2, 2, 2, 3]


def test_a_last_sequence_that_begins_inside_the_one_before_is_found(tmp_path: Path) -> None:
    """It is as much longer, so the file is as long as described."""
    prefix = write(tmp_path / "a")
    raw = bytearray((tmp_path / "a.idx").read_bytes())
    raw[34 + 4 * 3] += 1  # the last of four lengths, and of four pointers
    raw[34 + 4 * 4 + 8 * 3] -= 2
    (tmp_path / "a.idx").write_bytes(raw)
    with pytest.raises(DataError, match="do not lie end to end"):
        IndexedFile(prefix)


def test_tokens_are_a_view_of_the_map(tmp_path: Path) -> None:
    file = IndexedFile(write(tmp_path / "a"))
    assert not file.tokens(0, 4).flags.owndata
    with pytest.raises(DataError, match=r"a\.bin.*the file has 11"):
        file.tokens(5, 12)


def test_an_interrupted_write_leaves_the_old_pair(tmp_path: Path) -> None:
    write(tmp_path / "a")
    before = (tmp_path / "a.bin").read_bytes()
    with pytest.raises(DataError, match="does not fit"):
        write(tmp_path / "a", [[1, 2], [70_000]])
    assert (tmp_path / "a.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_an_id_beyond_the_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="65536 does not fit uint16"):
        write(tmp_path / "a", [[65536]])


def test_the_dtype_is_megatrons_choice() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for size in (100, 65_499, 65_500, 128_256):
        assert DType.optimal_dtype(size).__name__ == token_dtype(size)


def damage_bin(prefix: Path) -> None:
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:-2])


def damage_magic(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(b"XX" + path.read_bytes()[2:])


def damage_version(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:9] + b"\x02" + path.read_bytes()[10:])


def damage_dtype(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:17] + b"\x07" + path.read_bytes()[18:])


def damage_index_length(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:-9])


def damage_pointers(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    raw = bytearray(path.read_bytes())
    raw[34 + 4 * 4 + 8] += 2  # the second pointer: two bytes later
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bin, r"a\.bin has 20 bytes, a\.idx describes 22: it was cut off"),
        (damage_magic, r"a\.idx is not a Megatron index file"),
        (damage_version, r"a\.idx has index version 2"),
        (damage_dtype, r"a\.idx has dtype code 7"),
        (damage_index_length, r"a\.idx has .* bytes, its header asks for"),
        (damage_pointers, r"a\.bin: the sequences in a\.idx do not lie end to end.*write the pair again"),
    ],
)
def test_damage_is_named_with_its_cure(tmp_path: Path, damage: object, message: str) -> None:
    prefix = write(tmp_path / "a")
    damage(prefix)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        IndexedFile(prefix)


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin is missing"):
        IndexedFile(tmp_path / "a")


def checked_in_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 sequences, of which nine runs of 50 are looked at."""
    monkeypatch.setattr(indexed, "CONTIGUITY_CHECKED", 499)
    monkeypatch.setattr(indexed, "_RUN", 50)
    with IndexedWriter(folder / "a", dtype="uint16") as writer:
        for length in range(1, 501):
            writer.add_document(np.arange(length))


def move_pointer(idx: Path, sequence: int) -> None:
    raw = bytearray(idx.read_bytes())
    raw[34 + 4 * 500 + 8 * sequence] ^= 2
    idx.write_bytes(raw)


@pytest.mark.parametrize("sequence", [1, 250, 499])
def test_a_seam_in_a_checked_run_of_a_large_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequence: int
) -> None:
    checked_in_runs(tmp_path, monkeypatch)
    assert IndexedFile(tmp_path / "a").num_documents == 500
    move_pointer(tmp_path / "a.idx", sequence)
    with pytest.raises(DataError, match=r"do not lie end to end|describes"):
        IndexedFile(tmp_path / "a")


def test_a_seam_between_the_checked_runs_is_found_where_every_sequence_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_in_runs(tmp_path, monkeypatch)
    move_pointer(tmp_path / "a.idx", 53)  # the runs look at 0..50 and 56..106
    assert IndexedFile(tmp_path / "a").num_documents == 500
    with pytest.raises(DataError, match="do not lie end to end"):
        IndexedFile(tmp_path / "a", checks_all=True)
