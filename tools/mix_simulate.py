"""`syne mix simulate`: every controller on the same simulated learning curves, beside equal shares.

A world is drawn from a seed: per topic a power law of held-out loss in effective tokens, a transfer matrix (what a
token of one topic is worth to another) and a classifier that mislabels some pages, by chance or as a measured one
does. These are no measurements of any
model: they show how a controller behaves (does it chase noise, does it settle), not what it will gain. With curves that
`syne surrogate curves` has fitted from a study, each world is one resample of the study's runs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from data_mixers.control_rules import CONTROLLERS
from data_mixers.control_settings import ControllerSettings
from data_mixers.controllers import Observation, TopicLosses, decide
from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version

Array = NDArray[np.float64]
CURVES_VERSION = 1
TOPICS = 11  # of one language, as in the recipe, where no measured classifier says otherwise
DOCUMENTS = 100  # held-out documents of a topic
DOCUMENT_TOKENS = 500
DOCUMENT_SPREAD = 0.4  # nats: how much documents of a topic differ; held-out scores of small models show 0.3 to 0.5
STEP_NOISE = 0.01  # nats per document: what one document's loss moves by chance between two checkpoints
BASELINE = "stratified"
RESAMPLES = 2000


@dataclass(frozen=True)
class World:
    """Curves of some topics: loss_i(n) = floor_i + reducible_i * (1 + n_i / scale_i) ** -exponent_i, in nats."""

    floor: Array
    reducible: Array
    exponent: Array
    scale: Array
    """Effective tokens."""
    worth: Array
    """[topics, topics]: effective tokens of topic i per labelled token of topic j: transfer and mislabelling."""
    planned: Array
    seen: Array
    """[topics, topics]: share of documents of topic i among the held-out ones labelled j; the unit matrix: no
    errors."""

    def loss(self, tokens: Array) -> Array:
        """Held-out loss of each topic after these labelled tokens of each topic."""
        return self.floor + self.reducible * (1 + self.worth @ tokens / self.scale) ** -self.exponent


@dataclass(frozen=True)
class Trace:
    """One controller in one world."""

    ratios: Array
    """[decisions + 1, topics]."""
    final_loss: float
    """Mean over topics, each counted alike, nats per token."""
    plan_loss: float
    """Mean over topics by their planned shares."""
    moved: float
    """Mean half of sum |change of share| per decision."""


def uniform_labels(label_noise: float, topics: int = TOPICS) -> Array:
    """[true topic, label]: a share of the pages has a wrong label, any other topic alike."""
    wrong = label_noise if topics > 1 else 0.0
    labels = np.full((topics, topics), wrong / max(1, topics - 1))
    np.fill_diagonal(labels, 1.0 - wrong)
    return labels


def labels_of_confusion(confusion: Array) -> Array:
    """[true topic, label]: what the pages of each label are, if all topics have as many pages. Columns sum to 1.

    confusion: share of each true topic's documents that get each label; rows sum to 1. A label that is never given
    says nothing: all topics alike.
    """
    given = confusion.sum(axis=0)
    return np.where(given > 0, confusion / np.where(given > 0, given, 1.0), 1.0 / len(confusion))


def draw_world(seed: int, *, transfer: float, tokens: float, labels: Array, holds_out_by_label: bool = False) -> World:
    """transfer: worth of a token to the average other topic; labels: [true topic, label], columns sum to 1.

    holds_out_by_label: the held-out sets bear the classifier's labels too, so that a controller sees mixed losses.
    """
    random = np.random.default_rng(seed)
    topics = len(labels)
    similar = random.uniform(0.0, 2.0 * transfer, (topics, topics))
    np.fill_diagonal(similar, 1.0)
    planned = random.dirichlet(np.full(topics, 3.0))
    return World(
        floor=random.uniform(1.6, 2.4, topics),
        reducible=random.uniform(0.2, 1.0, topics),
        exponent=random.uniform(0.2, 0.6, topics),
        scale=np.exp(random.uniform(math.log(0.01), math.log(1.0), topics)) * tokens / topics,
        worth=similar @ labels,
        planned=planned,
        seen=labels if holds_out_by_label else np.eye(topics),
    )


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Learning curves fitted from a study, one world a resample of its runs."""

    topics: tuple[str, ...]
    floor: Array
    """[worlds, topics], as `reducible`, `exponent`, `scale` and `planned`: see World."""
    reducible: Array
    exponent: Array
    scale: Array
    transfer: Array
    """[worlds, topics, topics]: effective tokens of a topic per token of another."""
    planned: Array
    tokens: float
    """Read at most in the study's runs: beyond, the curves are an extrapolation."""

    def to_json(self) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Curves":
        """Errors: ValueError, KeyError or TypeError for anything that is no set of curves."""
        topics, worlds = tuple(map(str, content["topics"])), len(content["floor"])
        arrays = {}
        for name in ("floor", "reducible", "exponent", "scale", "transfer", "planned"):
            arrays[name] = np.array(content[name], dtype=np.float64)
            shape = (worlds, len(topics), len(topics))[: 3 if name == "transfer" else 2]
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} must be finite numbers of shape {shape}")
        return cls(topics=topics, tokens=float(content["tokens"]), **arrays)

    def world(self, number: int, labels: Array) -> World:
        """labels: [true topic, label], columns sum to 1."""
        index = number % len(self.floor)
        curve = self.floor[index], self.reducible[index], self.exponent[index], self.scale[index]
        return World(*curve, self.transfer[index] @ labels, self.planned[index], np.eye(len(self.topics)))


def read_curves(file: Path) -> Curves:
    """What `syne surrogate curves` wrote. Errors: ConfigError naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        cure = "write it again with `syne surrogate curves`"
        check_version(content, understood=CURVES_VERSION, file=file, cure=cure, fault=ConfigError, absent=1)
        return Curves.from_json(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--curves {file}: no file of `syne surrogate curves` ({error})") from error


def follow(world: World, settings: ControllerSettings, *, tokens: float, interval: float, seed: int) -> Trace:
    """Let a controller steer one language's web pages for `tokens`, deciding every `interval`."""
    random = np.random.default_rng((seed, 1))  # the same documents and noise for every controller
    topics = len(world.planned)
    names = [f"topic{index:02d}" for index in range(topics)]
    offsets = random.normal(0.0, DOCUMENT_SPREAD, (topics, DOCUMENTS))
    ratios = dict(zip(names, (world.planned / world.planned.sum()).tolist(), strict=True))
    read = np.zeros(topics)
    state, history = None, [np.array(list(ratios.values()))]
    for number in range(round(tokens / interval)):
        noise = random.normal(0.0, STEP_NOISE, (topics, DOCUMENTS))
        per_document = ((world.loss(read) @ world.seen)[:, None] + offsets + noise) * DOCUMENT_TOKENS
        observation = Observation(
            consumed_tokens=round(number * interval),
            losses={
                name: TopicLosses(nll_sums=tuple(row), tokens=(DOCUMENT_TOKENS,) * DOCUMENTS)
                for name, row in zip(names, per_document.tolist(), strict=True)
            },
            tokens_by_topic={name: round(count) for name, count in zip(names, read.tolist(), strict=True)},
        )
        decision = decide(settings, ratios, state, observation)
        ratios, state = decision.ratios, decision.state
        history.append(np.array([ratios[name] for name in names]))
        read = read + interval * history[-1]
    shares = np.array(history)
    return Trace(
        ratios=shares,
        final_loss=float(world.loss(read).mean()),
        plan_loss=float(world.loss(read) @ world.planned),
        moved=float(0.5 * np.abs(np.diff(shares, axis=0)).sum(axis=1).mean()),
    )


def simulate(
    *,
    worlds: int,
    tokens: float,
    interval: float,
    transfer: float,
    labels: Array,
    holds_out_by_label: bool = False,
    curves: Curves | None = None,
) -> dict[str, list[Trace]]:
    """Controller -> its path in each world; all controllers meet the same worlds and the same noise.

    curves: worlds of a study in place of drawn ones.

    Errors: ConfigError for fewer than two decisions.
    """
    if not (math.isfinite(tokens) and interval <= tokens / 2):
        raise ConfigError(f"--tokens {tokens:g} must hold two or more intervals of --interval {interval:g}")
    found: dict[str, list[Trace]] = {name: [] for name in CONTROLLERS}
    for seed in track(range(worlds), "simulating", console=Console(stderr=True), transient=True):
        if curves is not None:
            world = curves.world(seed, labels)
        else:
            world = draw_world(
                seed, transfer=transfer, tokens=tokens, labels=labels, holds_out_by_label=holds_out_by_label
            )
        for name, traces in found.items():
            traces.append(follow(world, ControllerSettings(name=name), tokens=tokens, interval=interval, seed=seed))
    return found


def difference(losses: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): loss less the baseline's in the same world; 95 % bootstrap interval over worlds."""
    values = np.array(losses) - np.array(baseline)
    random = np.random.default_rng(0)
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def report(found: dict[str, list[Trace]]) -> str:
    """A table in Markdown: every controller against equal shares, with intervals."""
    lines = [
        "Simulated curves, not measurements of a model. Loss after the last token, in nats: the mean over topics,",
        f"with each counted alike, and weighted by the plan; both less {BASELINE} in the same world [95 %].",
        "",
        "| controller | each alike | by the plan | moved per decision |",
        "|---|---:|---:|---:|",
    ]
    for name, traces in found.items():
        cells = []
        for field in ("final_loss", "plan_loss"):
            losses, baseline = ([getattr(t, field) for t in of] for of in (traces, found[BASELINE]))
            mean = sum(losses) / len(losses)
            change, low, high = difference(losses, baseline)
            cells.append(f"{mean:.4f}" + ("" if name == BASELINE else f" ({change:+.4f} [{low:+.4f}, {high:+.4f}])"))
        moved = sum(trace.moved for trace in traces) / len(traces)
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {moved:.4f} |")
    return "\n".join(lines)


def plot(found: dict[str, list[Trace]], file: Path, *, interval: float) -> None:
    """Shares of the first world's topics over tokens, a panel per controller."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7))
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    for axis, (name, paths) in zip(axes.flat, found.items(), strict=False):
        shares = paths[0].ratios
        axis.plot(np.arange(len(shares)) * interval / 1e9, shares)
        axis.set_title(f"{name}: loss {paths[0].final_loss:.4f}")
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    figure.supxlabel("tokens, billions")
    figure.supylabel("share of topic (simulated, first world)")
    figure.tight_layout()
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:  # no folder, no right, or an ending that is no kind of picture
        raise ConfigError(f"--plot {file}: cannot be written ({error}); name a .png in a folder that exists") from error
