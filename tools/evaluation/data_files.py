"""Where a benchmark's data lies: the user's folder, a package that holds it, or the hub; read into rows, no script run.

find(Wanted) -> Found | DataError naming what is expected where
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass as checked

from data_mixers.errors import DataError
from tools.data.benchmark_items import read_rows
from tools.data.package_files import fetch_package, locked_requirements
from tools.data.yaml_file import STRICT, read_yaml
from tools.evaluation.options import EvalOptions

if TYPE_CHECKING:
    from datasets import DatasetDict

CATALOGUE = Path(__file__).with_name("data_sets.yaml")
PACKAGES = Path(__file__).with_name("packages.lock")
ENDINGS = ("parquet", "jsonl", "json", "csv", "jsonl.gz", "json.gz", "jsonl.zst")
Where = Literal["folder", "package", "hub"]


@checked(frozen=True, kw_only=True, config=STRICT)
class Package:
    """A package that holds a set, or part of it."""

    name: str
    files: dict[str, str]
    """By split, below the folder where packages are unpacked."""
    licence: str


@checked(frozen=True, kw_only=True, config=STRICT)
class Entry:
    """A set whose files are named in its own way; see data_sets.yaml."""

    splits: dict[str, list[str]] = field(default_factory=dict)
    package: Package | None = None


@dataclass(frozen=True)
class Wanted:
    """What a task reads."""

    data_set: str
    """owner/name, as on the hub."""
    config: str | None
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """Where it is. files: by split; none on the hub, which the harness's own loader asks."""

    where: Where
    files: dict[str, tuple[Path, ...]]

    def identity(self) -> list[tuple[str, str]]:
        """Names and hashes, for a fingerprint: an answer that was mended leaves a file's size as it is."""
        return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for f in self.files.values() for path in f]


def catalogue() -> dict[str, Entry]:
    """Errors: ConfigError with a line for every fault."""
    entries: dict[str, Entry] = read_yaml(CATALOGUE, dict[str, Entry])
    return entries


def find(wanted: Wanted, options: EvalOptions, entries: Mapping[str, Entry]) -> Found:
    """The first place that has every split: folder, package, hub.

    Fetches a package that is not there yet, unless offline.
    Errors: DataError with a line for every file that is expected, and where it is published.
    """
    entry = entries.get(wanted.data_set, Entry())
    missing: list[str] = []
    if options.data is not None:
        files = {split: _in_folder(options.data, wanted, split, entry) for split in wanted.splits}
        missing = [split for split, found in files.items() if not found]
        if not missing:
            return Found("folder", files)
    if entry.package is not None and set(wanted.splits) <= entry.package.files.keys() and options.data is not None:
        packaged = _in_package(entry.package, wanted.splits, options)
        if packaged is not None:
            return Found("package", packaged)
    if entry.splits and not options.is_offline:
        named = {split: _from_hub(wanted, entry.splits.get(split, [])) for split in wanted.splits}
        if all(named.values()):
            return Found("hub", named)
    if not options.is_offline and not _only_packaged(wanted, entry):
        return Found("hub", {})
    raise DataError("\n  ".join(_expected(wanted, options, entry, missing or list(wanted.splits))))


def load(found: Found) -> "DatasetDict":
    """The rows of every split. Errors: DataError if a file is damaged, or its rows have columns of several types."""
    from datasets import Dataset, DatasetDict
    from pyarrow import ArrowException

    made = {}
    for split, files in found.files.items():
        rows = [row for file in files for row in read_rows(file) if isinstance(row, dict)]
        if not rows:
            raise DataError(f"{files[0]} holds no items")
        columns = dict.fromkeys(key for row in rows for key in row)
        try:
            made[split] = Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
        except (ArrowException, TypeError) as error:
            raise DataError(f"{files[0]}: its items are not of one form ({error})") from error
    return DatasetDict(made)


def patterns(config: str | None, split: str) -> list[str]:
    """Globs below a set's folder, the usual ones of the hub first."""
    stems = [f"{split}-*", split, f"*_{split}", f"{split}_*"]
    if config is None:
        return [f"{folder}{stem}.{ending}" for folder in ("", "data/", "*/") for stem in stems for ending in ENDINGS]
    named = [f"{config}/{stem}.{ending}" for stem in stems for ending in ENDINGS]
    # The layout of C-Eval's and CMMLU's archives: val/law_val.csv, dev/anatomy.csv.
    return [*named, *(f"{split}/{stem}.{ending}" for stem in (f"{config}_{split}", config) for ending in ENDINGS)]


def _in_folder(root: Path, wanted: Wanted, split: str, entry: Entry) -> tuple[Path, ...]:
    folder = root / wanted.data_set
    if not folder.is_dir():
        return ()
    for pattern in [*entry.splits.get(split, ()), *patterns(wanted.config, split)]:
        if found := tuple(sorted(path for path in folder.glob(pattern) if path.is_file())):
            return found
    return ()


def _in_package(package: Package, splits: Sequence[str], options: EvalOptions) -> dict[str, tuple[Path, ...]] | None:
    """Its files, fetched if need be; None if they are not there and may not be fetched."""
    assert options.data is not None
    target = options.data / "packages"
    files = {split: target / "python" / package.files[split] for split in splits}
    if not all(path.is_file() for path in files.values()):
        if options.is_offline:
            return None
        (requirement,) = [line for line in locked_requirements(PACKAGES) if line.startswith(f"{package.name}==")]
        fetch_package(requirement, target)
    if absent := [path for path in files.values() if not path.is_file()]:
        raise DataError(f"{absent[0]}: the package {package.name} holds no such file; remove {target} and run again")
    return {split: (path,) for split, path in files.items()}


def _only_packaged(wanted: Wanted, entry: Entry) -> bool:
    """A set that is published in a package alone, so the hub is not asked for it."""
    return entry.package is not None and wanted.data_set.startswith(f"{entry.package.name}/")


def _from_hub(wanted: Wanted, names: Sequence[str]) -> tuple[Path, ...]:
    """Files by name, for sets that the hub's own loader would mix up; none where the hub holds none of these names."""
    from fnmatch import fnmatchcase

    from huggingface_hub import hf_hub_download, list_repo_files

    try:
        held = list_repo_files(wanted.data_set, repo_type="dataset")
        chosen = sorted(path for path in held if any(fnmatchcase(path, name) for name in names))
        return tuple(Path(hf_hub_download(wanted.data_set, path, repo_type="dataset")) for path in chosen)
    except Exception as error:  # of the hub's client, of whatever HTTP library it stands on
        raise DataError(f"{wanted.data_set} cannot be had from the hub ({error}); give its files by --data") from error


def _expected(wanted: Wanted, options: EvalOptions, entry: Entry, splits: Sequence[str]) -> list[str]:
    config = f" ({wanted.config})" if wanted.config else ""
    if options.data is None:
        return [f"{wanted.data_set}{config}: give the folder that holds it, or its package, by --data DIR"]
    root = options.data / wanted.data_set
    lines = [f"{wanted.data_set}{config}:"]
    for split in splits:
        names = [*entry.splits.get(split, ()), *patterns(wanted.config, split)]
        lines.append(f"expected {root / names[0]} (or .jsonl, .json, .csv; {len(names)} names are tried)")
    if entry.package is not None and options.is_offline:
        lines.append(f"or offline the package {entry.package.name} below {options.data / 'packages'}")
    return lines
