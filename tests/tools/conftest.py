"""What tests of the data commands share."""

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer's fast engine is checked anew in every test, on fewer strings: the full number takes a second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("megatron_synE.data.engine_check.NUM_CHECK_STRINGS", 200)
