"""Memory of a conversion where the kernel tells less than Linux does."""

from pathlib import Path

import pytest

from tests import tiny
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


STRANGER = """
import ctypes, os
from tools.checkpoint.meter import Meter
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: what is in /proc/self is root's
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(Meter().cost(size_bytes=1).peak_memory_bytes)
"""


def test_a_process_that_may_not_forget_its_peak_has_that_since_its_start() -> None:
    done = tiny.python("-c", STRANGER)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10_000_000
