"""Scenarios of a module side by side, each on a Slurm of its own: what they wait for, they wait for together.

Nearly all that a scenario does is wait, for a time-out of Slurm or for its own ranks. A module's fixture begins those
that are selected, its tests, with the parameter `scenario`, ask how they ended.
The first test's time is nearly that of all.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest

from tests.slurm.cluster import Cluster, unavailable

Scenario = TypeVar("Scenario")
AT_ONCE = 4
"""Of a rank's start 5 s are work for a processor: more at once would only keep each other from starting."""


@contextmanager
def side_by_side(
    request: pytest.FixtureRequest, scenarios: Sequence[Scenario], run: Callable[[Scenario, Cluster], None]
) -> Iterator[dict[Scenario, Future[None]]]:
    """Those of the scenarios that this session has selected, begun in their order: put the longest first."""
    if reason := unavailable():
        pytest.skip(reason)
    calls = [item.callspec for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    wanted = [call.params["scenario"] for call in calls if "scenario" in call.params]

    def alone(scenario: Scenario) -> None:
        # In one thread from its start to its stop: its processes die with the thread that has made them.
        with Cluster() as cluster:
            run(scenario, cluster)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield {scenario: pool.submit(alone, scenario) for scenario in scenarios if scenario in wanted}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
