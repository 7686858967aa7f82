"""What surrounds training, by hand: 10^9 tokens of Llama-3-8B on two nodes of eight H100s."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_mixers.errors import ConfigError
from megatron_synE.config.load import load_config
from megatron_synE.config.schema import RunConfig
from megatron_synE.model.presets import ARCHITECTURES
from tests import tiny
from tools.planner.figures import card_of, read_efficiency
from tools.planner.layout import Job
from tools.planner.pipeline import Rate, Work, as_lines, pipeline, read_rates
from tools.planner.search import Place

JOB = Job(architecture=ARCHITECTURES["llama3_8b"], seq_length=8192, global_batch_size=512, total_tokens=10**9)
PLACE = Place(card=card_of("h100"), nodes=2, gpus_per_node=8, reserve_bytes=0)
RATES = """
text_bytes_per_token: 5
preprocess_mb_per_core_second: 20
label_mb_per_core_second: {value: 10, kind: assumed, source: a guess}
cpu_cores_per_node: 50
score_mfu: 0.5
score_share_of_forward_rate: 0.8
scored_share: 0.25
generator_parameters: 1.0e9
generator_kv_bytes_per_token: 1.0e5
generate_batch: 100
generate_tokens_per_sequence: 1000
generate_bandwidth_share: 0.5
generate_kept_share: 0.7
synthetic_tokens: 1.4e9
evaluations: 3
evaluation_items: 1000
evaluation_tokens_per_item: 200
"""
FORWARD = 51_470_401_536 / 3 / (989.4e12 * 0.5)  # GPU-seconds a token: 6 * 7,504,658,432 + 12 * 32 * 4096^2, a third


def config(**checkpoint: str) -> RunConfig:
    overrides = [f"checkpoint.{key}={value}" for key, value in checkpoint.items()]
    return load_config(
        tiny.ROOT / "examples/llama3_8b/run_recommended.yaml", ["init.from=random", "init.path=null", *overrides]
    ).resolved


@pytest.fixture
def rates(tmp_path: Path) -> dict[str, Rate]:
    (tmp_path / "rates.yaml").write_text(RATES)
    return read_rates(tmp_path / "rates.yaml")


def works_of(rates: dict[str, Rate], job: Job = JOB, **checkpoint: str) -> dict[str, Work]:
    return {work.name: work for work in pipeline(config(**checkpoint), job, PLACE, read_efficiency(), rates)}


def test_text_is_counted_in_core_hours_and_bytes(rates: dict[str, Rate]) -> None:
    works = works_of(rates)
    # 5 GB at 20 MB a core-second are 250 core-seconds, on 100 cores; ids of 4 bytes.
    found = works["preprocess"]
    assert (found.tokens, found.disk_bytes, found.gpu_hours) == (10**9, 4e9, None)
    assert found.core_hours == pytest.approx(250 / 3600, rel=1e-12)
    assert found.hours == pytest.approx(2.5 / 3600, rel=1e-12)
    assert (found.kind, found.counted) == ("measured", "20 MB a core-second (measured), 100 cores")
    found = works["label topics"]  # writes the text itself
    assert (found.disk_bytes, found.core_hours) == (5e9, pytest.approx(500 / 3600, rel=1e-12))
    assert (found.kind, found.counted) == ("assumed", "10 MB a core-second (assumed), 100 cores")


@pytest.mark.parametrize(("vocab_size", "id_bytes"), [(65_499, 2), (65_500, 4)])
def test_ids_of_a_small_vocabulary_take_two_bytes(rates: dict[str, Rate], vocab_size: int, id_bytes: int) -> None:
    job = replace(JOB, architecture=replace(JOB.architecture, vocab_size=vocab_size))
    assert works_of(rates, job)["preprocess"].disk_bytes == id_bytes * 10**9


def test_scoring_and_evaluating_are_forward_passes(rates: dict[str, Rate]) -> None:
    works = works_of(rates)
    score, evaluate = works["score PPL"], works["evaluate"]
    assert score.tokens == 0.25e9
    assert score.gpu_hours == pytest.approx(0.25e9 * FORWARD / 0.8 / 3600, rel=1e-9)
    assert score.hours == pytest.approx(0.25e9 * FORWARD / 0.8 / 3600 / 16, rel=1e-9)
    assert score.counted == "MFU 50.0% (measured), 0.8 of the forward rate (measured)"
    assert evaluate.tokens == 3 * 1000 * 200
    assert evaluate.gpu_hours == pytest.approx(600_000 * FORWARD / 3600, rel=1e-9)
    assert evaluate.hours == pytest.approx(600_000 * FORWARD / 3600 / 16, rel=1e-9)
    assert (evaluate.kind, evaluate.counted) == ("measured", "MFU 50.0% (measured); prompts alone, no answers")
    # Without a rate of its own: training's, 10,153 tokens/s/GPU on 8 and 0.99638 of that on 16, three times as fast.
    plain = works_of(rates | {"score_mfu": Rate(None, "computed", "")})["evaluate"]
    assert plain.gpu_hours == pytest.approx(600_000 / (3 * 10_153 * 0.99638) / 3600, rel=1e-5)
    assert plain.counted.startswith("forward FLOPs at 52.6% of peak, training's share (formula; interpolated)")


def test_decoding_reads_weights_and_half_of_the_keys_a_step(rates: dict[str, Rate]) -> None:
    # 2e9 bytes of weights and 100 * 1e5 * 500 of keys and values at half of 3.35 TB/s; 1.4e9 / 0.7 tokens.
    speed = 100 * 3.35e12 * 0.5 / 7e9
    found = works_of(rates)["synthesize"]
    assert (found.tokens, found.disk_bytes) == (pytest.approx(2e9), pytest.approx(1e10))
    assert found.gpu_hours == pytest.approx(2e9 / speed / 3600)
    assert found.hours == pytest.approx(2e9 / speed / 3600 / 16)
    expected = "23,929 tok/s/GPU: memory-bound decoding of 100 sequences (formula)"
    assert (found.kind, found.counted) == ("assumed", expected)
    given = works_of(rates | {"generate_tokens_per_second_per_gpu": Rate(5000.0, "published", "")})["synthesize"]
    assert given.gpu_hours == pytest.approx(2e9 / 5000 / 3600)
    assert (given.kind, given.counted) == ("published", "5,000 tok/s/GPU (published)")


@pytest.mark.parametrize(
    ("interval", "keep_last", "kept", "written"),
    [
        ("100000000", "3", 3, 10),
        ("400000000", "3", 2, 2),
        ("100000000", "null", 10, 10),
        ("1000", "null", 238, 238),  # at most one a step of 512 * 8192 tokens
        ("2000000000", "3", 1, 1),
        ("null", "3", 1, 1),
    ],
)
def test_checkpoints_that_are_kept_and_one_that_is_written(
    rates: dict[str, Rate], interval: str, keep_last: str, kept: int, written: int
) -> None:
    found = works_of(rates, interval_tokens=interval, keep_last=keep_last)["checkpoints"]
    assert found.disk_bytes == (kept + 1) * 14 * 8_030_261_248
    assert found.counted == f"{kept} kept and one being written, {written} in all"
    assert (found.tokens, found.kind) == (10**9, "computed")


def test_the_table_says_of_each_step_what_it_takes(rates: dict[str, Rate]) -> None:
    works = works_of(rates | {"label_mb_per_core_second": Rate(None, "assumed", "yours")}, keep_last="1")
    rows = [re.split(r"\s{2,}", line.strip()) for line in as_lines(list(works.values()))]
    head = ["step", "B tokens", "GPU-hours", "core-hours", "hours", "disk GB", "kind", "counted from"]
    assert rows[:3] == [
        head,
        ["preprocess", "1.00", "-", "0.1", "0.00", "4", "measured", "20 MB a core-second (measured), 100 cores"],
        ["label topics", "1.00", "-", "not known", "not known", "5", "assumed", "yours"],
    ]
    counted = "MFU 50.0% (measured), 0.8 of the forward rate (measured)"
    assert rows[3] == ["score PPL", "0.25", "3.0", "-", "0.19", "0", "measured", counted]
    assert [row[0] for row in rows[4:]] == ["synthesize", "evaluate", "checkpoints"]
    assert rows[4][2:5] == ["23.2", "-", "1.45"]
    assert rows[6][:7] == ["checkpoints", "1.00", "-", "-", "-", "225", "computed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lable: 1", r"no rate is called 'lable'; the rates are text_bytes_per_token, "),
        ("evaluations: -1", r"evaluations: .* is not a rate; write a positive number"),
        ("evaluations: 0", "is not a rate"),
        ("evaluations: true", "is not a rate"),
        ("evaluations: many", "is not a rate"),
        ("evaluations: {value: 1, kind: guessed}", "is not a rate"),
    ],
)
def test_a_wrong_rate_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rates.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_rates(tmp_path / "rates.yaml")


def test_a_rate_that_nobody_knows_is_asked_for(rates: dict[str, Rate]) -> None:
    with pytest.raises(ConfigError, match=r"^--rates: synthetic_tokens needs a number$"):
        works_of(rates | {"synthetic_tokens": Rate(None, "assumed", "")})
