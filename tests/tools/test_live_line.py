"""A line appears only when a step is slow, and its last word is the whole."""

import pytest

from tools import live_line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(live_line.time, "monotonic", lambda: now[0])
    return now


def test_a_quick_step_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    show = live_line.live_line("import")
    clock[0] += 1.9
    show(5, 10)
    show(10, 10)
    assert capsys.readouterr().err == ""


def test_a_slow_step_speaks_every_ten_seconds_and_at_its_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    show = live_line.live_line("import")
    for second in range(1, 21):
        clock[0] = 100.0 + second
        show(second * 10**9, 20 * 10**9)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "import: 2.00 of 20.00 GB, 1000 MB/s",
        "import: 12.00 of 20.00 GB, 1000 MB/s",
        "import: 20.00 of 20.00 GB, 1000 MB/s",
    ]
