"""The paper's table, and how far its own differences can be told from noise. paper_table.yaml holds the figures."""

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass as checked

from data_mixers.errors import ConfigError
from tools.data.yaml_file import STRICT, read_yaml

FILE = Path(__file__).with_name("paper_table.yaml")


@checked(frozen=True, kw_only=True, config=STRICT)
class PublishedBenchmark:
    num_items: int
    known_by: Literal["implied", "public"]
    average: Literal["micro", "macro"] | None = None
    of: list[str] = field(default_factory=list)


@checked(frozen=True, kw_only=True, config=STRICT)
class PaperTable:
    """Scores in per cent, as printed."""

    source: str
    base: str
    adapted: str
    benchmarks: dict[str, PublishedBenchmark]
    models: dict[str, dict[str, float]]


def paper_table() -> PaperTable:
    """Errors: ConfigError if a model lacks a benchmark or has one more."""
    table = read_yaml(FILE, PaperTable)
    for model, scores in table.models.items():
        if scores.keys() != table.benchmarks.keys():
            raise ConfigError(f"{FILE}: {model} has not the table's benchmarks")
    return table
