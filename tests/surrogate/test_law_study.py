"""`syne surrogate law` on a study whose losses are made from a known law: what it leaves out, and what it refuses."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_synE.model.llama import hf_config_of
from megatron_synE.model.presets import ARCHITECTURES
from tests.surrogate.test_study import base, study_tree, written
from tools.cli import main
from tools.surrogate.arms import Arm, arms_of, jobs_of
from tools.surrogate.law_study import curves_of, law_of, report, share_of, size_of
from tools.surrogate.outcome import Measured, Point
from tools.surrogate.run import ARMS
from tools.surrogate.study import Study, read_study

SETS = ("zh/web/law@holdout", "synthetic/qa/algebra@holdout")
LAYERS = {"small": 1, "middle": 2, "large": 4}


def sizes(root: Path, *names: str) -> dict[str, dict[str, Any]]:
    """Levels: models of these names, with so many layers."""
    for name in names:
        architecture = replace(ARCHITECTURES["tiny"], num_layers=LAYERS[name])
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(hf_config_of(architecture)))
    return {name: {"model.preset": None, "model.hf_config": str(root / name)} for name in names}


def finished(
    root: Path, grid: dict[str, Any], *, validations: int = 2, languages: dict[str, float] | None = None, **changes: Any
) -> Path:
    """The folder of a study that seems to have been run: losses of a law, three seeds apart by 0.002 nats."""
    (root / "out").mkdir()
    run = base(root)
    if languages is not None:
        tree = yaml.safe_load(run.read_text())
        tree["data"]["stages"][0]["languages"] = languages
        run.write_text(yaml.safe_dump(tree))
    path = written(root / "out", study_tree(run, seeds=[1, 2, 3], grid=grid, spread=0.001, **changes))
    study = read_study(path)
    arms = {arm.name: arm for arm in arms_of(study, path)}
    for job in jobs_of(study, list(arms.values())):
        folder = root / "out" / ARMS / job.folder
        folder.mkdir(parents=True)
        measured = Measured(arm=job.arm, seed=job.seed, curve=curve(study, arms[job.arm], job.seed, validations),
                            seconds=1.0)  # fmt: skip
        (folder / "result.json").write_text(json.dumps(asdict(measured)))
    return root / "out"


def curve(study: Study, arm: Arm, seed: int, validations: int) -> tuple[Point, ...]:
    points = []
    for number in range(validations + 1):
        tokens = arm.tokens * number // validations
        nll = {
            name: loss(size_of(study, arm), max(tokens, 1), share_of(study, arm, name.split("/")[0])) for name in SETS
        }
        points.append(
            Point(consumed_tokens=tokens, read={}, nll={name: x + 0.002 * (seed - 2) for name, x in nll.items()})
        )
    return tuple(points)


def loss(size: float, tokens: float, share: float) -> float:
    return 2.0 + 0.3 / (size / 1e5) ** 0.4 + 0.2 * share**0.5 / (tokens / 1e3) ** 0.3 + 0.1 / (share + 0.05) ** 0.5


def test_the_largest_model_is_left_out_and_lies_in_the_intervals(tmp_path: Path) -> None:
    folder = finished(tmp_path, {"model": sizes(tmp_path, *LAYERS), "synthetic_share": [0.0, 0.2, 0.4]})
    found = law_of(folder, resamples=20)
    study = read_study(folder / "study.yaml")
    (largest,) = {
        size_of(study, arm) for arm in arms_of(study, folder / "study.yaml") if arm.levels["model"] == "large"
    }
    assert found.left_out == f"size {largest:,.0f}"
    assert len(found.checks) == len(SETS) * 3 * 2  # shares and validations of the largest model
    assert np.mean([check.is_inside for check in found.checks]) >= 0.75  # of 12 that hang together; 0.9 is meant
    assert all(check.high - check.low < 0.5 for check in found.checks)
    for check in found.checks:
        assert check.measured == pytest.approx(loss(largest, check.tokens, check.share), abs=1e-9)
    for name in SETS:  # the picture joins what is of one validation, and no others
        curves = curves_of(found, name)
        assert {tokens: len(checks) for tokens, checks in curves.items()} == {512: 3, 1024: 3}
        assert all([c.share for c in checks] == sorted({c.share for c in checks}) for checks in curves.values())
    lines = [line for line in report(found).splitlines() if line.startswith(f"| {SETS[0]} |")]
    assert len({tuple(line.split("|")[2:4]) for line in lines}) == len(lines) == 6
    for file in (folder / ARMS).glob("*large*/result.json"):
        content = json.loads(file.read_text())
        for point in content["curve"]:
            point["nll"] = {name: value + 1.0 for name, value in point["nll"].items()}
        file.write_text(json.dumps(content))
    odd = law_of(folder, resamples=20)  # a large model that follows no law of the smaller ones, which it is told by
    assert [check.predicted for check in odd.checks] == [check.predicted for check in found.checks]
    assert not any(check.is_inside for check in odd.checks)


@pytest.mark.parametrize(
    ("of_size", "grid", "message"),
    [
        ([], {"optimizer.lr": [1e-3, 2e-3], "synthetic_share": [0.0, 0.4]}, "differ in something else"),
        (["small", "middle"], {"synthetic_share": [0.0, 0.4]}, "its arms read 1,024, 2,048 tokens"),
        (["small", "middle"], {}, "needs the factor synthetic_share"),
        ([], {"synthetic_share": [0.0, 0.4]}, "a law needs three validations"),
    ],
)
def test_what_a_law_cannot_be_fitted_to_is_refused(
    tmp_path: Path, of_size: list[str], grid: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = sizes(tmp_path, *of_size)
    if "tokens" in message:
        levels["middle"]["data.stages.0.tokens"] = 2048
    folder = finished(tmp_path, grid | ({"model": levels} if levels else {}))
    assert main(["surrogate", "law", str(folder)]) == 2
    assert message in capsys.readouterr().err


def test_a_held_out_set_of_a_language_that_is_not_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All arms would be one cell of it, and any share as good as another."""
    grid = {"synthetic_share": [0.0, 0.2, 0.4]}
    folder = finished(tmp_path, grid, validations=4, languages={"en": 0.8, "synthetic": 0.2})
    assert main(["surrogate", "law", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "mixing law of zh/web/law@holdout needs a share of zh that differs" in said
    assert "outcome.groups" in said
    study = folder / "study.yaml"
    tree = yaml.safe_load(study.read_text())
    del tree["outcome"]["groups"]["zh"]
    study.write_text(yaml.safe_dump(tree))
    assert law_of(folder, resamples=2).forecasts[0].tokens == 1024
