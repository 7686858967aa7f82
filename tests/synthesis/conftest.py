"""The sandbox of this machine, tried once for all tests here."""

import pytest

from data_mixers.errors import ConfigError
from tools.synthesis.sandbox import Sandbox, require_sandbox


@pytest.fixture(scope="session")
def box() -> Sandbox:
    try:
        return require_sandbox()
    except ConfigError as error:
        pytest.skip(f"{error}")
