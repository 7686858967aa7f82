"""What a judge's words and numbers mean: a verdict read out of them, and the interval of a rate."""

import threading
from typing import Any

import httpx
import numpy as np
import pytest

from tools.data.chat import post
from tools.synthesis.audit import parse_verdict
from tools.synthesis.wrong_rate import Calibration, Count, wrong_rates


@pytest.mark.parametrize(("rate", "sensitivity", "specificity"), [(0.3, 0.85, 0.9), (0.02, 0.7, 0.95), (0.6, 1.0, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(rate: float, sensitivity: float, specificity: float) -> None:
    random = np.random.default_rng(7)
    repeats, inside, corrected = 200, 0, []
    for seed in range(repeats):
        apparent = rate * sensitivity + (1 - rate) * (1 - specificity)
        called = Count(int(random.binomial(150, apparent)), 150)
        known = (Count(int(random.binomial(150, share)), 150) for share in (sensitivity, specificity))
        _, found = wrong_rates({"a": called}, {"a": 10}, Calibration(*known), seed=seed)
        inside += found.low <= rate <= found.high
        corrected.append(found.value)
    assert 0.90 * repeats <= inside  # 95 % less three standard errors of 200 repeats
    assert np.mean(corrected) == pytest.approx(rate, abs=0.015)


def test_a_verdict_is_read_out_of_what_models_write() -> None:
    assert parse_verdict('Sure: {"reason": "ok", "verdict": "Right"}') == ("right", "ok")
    assert parse_verdict('{"reason": "bad \\escape", "verdict": "wrong"}') is not None
    assert parse_verdict('{"verdict": "maybe"}') is None
    found = parse_verdict(r'Since \frac{1}{2} holds: {"reason":"yes, \frac{1}{2}","verdict":"right"}')
    assert found is not None and found[0] == "right"
    assert parse_verdict(r'\frac{1}{2} {"verdict":"right"} or {"verdict": "wrong"}') is None
    assert parse_verdict("right") is None


def test_a_verdict_that_a_judge_weighs_in_thought_is_none() -> None:
    for thought in ('<think>\nIs it {"verdict": "wrong"}? No.</think>\n', 'Perhaps {"verdict": "wrong"}.\n</think>\n'):
        text = f'{thought}{{"reason": "ok", "verdict": "right"}}'
        content: Any = text if "Perhaps" in text else [{"type": "text", "text": text}]
        said = {"choices": [{"message": {"content": content}}]}
        transport = httpx.MockTransport(lambda request, said=said: httpx.Response(200, json=said))
        with httpx.Client(transport=transport, base_url="http://judge/v1") as client:
            reply, fault = post(client, {}, 0, threading.Event())
        assert (parse_verdict(str(reply)), fault) == (("right", "ok"), "")
