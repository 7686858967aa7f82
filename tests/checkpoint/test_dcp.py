"""Rectangles in and out of torch DCP folders, and folders that are damaged or hostile."""

import os
import pathlib
import pickle
import re
import resource
import subprocess
import sys

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import load as torch_load
from torch.distributed.checkpoint import save as torch_save
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, StorageMeta, TensorProperties

from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.dcp import Chunk, load_chunks, save_chunks, whole
from megatron_synE.checkpoint.dcp_metadata import read_metadata
from megatron_synE.exit_codes import CheckpointError
from tests import tiny


def grid(key, tensor, *steps):
    """The tensor as a grid of lazy chunks."""
    ranges = [range(0, n, step) for n, step in zip(tensor.shape, steps, strict=True)]
    chunks = []
    for offsets in torch.cartesian_prod(*[torch.tensor(list(r)) for r in ranges]).reshape(-1, tensor.dim()).tolist():
        part = tensor[tuple(slice(o, o + step) for o, step in zip(offsets, steps, strict=True))]
        produce = part.clone if part.numel() else part.detach
        chunks.append(Chunk(key, tuple(tensor.shape), tuple(offsets), tuple(part.shape), tensor.dtype, produce))
    return chunks


def test_any_rectangle_comes_back_from_any_chunking(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "matrix": torch.randn(50, 31),
        "bf16": torch.randn(40, 8).bfloat16(),
        "vector": torch.randn(97),
        "cube": torch.randn(3, 20, 7),
    }
    steps = {"matrix": (7, 9), "bf16": (40, 8), "vector": (10,), "cube": (1, 6, 7)}
    save_chunks(tmp_path, [chunk for key, tensor in tensors.items() for chunk in grid(key, tensor, *steps[key])])
    reader = ChunkReader(tmp_path)
    assert sorted(reader.keys) == sorted(tensors)
    for key, tensor in tensors.items():
        assert (reader.shape(key), reader.dtype(key)) == (tuple(tensor.shape), tensor.dtype)
        for _ in range(20):
            corners = [sorted(torch.randint(0, n + 1, (2,)).tolist()) for n in tensor.shape]
            offsets, sizes = [b for b, _ in corners], [e - b for b, e in corners]
            assert torch.equal(reader.read(key, offsets, sizes), tensor[tuple(slice(*c) for c in corners)])


def test_torch_itself_reads_what_we_write_and_we_read_what_torch_writes(tmp_path):
    tensor, turned = torch.randn(12, 5), torch.randn(5, 12).t()
    save_chunks(tmp_path / "ours", grid("w", tensor, 5, 2))
    target = {"w": torch.zeros(12, 5)}
    torch_load(target, storage_reader=FileSystemReader(tmp_path / "ours"), no_dist=True)
    assert torch.equal(target["w"], tensor)
    torch_save({"w": tensor, "turned": turned}, storage_writer=FileSystemWriter(tmp_path / "torch"), no_dist=True)
    reader = ChunkReader(tmp_path / "torch")
    assert torch.equal(reader.read("w", (0, 0), (12, 5)), tensor)
    assert torch.equal(reader.read("turned", (2, 1), (9, 3)), turned[2:11, 1:4])


def test_targets_may_be_strided_and_of_another_dtype(tmp_path):
    tensor = torch.randn(10, 6).bfloat16()
    save_chunks(tmp_path, [whole("w", tensor)])
    columns = torch.zeros(6, 10)
    load_chunks(tmp_path, [Chunk("w", (10, 6), (0, 0), (10, 6), torch.float32, columns.t())])
    assert torch.equal(columns.t(), tensor.float())


def test_a_row_costs_its_own_bytes_and_a_header(tmp_path, monkeypatch):
    tensor = torch.randn(1000, 512)
    save_chunks(tmp_path, [whole("w", tensor)])
    read, shipped = [], os.preadv

    def counted(fd, buffers, offset):
        read.append(shipped(fd, buffers, offset))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    reader = ChunkReader(tmp_path)
    assert torch.equal(reader.read("w", (700, 0), (1, 512)), tensor[700:701])
    assert sum(read) < 100_000  # of two million
    read.clear()
    assert torch.equal(reader.read("w", (3, 0), (2, 512)), tensor[3:5])
    assert read == [2 * 512 * 4]  # where it lies is known by now


def test_a_rectangle_beyond_the_tensor_is_refused(tmp_path):
    save_chunks(tmp_path, grid("w", torch.zeros(4, 6), 3, 4))
    reader = ChunkReader(tmp_path)
    for offsets, sizes in (((0, 3), (4, 4)), ((1, 0), (4, 6)), ((-1, 0), (2, 2)), ((0,), (4,))):
        with pytest.raises(CheckpointError, match=re.escape(f"w [4, 6] has no {list(sizes)} at {offsets}")):
            reader.read("w", offsets, sizes)


def test_a_chunk_of_another_shape_or_type_than_it_says_is_refused(tmp_path):
    for values in (torch.zeros(2, 3), torch.zeros(2, 2).half()):
        chunk = Chunk("w", (4, 2), (0, 0), (2, 2), torch.float32, lambda values=values: values)
        message = f"w: expected torch.float32 (2, 2), got {values.dtype} {tuple(values.shape)}"
        with pytest.raises(CheckpointError, match=re.escape(message)):
            chunk.tensor()
        with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}: cannot be written ({message})")):
            save_chunks(tmp_path, [chunk])
    assert Chunk("w", (4, 2), (0, 0), (2, 2), torch.bfloat16, torch.zeros(2, 2)).size_bytes == 8


def test_a_view_is_written_without_the_storage_behind_it(tmp_path):
    save_chunks(tmp_path, [whole("row", torch.randn(1000, 1000)[3]), whole("turned", torch.randn(5, 7).t())])
    assert (tmp_path / "__0_0.distcp").stat().st_size < 10_000


def test_a_table_may_name_every_type_of_weights_and_of_paths(tmp_path):
    """Each by an ordinary pickle of the value itself, in the field that holds such values."""
    save_chunks(tmp_path, [whole("w", torch.zeros(2, 2))])
    table = read_metadata(tmp_path)
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
    for dtype in dtypes:
        table.state_dict_metadata["w"].properties = TensorProperties(dtype=dtype)
        (tmp_path / ".metadata").write_bytes(pickle.dumps(table))
        assert ChunkReader(tmp_path).dtype("w") == dtype
    for path in (pathlib.PurePosixPath("/a"), pathlib.Path("/a")):
        table.storage_meta = StorageMeta(checkpoint_id=path)
        (tmp_path / ".metadata").write_bytes(pickle.dumps(table))
        assert read_metadata(tmp_path).storage_meta.checkpoint_id == path


def test_a_missing_tensor_or_another_shape_is_named(tmp_path):
    save_chunks(tmp_path, [whole("w", torch.zeros(4, 4))])
    with pytest.raises(CheckpointError, match="tensor 'absent' is not in this checkpoint"):
        load_chunks(tmp_path, [whole("absent", torch.zeros(1))])
    with pytest.raises(CheckpointError, match=re.escape("w has shape (4, 4), the model needs (4, 5)")):
        load_chunks(tmp_path, [whole("w", torch.zeros(4, 5))])


def test_a_tensor_with_a_hole_is_refused(tmp_path):
    save_chunks(tmp_path, [whole("w", torch.zeros(4, 4))])
    table = read_metadata(tmp_path)
    table.state_dict_metadata["w"].size = torch.Size((8, 4))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(table))
    with pytest.raises(CheckpointError, match=r"stored incompletely \(16 of 32"):
        ChunkReader(tmp_path).read("w", (0, 0), (8, 4))


@pytest.mark.parametrize("kept", [0, 100, 2000])
def test_a_cut_or_missing_data_file_is_named(tmp_path, kept):
    save_chunks(tmp_path, [whole("w", torch.randn(40, 40))])
    file = tmp_path / "__0_0.distcp"
    os.truncate(file, kept)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp"):
        ChunkReader(tmp_path).read("w", (0, 0), (40, 40))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: missing"):
        ChunkReader(tmp_path).read("w", (0, 0), (40, 40))


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps([1])[:-1]])
def test_a_damaged_table_is_refused(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        ChunkReader(tmp_path)


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "arguments",
    [
        (pathlib.Path, "home"), (_MEM_FORMAT_ENCODING, "__class__"), (_MEM_FORMAT_ENCODING, "mro"),
        (_MEM_FORMAT_ENCODING, 0), (_MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT, "value"), ("text", "format"),
    ],
    ids=repr,
)  # fmt: skip
def test_getattr_in_a_table_gives_members_of_enums_alone(tmp_path, arguments):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Runs(getattr, *arguments)))
    with pytest.raises(CheckpointError, match="not opened"):
        read_metadata(tmp_path)


def test_a_table_of_debians_python_is_read(tmp_path, monkeypatch):
    """Python 3.11.2 pickles a member of an enum as getattr(the enum, its name); 3.11.7 by its value."""
    save_chunks(tmp_path, [whole("w", torch.zeros(2, 3))])
    table = read_metadata(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
        written = pickle.dumps(table)
    assert b"getattr" in written
    (tmp_path / ".metadata").write_bytes(written)
    assert read_metadata(tmp_path) == table


ANOTHER_PYTHON = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
from megatron_synE.checkpoint.chunk_reader import ChunkReader
from megatron_synE.checkpoint.dcp import save_chunks, whole
folder = Path(sys.argv[1])
save_chunks(folder / "its", [whole("w", torch.arange(6.0).reshape(2, 3))])
print([ChunkReader(folder / name).read("w", [0, 0], [2, 3]).tolist() for name in ("ours", "its")])
"""
THE_SYSTEMS = pathlib.Path(f"/usr/bin/python3.{sys.version_info.minor}")


@pytest.mark.skipif(not THE_SYSTEMS.exists(), reason=f"needs {THE_SYSTEMS}, of the version that the packages are for")
def test_the_systems_own_python_writes_and_reads_what_this_one_does(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    save_chunks(tmp_path / "ours", [whole("w", tensor)])
    paths = [tiny.ROOT, pathlib.Path(torch.__file__).parents[1]]
    done = subprocess.run(
        [THE_SYSTEMS, "-I", "-c", ANOTHER_PYTHON, tmp_path, *paths], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{[tensor.tolist()] * 2}\n"), done.stderr
    assert torch.equal(ChunkReader(tmp_path / "its").read("w", [0, 0], [2, 3]), tensor)


@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_a_table_can_run_nothing(tmp_path, function):
    witness = tmp_path / "ran"
    argument = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w').close()"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Runs(function, argument)))
    with pytest.raises(CheckpointError, match="not opened"):
        ChunkReader(tmp_path)
    assert not witness.exists()
    pickle.loads((tmp_path / ".metadata").read_bytes())  # the trap is armed: an ordinary unpickler springs it
    assert witness.exists()


def test_a_data_file_can_run_nothing(tmp_path):
    save_chunks(tmp_path, [whole("w", torch.zeros(2))])
    witness = tmp_path / "ran"
    torch.save(Runs(os.system, f"touch {witness}"), tmp_path / "__0_0.distcp")
    table = read_metadata(tmp_path)
    for place in table.storage_data.values():
        place.offset, place.length = 0, (tmp_path / "__0_0.distcp").stat().st_size
    (tmp_path / ".metadata").write_bytes(pickle.dumps(table))
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: damaged at w"):
        ChunkReader(tmp_path).read("w", (0,), (2,))
    assert not witness.exists()


def test_a_table_can_name_no_file_outside_its_folder(tmp_path):
    folder = tmp_path / "ckpt"
    save_chunks(folder, [whole("w", torch.zeros(2))])
    (folder / "__0_0.distcp").rename(tmp_path / "elsewhere")
    table = read_metadata(folder)
    for place in table.storage_data.values():
        place.relative_path = "../elsewhere"
    (folder / ".metadata").write_bytes(pickle.dumps(table))
    with pytest.raises(CheckpointError, match="ckpt/elsewhere: missing"):
        ChunkReader(folder).read("w", (0,), (2,))


def test_a_full_disk_is_a_message_that_names_the_folder(tmp_path):
    script = """
import sys, torch
from pathlib import Path
from megatron_synE.checkpoint.dcp import save_chunks, whole
from megatron_synE.exit_codes import CheckpointError
try:
    save_chunks(Path(sys.argv[1]), [whole("w", torch.zeros(1 << 20))])
except CheckpointError as error:
    print(error)
"""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # a file may grow to 1 MiB, then writes fail

    folder = str(tmp_path / "ckpt")
    child = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert f"{folder}: cannot be written" in child.stdout, child.stderr[-2000:]


def test_a_single_process_saves_without_a_warning(tmp_path, recwarn):
    save_chunks(tmp_path, [whole("w", torch.zeros(2))])
    assert [str(warning.message) for warning in recwarn] == []
