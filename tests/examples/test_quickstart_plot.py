"""The plot takes what a run wrote, also when it was cut off or lacks a quantity."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from data_mixers.errors import DataError
from examples.quickstart.plot import plot

TRAIN = [
    {"kind": "train", "iteration": i, "consumed_tokens": 4096 * i, "lm_loss": 3 - 0.1 * i, "learning_rate": 1e-5 * i,
     "grad_norm": 1.0, "samples_by_source": {"zh/a/law": 2 * i, "en/b/news": 6 * i}}
    for i in range(1, 6)
]  # fmt: skip
VALIDATION = [
    {"kind": "validation", "iteration": i, "consumed_tokens": 4096 * i, "set": name,
     "bits_per_byte": 2.0 - 0.1 * i}
    for i in (0, 5) for name in ("zh/a/law", "en/b/news", "elsewhere")
]  # fmt: skip


def _drawn(tmp_path: Path, text: str) -> Path:
    (tmp_path / "metrics.jsonl").write_text(text)
    plot(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "plot.png"]
    return tmp_path / "plot.png"


def test_a_whole_run_is_drawn_in_its_languages_colours(tmp_path: Path) -> None:
    picture = imread(_drawn(tmp_path, "\n".join(map(json.dumps, TRAIN + VALIDATION))))
    colours = {tuple(colour) for colour in (picture[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    assert (0xD5, 0x5E, 0x00) in colours  # zh
    assert (0x00, 0x72, 0xB2) in colours  # en
    assert (0x00, 0x9E, 0x73) not in colours  # no code in these rows


@pytest.mark.parametrize("key", ["lm_loss", "learning_rate", "grad_norm", "samples_by_source", "consumed_tokens"])
def test_a_quantity_that_is_absent_or_not_finite_leaves_a_gap(tmp_path: Path, key: str) -> None:
    rows = [dict(row) for row in TRAIN]
    rows[1][key] = float("nan")
    del rows[2][key]
    _drawn(tmp_path, "\n".join(map(json.dumps, rows)))


def test_rows_of_another_kind_alone_give_empty_panels(tmp_path: Path) -> None:
    _drawn(tmp_path, '{"kind": "validation_time", "iteration": 0, "seconds": 1.5}')


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    _drawn(tmp_path, json.dumps(TRAIN[0]) + '\n{"kind": "tra')


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no row"), ('{"kind"\n{"kind": "train"}\n', "metrics.jsonl, line 1: not JSON")],
)
def test_a_file_that_cannot_be_drawn_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _drawn(tmp_path, text)
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        plot(tmp_path / "absent.jsonl", tmp_path / "plot.png")
