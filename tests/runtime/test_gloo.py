"""Sums and gathers over gloo: to the bit those added up by hand in the order of ranks, also in a part of the world."""

from pathlib import Path

import pytest

from tests import tiny

RANK = Path(__file__).with_name("gloo_rank.py")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_has_its_part_of_the_sum_and_all_parts(ranks: int) -> None:
    tiny.launched(ranks, RANK, ranks)
