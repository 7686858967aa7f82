"""Learning curves and transfer fitted from runs made from known ones, and the simulation that reads them."""

from pathlib import Path

import numpy as np
import pytest

from tools.cli import main
from tools.mix_simulate import Curves, read_curves, simulate
from tools.surrogate.curves import Runs, fit_topic, gathered, write_curves
from tools.surrogate.outcome import Measured, Point

WORTH = np.array([[1.0, 0.3, 0.0], [0.1, 1.0, 0.05], [0.0, 0.5, 1.0]])
FLOOR, REDUCIBLE = np.array([2.0, 2.2, 1.8]), np.array([1.0, 0.8, 1.2])
EXPONENT, SCALE = np.array([0.5, 0.4, 0.6]), np.array([2e4, 3e4, 1e4])


def true_loss(read: np.ndarray) -> np.ndarray:
    return FLOOR + REDUCIBLE * (1 + read @ WORTH.T / SCALE) ** -EXPONENT


def made(noise: float) -> Runs:
    """Runs with each topic at half of all tokens, and one even, four validations each."""
    shares = [np.full(3, 1 / 3), *(np.where(np.arange(3) == topic, 0.6, 0.2) for topic in range(3))]
    shares += [np.where(np.arange(3) == topic, 0.1, 0.45) for topic in range(3)]
    read = np.array([share * tokens for share in shares for tokens in (2e4, 5e4, 1e5, 2e5)])
    losses = true_loss(read) + noise * np.random.default_rng(0).standard_normal(read.shape)
    return Runs(
        topics=("a", "b", "c"), start=FLOOR + REDUCIBLE, read=read, others=np.zeros(len(read)), losses=losses,
        run=np.repeat(np.arange(len(shares)), 4),
    )  # fmt: skip


def test_worth_and_curve_come_back_from_exact_and_from_noisy_runs() -> None:
    exact = made(0.0)
    for topic in range(3):
        fit = fit_topic(exact, topic, np.ones(len(exact.run)))
        assert fit.worth == pytest.approx(WORTH[topic], abs=0.02)
        assert fit.floor == pytest.approx(FLOOR[topic], abs=0.05)
    noisy = made(0.002)
    for topic in range(3):
        fit = fit_topic(noisy, topic, np.ones(len(noisy.run)))
        assert fit.worth == pytest.approx(WORTH[topic], abs=0.15)
        halfway = np.array([7e4, 2e4, 1e4])
        predicted = fit.floor + fit.reducible * (1 + halfway @ fit.worth / fit.scale) ** -fit.exponent
        assert predicted == pytest.approx(true_loss(halfway)[topic], abs=0.006)


def test_a_topic_that_is_held_out_and_never_read_is_none_of_the_curves() -> None:
    measured = []
    for arm in range(4):
        share = 0.2 * (arm + 1)
        points = [
            Point(
                consumed_tokens=step,
                read={"en/web/a": int(share * step), "en/web/b": step - int(share * step), "en/web/never": 0},
                nll={f"en/web/{topic}@holdout": 3.0 - step / 1e4 for topic in ("a", "b", "never")},
            )
            for step in (0, 1000, 2000)
        ]
        measured.append(Measured(arm=str(arm), seed=1, curve=tuple(points), seconds=1.0))
    runs = gathered(measured, "en/web/")
    assert runs.topics == ("en/web/a", "en/web/b")
    assert np.isfinite(fit_topic(runs, 0, np.ones(len(runs.run))).scale)


def test_the_simulation_follows_the_fitted_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A static run over the file's world ends at the loss that its own formula gives."""
    planned = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    curves = Curves(
        topics=("a", "b", "c"), floor=np.tile(FLOOR, (2, 1)), reducible=np.tile(REDUCIBLE, (2, 1)),
        exponent=np.tile(EXPONENT, (2, 1)), scale=np.tile(SCALE, (2, 1)), transfer=np.tile(WORTH, (2, 1, 1)),
        planned=planned, tokens=2e5,
    )  # fmt: skip
    file = tmp_path / "curves.json"
    write_curves(curves, file)
    found = simulate(
        worlds=2, tokens=2e5, interval=1e5, transfer=0.0, labels=np.eye(3), curves=read_curves(file)
    )["static"]  # fmt: skip
    for world, trace in enumerate(found):
        assert trace.final_loss == pytest.approx(true_loss(planned[world] * 2e5).mean(), rel=1e-9)
    assert main(["mix", "simulate", "--curves", str(file), "--worlds", "2", "--interval", "1e5"]) == 0
    said = capsys.readouterr().out
    assert "curves of a, b, c fitted from runs of 2e+05 tokens" in said and "| stratified |" in said
    assert (
        main(["mix", "simulate", "--curves", str(file), "--worlds", "2", "--tokens", "1e6", "--interval", "5e5"]) == 0
    )
    assert "an extrapolation" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"topics": ["a"], "floor": [[1.0, 2.0]], "tokens": 1}'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "curves.json"
    file.write_text(text, encoding="utf-8")
    assert main(["mix", "simulate", "--curves", str(file)]) == 2
    assert f"--curves {file}: no file of `syne surrogate curves`" in capsys.readouterr().err
