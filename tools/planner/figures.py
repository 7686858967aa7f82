"""Cards and the efficiency table: data files with sources, and a user's measured file merged over the second."""

import difflib
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from data_mixers.errors import ConfigError
from data_mixers.file_version import check_version
from megatron_synE.config.load import read_yaml
from megatron_synE.model.presets import ARCHITECTURES

Kind = Literal["measured", "published", "computed", "interpolated", "extrapolated", "assumed"]
KINDS: tuple[Kind, ...] = ("measured", "published", "computed", "interpolated", "extrapolated", "assumed")
"""From firm to loose: a product is as loose as its loosest factor."""
_FOLDER = Path(__file__).parent
TABLE_VERSION = 1  # of a file for --efficiency


@dataclass(frozen=True, kw_only=True)
class Card:
    """One kind of GPU and its links; sources in cards.yaml."""

    key: str
    name: str
    gpus_per_node: int
    memory_bytes: int
    bf16_tflops: float
    memory_bytes_per_second: float
    nvlink_bytes_per_second: float
    """One direction."""
    network_bytes_per_second: float
    """One direction, for each GPU."""


@dataclass(frozen=True)
class Factor:
    """A number, how sure it is, and where it is from."""

    value: float
    kind: Kind
    source: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of 20 steps on a user's cluster."""

    card: str
    num_parameters: int
    seq_length: int
    gpus: int
    layout: str
    """As the planner prints it."""
    tokens_per_second_per_gpu: float
    global_batch_size: int | None = None
    """None, in a file of before it was written: the plan's own."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """efficiency.yaml."""

    reference: dict[str, Any]
    scale: tuple[dict[str, Any], ...]
    tensor_parallel: dict[int, Factor]
    card: dict[str, Factor]
    model: dict[str, Factor]
    measured: tuple[Measured, ...]

    def scale_at(self, gpus: int) -> Factor:
        """tokens/s/GPU relative to the reference's number of GPUs, at constant work per GPU."""
        first = self.scale[0]
        for point in self.scale:
            if gpus == point["gpus"]:
                return Factor(point["factor"], point["kind"], "a point of the table")
        if gpus < first["gpus"]:
            return Factor(first["factor"], "assumed", f"fewer GPUs than the first point, {first['gpus']}")
        above = next((index for index, point in enumerate(self.scale) if gpus < point["gpus"]), None)
        low, high = self.scale[-2:] if above is None else self.scale[above - 1 : above + 1]
        share = math.log2(gpus / low["gpus"]) / math.log2(high["gpus"] / low["gpus"])
        value = low["factor"] + (high["factor"] - low["factor"]) * share
        return Factor(value, "extrapolated" if above is None else "interpolated", "linear in log2(GPUs)")

    def tensor_parallel_at(self, size: int) -> Factor:
        """tokens/s/GPU relative to none; a size that is not in the table lies on the line through its ends."""
        if size in self.tensor_parallel:
            return self.tensor_parallel[size]
        low, high = min(self.tensor_parallel), max(self.tensor_parallel)
        first, last = self.tensor_parallel[low].value, self.tensor_parallel[high].value
        share = math.log2(size / low) / math.log2(high / low)
        kind: Kind = "interpolated" if low < size < high else "extrapolated"
        return Factor(max(0.01, first + (last - first) * share), kind, f"linear in log2(TP) from {low} to {high}")


@cache
def cards() -> dict[str, Card]:
    return {key: Card(key=key, **entry) for key, entry in read_yaml(_FOLDER / "cards.yaml").items()}


def card_of(name: str) -> Card:
    """Errors: ConfigError with the nearest name."""
    known = cards()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"--card {name!r} is unknown; {hint}cards known here: {', '.join(known)}")


def read_efficiency(user_file: Path | None = None) -> Efficiency:
    """The shipped table, with the user's file merged over it. Errors: ConfigError naming file and key."""
    tree = read_yaml(_FOLDER / "efficiency.yaml")
    if user_file is not None:
        user = read_yaml(user_file, what="efficiency table")
        cure = "measure again with `syne plan --measure`, or write it as docs/planner.md says"
        check_version(user, understood=TABLE_VERSION, file=user_file, cure=cure, fault=ConfigError, absent=1)
        user.pop("schema_version", None)
        if unknown := sorted(user.keys() - tree.keys()):
            near = difflib.get_close_matches(unknown[0], tree, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(tree)}"
            raise ConfigError(f"{user_file}: unknown key {unknown[0]!r}{hint}")
        for key, value in user.items():
            tree[key] = tree[key] | value if isinstance(tree[key], dict) and isinstance(value, dict) else value
    where = user_file or _FOLDER / "efficiency.yaml"
    try:
        return Efficiency(
            reference=_reference(tree["reference"]),
            scale=_points(tree["scale"]),
            tensor_parallel={int(_above_0(n)): _factor(entry) for n, entry in tree["tensor_parallel"].items()},
            card={name: _factor(entry) for name, entry in tree["card"].items()},
            model={name: _factor(entry) for name, entry in tree["model"].items()},
            measured=tuple(_measured(entry) for entry in tree["measured"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: not an efficiency table ({error}); see tools/planner/efficiency.yaml") from error


def loosest(kinds: list[Kind]) -> Kind:
    """The kind of a product of factors of these kinds."""
    return max(kinds, key=KINDS.index)


def _above_0(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no number above 0")
    return value


def _reference(entry: dict[str, Any]) -> dict[str, Any]:
    _check_kind(entry["kind"])
    for name in ("seq_length", "gpus", "tokens_per_second_per_gpu"):
        _above_0(entry[name])
    for name, known in (("card", cards()), ("model", ARCHITECTURES)):
        if entry[name] not in known:
            raise ValueError(f"reference.{name} {entry[name]!r} is none of {', '.join(known)}")
    return entry


def _measured(entry: dict[str, Any]) -> Measured:
    found = Measured(**entry)
    batch = 1 if found.global_batch_size is None else found.global_batch_size
    for value in (found.num_parameters, found.seq_length, batch, found.gpus, found.tokens_per_second_per_gpu):
        _above_0(value)
    if not isinstance(found.layout, str):
        raise ValueError(f"layout {found.layout!r} is no text")
    return found


def _points(entries: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """By rising number of GPUs."""
    if len({_above_0(entry["gpus"]) for entry in entries}) < 2:
        raise ValueError("scale needs points for two numbers of GPUs")
    for entry in entries:
        _factor(entry)
    return tuple(sorted(entries, key=lambda point: float(point["gpus"])))


def _factor(entry: dict[str, Any]) -> Factor:
    _check_kind(entry["kind"])
    return Factor(_above_0(entry["factor"]), entry["kind"], str(entry["source"]))


def _check_kind(kind: Any) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
