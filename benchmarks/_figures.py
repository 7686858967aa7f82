"""What a benchmark found: printed as it is found, and with --record kept in a file from which the page is made."""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks._pairs import Ratio
from data_mixers.atomic import write_atomic
from tools.doctor import installed_version

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "megatron-core", "transformers", "numpy", "deepspeed")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number; a ratio carries its interval, a bound says on which side of it is good."""

    what: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    num_pairs: int | None = None
    target: float | None = None
    at_most: bool = False
    """The target is a limit from above."""
    note: str = ""

    @classmethod
    def of(cls, what: str, ratio: Ratio, *, target: float | None = None, note: str = "") -> "Figure":
        """A ratio of pairs."""
        return cls(
            what=what, value=ratio.median, unit="x", low=ratio.low, high=ratio.high, num_pairs=ratio.num_pairs,
            target=target, note=note,
        )  # fmt: skip

    @property
    def verdict(self) -> Literal["", "met", "missed", "not resolved"]:
        """met: the whole interval is on the good side of the target; missed: all of it is on the other."""
        if self.target is None:
            return ""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if self.at_most:
            return "met" if high <= self.target else "missed" if low > self.target else "not resolved"
        return "met" if low >= self.target else "missed" if high < self.target else "not resolved"

    @property
    def measured(self) -> str:
        """0.981x [0.953, 1.012] of 16 pairs; 55 ms."""
        if self.low is None or self.high is None:
            return f"{_short(self.value)} {self.unit}".rstrip()
        # Enough digits to see on which side of its target an end of the interval lies.
        value, low, high = (f"{number:.{3 if number < 10 else 2}f}" for number in (self.value, self.low, self.high))
        return f"{value}{self.unit} [{low}, {high}] of {self.num_pairs} pairs"

    @property
    def bound(self) -> str:
        """≥ 0.98x; ≤ 100 ms."""
        if self.target is None:
            return ""
        space = "" if self.unit == "x" else " "
        return f"{'≤' if self.at_most else '≥'} {_short(self.target)}{space}{self.unit}".rstrip()


def _short(value: float) -> str:
    """Three digits, and whole numbers whole."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"


def parser_of(page: str | None, **numbers: float) -> argparse.ArgumentParser:
    """Of the benchmark with this page: an option for each number, of its default's type, and --record."""
    parser = argparse.ArgumentParser(description=page, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results/, for the page")
    return parser


@dataclass
class Record:
    """The figures of one call. With `keep`, its file holds those so far after each, and says `whole` at last.

    A context: all figures are there when it is left without an error.
    """

    name: str
    """The script's, and what part of it: results/NAME.json."""
    keep: bool
    figures: list[Figure] = field(default_factory=list)
    _started: float = field(default_factory=time.time)
    _load: float = field(default_factory=lambda: os.getloadavg()[0])

    def add(self, figure: Figure) -> None:
        """Prints it, and writes the file anew."""
        said = [figure.measured, *([f"target {figure.bound}: {figure.verdict}"] if figure.bound else [])]
        print(f"{figure.what}: {', '.join(said)}{f' ({figure.note})' if figure.note else ''}", flush=True)
        self.figures.append(figure)
        self._write(whole=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._write(whole=True)

    def _write(self, *, whole: bool) -> None:
        if not self.keep:
            return
        RESULTS.mkdir(exist_ok=True)
        words = [word for word in sys.argv[1:] if word != "--record"]
        found: dict[str, Any] = {
            "command": " ".join(["python -m", f"benchmarks.{self.name.partition('-')[0]}", *_without_paths(words)]),
            "started": time.strftime("%Y-%m-%d %H:%M", time.gmtime(self._started)),
            "seconds": round(time.time() - self._started),
            "load_before": round(self._load, 2),
            "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
            "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
            "whole": whole,
            "figures": [asdict(figure) | {"verdict": figure.verdict} for figure in self.figures],
        }
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_atomic(RESULTS / f"{self.name}.json", text.encode())


def _without_paths(words: list[str]) -> list[str]:
    """Where things lay on the machine says nothing to a reader: their last parts do."""
    return [Path(word).name if word.startswith(("/", "~", "..")) else word for word in words]


def _cpu() -> str:
    """Its model, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
