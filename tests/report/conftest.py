"""One browser for all tests here that need one."""

from collections.abc import Iterator

import pytest

from tests.report.chromium import Chromium, unavailable


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    if reason := unavailable():
        pytest.skip(reason)
    with Chromium() as browser:
        yield browser
