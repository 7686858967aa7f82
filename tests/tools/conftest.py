"""What tests of the data commands share."""

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer's fast engine is checked anew in every test, on fewer strings: the full number takes a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("megatron_synE.data.engine_check.NUM_CHECK_STRINGS", 200)


@pytest.fixture
def like_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which this process has a file open, or mapped, cannot be removed."""
    real = shutil.rmtree

    def rmtree(folder: Path | str, *arguments: Any, **options: Any) -> None:
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert not [link for link in links if link.is_relative_to(Path(folder).resolve())]
        real(folder, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
