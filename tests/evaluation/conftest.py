"""A command prepares the environment of its own process, which here is that of all tests."""

import os
from collections.abc import Iterator

import pytest


def _restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


_of_a_test = pytest.fixture(autouse=True)(_restored)
_of_a_module = pytest.fixture(autouse=True, scope="module")(_restored)  # what its own fixtures prepare
