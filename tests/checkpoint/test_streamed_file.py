"""Files written by background threads hold what was handed over, in order, and errors come out."""

import errno
import hashlib
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_synE.checkpoint import streamed_file
from megatron_synE.checkpoint.safetensors_file import SafetensorsWriter
from megatron_synE.checkpoint.streamed_file import BLOCK_BYTES, StreamedFile
from megatron_synE.exit_codes import CheckpointError


def test_any_mixture_of_copied_and_handed_over_blocks_comes_out_in_order(tmp_path):
    generator = random.Random(0)
    expected = bytearray()
    with StreamedFile(tmp_path / "file", with_hash=True) as stream:
        for size in (0, 1, 10_000, BLOCK_BYTES - 3, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, 7, 100_000, BLOCK_BYTES + 1):
            content = generator.randbytes(size)
            if generator.random() < 0.6:
                scratch = bytearray(content)
                stream.write(scratch)
                scratch[:] = bytes(size)  # the caller may reuse its buffer at once
            else:
                stream.append(memoryview(content))
            expected += content
            assert stream.tell() == len(expected)
    assert (tmp_path / "file").read_bytes() == expected
    assert stream.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_refused_write_is_raised_at_the_latest_on_close(tmp_path):
    script = """
import sys
from pathlib import Path
from megatron_synE.checkpoint.streamed_file import StreamedFile
try:
    with StreamedFile(Path(sys.argv[1]), with_hash=False) as stream:
        stream.write(bytes(1 << 21))
except OSError as error:
    print("refused", error.errno)
"""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file")],
        capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert child.stdout.startswith("refused"), child.stderr


def test_what_the_system_writes_in_part_is_written_to_the_end_and_in_order(tmp_path, monkeypatch):
    """write(2) may take less than it is given; here never more than a kilobyte of some hundred."""
    shipped = os.write
    monkeypatch.setattr(os, "write", lambda fd, block: shipped(fd, block[:1000]))
    blocks = [random.Random(seed).randbytes(100_000 + seed) for seed in range(12)]
    with StreamedFile(tmp_path / "file", with_hash=True) as stream:
        for block in blocks:
            stream.append(memoryview(block))
    assert (tmp_path / "file").read_bytes() == b"".join(blocks)
    assert stream.sha256 == hashlib.sha256(b"".join(blocks)).hexdigest()


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_sync_that_fails_on_the_way_is_raised(tmp_path, monkeypatch, fails):
    """The system tells a lost block to one sync alone: the fsync at the end finds nothing wrong any more."""
    calls = []

    def sync(fd):
        calls.append(fd)
        if len(calls) == fails + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(streamed_file, "_SYNC_BYTES", 2000)

    def write():
        with StreamedFile(tmp_path / "file", with_hash=False) as stream:
            for _ in range(200):
                stream.append(memoryview(bytes(1000)))
                while stream._sync is not None and not stream._sync.done():
                    os.sched_yield()

    with pytest.raises(OSError, match="Input/output error"):
        write()
    assert len(calls) > fails


def test_an_exception_of_the_caller_closes_the_file_as_it_is(tmp_path):
    stream = StreamedFile(tmp_path / "file", with_hash=True)
    assert tmp_path / "file" in _open_files()

    def write_half() -> None:
        with stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert stream.closed
    assert tmp_path / "file" not in _open_files()


def _open_files() -> list[Path]:
    return [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


def test_safetensors_itself_opens_what_is_written_in_pieces(tmp_path):
    tensors = {"b": torch.randn(7, 3).bfloat16(), "a": torch.randn(5), "empty": torch.zeros(0, 4).half()}
    announced = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(tmp_path / "f.safetensors", announced) as writer:
        for tensor in tensors.values():
            for rows in tensor.split(2):
                writer.append(rows)
    loaded = load_file(tmp_path / "f.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert int.from_bytes((tmp_path / "f.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_fewer_rows_than_announced_is_an_error(tmp_path):
    announced = {"a": (torch.float32, (4, 2))}
    with (
        pytest.raises(CheckpointError, match="24 bytes were written, 32 announced"),
        SafetensorsWriter(tmp_path / "f.safetensors", announced) as writer,
    ):
        writer.append(torch.zeros(3, 2))
