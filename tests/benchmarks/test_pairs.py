"""The ratio that every benchmark reports."""

from benchmarks._pairs import interleaved, ratio_of, rounds


def test_the_median_of_ratios_is_taken_pair_by_pair():
    ratio = ratio_of([(1.0, 2.0), (30.0, 10.0), (4.0, 4.0)])
    assert ratio.median == 1.0
    assert (ratio.low, ratio.high) == (0.5, 3.0)


def test_pairs_alternate_their_order_after_one_warm_up():
    calls = []

    def note(name):
        calls.append(name)
        return float(len(calls))

    pairs = interleaved(lambda: note("a"), lambda: note("b"), num_pairs=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert pairs == [(3.0, 4.0), (6.0, 5.0), (7.0, 8.0)]


def test_each_side_begins_a_round_in_turn_after_one_warm_up():
    calls = []

    def note(name):
        calls.append(name)
        return float(len(calls))

    found = rounds({name: lambda name=name: note(name) for name in "abc"}, num_rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert found == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}
