"""Memory of a conversion where the kernel tells less than Linux does."""

from pathlib import Path

import pytest

from tools.checkpoint import meter


@pytest.mark.parametrize("status", [None, "VmRSS:\t  1000 kB\n"])
def test_a_kernel_without_the_peak_gives_that_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str | None
) -> None:
    if status is not None:
        (tmp_path / "status").write_text(status)
    monkeypatch.setattr(meter, "_STATUS", tmp_path / "status")
    cost = meter.Meter().cost(size_bytes=1)
    assert cost.peak_memory_bytes > 10_000_000, "Python with numpy has more"
    if status is not None:
        assert cost.memory_before_bytes == 1_024_000
