"""A suite: which benchmarks, at how many shots, scored and averaged how. Read from suites/*.yaml or a user's file."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from data_mixers.errors import ConfigError
from tools.data.yaml_file import STRICT, read_yaml

SUITES = Path(__file__).with_name("suites")


@checked(frozen=True, kw_only=True, config=STRICT)
class Benchmark:
    """One line of a results table."""

    name: str
    group: str
    """Heading in tables: english, chinese, mathematics, code, science, ..."""
    language: Literal["en", "zh", "code"]
    tasks: Annotated[list[str], Field(min_length=1)]
    """Names or globs of task files."""
    harness: str | None = None
    """Folder below the harness's own tasks that holds them; None: they are ours."""
    shots: Annotated[int, Field(ge=0)]
    metric: str
    """The metric of an item that is its score."""
    filter: str = "none"
    """The harness's answer filter whose result counts."""
    average: Literal["micro", "macro"] = "micro"
    """micro: over all items; macro: over the tasks' scores."""
    chance: Annotated[float, Field(ge=0.0, le=1.0)]
    """Score of guessing. Unit: share."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first items of each task: for suites that must end in minutes."""
    runs_code: bool = False
    """Executes what the model writes."""
    needs: list[str] = field(default_factory=list)
    """Modules beside the harness's own dependencies; nltk:<folder>/<name> is data of NLTK."""
    published: str | None = None
    """Its name in paper_table.yaml."""


@checked(frozen=True, kw_only=True, config=STRICT)
class Sum:
    """A line that stands for several benchmarks."""

    name: str
    of: Annotated[list[str], Field(min_length=1)]
    average: Literal["micro", "macro"]
    published: str | None = None


@checked(frozen=True, kw_only=True, config=STRICT)
class Suite:
    """Benchmarks in the order of the table."""

    name: str
    what: str
    benchmarks: list[Benchmark]
    sums: list[Sum] = field(default_factory=list)


def suite_path(name: str) -> Path:
    """The file of a shipped suite, or of a user's. Errors: ConfigError if there is none."""
    shipped = SUITES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    given = Path(name)
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    known = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
    raise ConfigError(f"--suite {name}: no such suite; there are {known}, or give a YAML file")


def read_suite(path: Path) -> Suite:
    """Errors: ConfigError with a line for every fault."""
    suite = read_yaml(path, Suite)
    names = [benchmark.name for benchmark in suite.benchmarks]
    for listed in ([*names, *(total.name for total in suite.sums)], *(total.of for total in suite.sums)):
        if twice := {name for name in listed if listed.count(name) > 1}:
            raise ConfigError(f"{path}: {min(twice)} stands there twice")
    if not names:
        raise ConfigError(f"{path}: benchmarks is empty")
    for total in suite.sums:
        if unknown := [name for name in total.of if name not in names]:
            raise ConfigError(f"{path}: {total.name} is of {unknown[0]}, which is no benchmark of the file")
    return suite
