"""The live line of a log says how fast the work is, not how much was done before, and when it will end."""

import logging
import re
import time

import pytest

from tools.data import progress
from tools.data.progress import LiveProgress, live_bytes


def test_what_was_done_before_says_nothing_of_the_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 10.0)
    with caplog.at_level(logging.INFO), LiveProgress("score", total=10_000, unit="tokens", scale=1.0) as live:
        live.skip(4000)
        seconds[0] += 5
        live.advance(500)  # too soon for a line
        seconds[0] += 5
        live.advance(500)
    # 1,000 tokens in 10 s, and 5,000 are left: 50 s from 1970-01-01 00:00:00 on.
    assert [record.message for record in caplog.records] == ["score: 50 % (100 tokens/s, projected end 01-01 00:00)"]
    assert re.fullmatch(r".*projected end \d\d-\d\d \d\d:\d\d\)", caplog.records[0].message)


def test_a_step_that_learns_its_size_late_shows_bytes_and_a_quick_one_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "localtime", time.gmtime)
    with caplog.at_level(logging.INFO):
        with live_bytes("import quick") as show:
            show(0, 10)
            show(10, 10)
        with live_bytes("import") as show:
            show(0, 20_000_000_000)
            for second in range(1, 12):
                seconds[0] = 100.0 + second
                show(second * 10**9, 20_000_000_000)
    assert [record.message for record in caplog.records] == [
        "import: 25 % (1000.0 MB/s, projected end 01-01 00:00)",
        "import: 50 % (1000.0 MB/s, projected end 01-01 00:00)",
    ]
