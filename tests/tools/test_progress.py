"""The live line of a log says how fast the work is, not how much was done before, and when it will end."""

import logging
import re
import time

import pytest

from tools.data import progress
from tools.data.progress import LiveProgress


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
