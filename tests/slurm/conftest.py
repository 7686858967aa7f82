"""The cluster of all tests here: started once, given to each test without jobs and with every node up."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, unavailable


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    if reason := unavailable():
        if "slurm" in os.environ.get("SYNE_REQUIRE", "").split(","):
            pytest.fail(f"SYNE_REQUIRE names slurm, but {reason}")
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    _cluster.reset()
    return _cluster
