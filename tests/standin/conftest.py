"""The device of all tests here, compiled once."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.standin.card import built

TORCH = "2.13."


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler (apt-get install g++)")
    if not torch.__version__.startswith(TORCH):
        pytest.skip(f"device.cpp is written for the interfaces of torch {TORCH}, the lock's")
    return built(tmp_path_factory.mktemp("standin"))
