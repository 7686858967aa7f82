"""Settings of the whole suite. SYNE_REQUIRE=bubblewrap,...: a skipped test with one of these markers has failed."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported. The tests' tensors are so small that a second thread only waits for the first, which on a
# busy machine takes ten times as long as the work itself. Every process that a test starts inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before Triton is imported, by megatron-core where it is installed: without a GPU kernels run in its interpreter.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A slow machine is no fault of the code: an example may take as long as it takes.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A required test that was skipped has failed."""
    report = yield
    required = [
        name for name in os.environ.get("SYNE_REQUIRE", "").split(",") if name and item.get_closest_marker(name)
    ]
    if report.skipped and required:
        report.outcome = "failed"
        report.longrepr = f"SYNE_REQUIRE asks for {', '.join(required)}, but the test was skipped: {report.longrepr}"
    return report
