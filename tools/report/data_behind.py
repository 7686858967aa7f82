"""The data folders behind a run: their manifests, and a source file's way back to where it was fetched."""

from collections.abc import Iterator
from pathlib import Path

from data_mixers.errors import DataError
from data_mixers.manifest import DatasetManifest, read_manifest
from megatron_synE.config.examine import manifest_paths
from tools.data.calls import REPORT_NAME
from tools.data.fetch import SOURCES_NAME
from tools.report.run_record import RunRecord, read_json

MOST_STEPS = 8
"""Of a file's way back: clean, decontaminate, label-topics and as many again."""


def manifests_of(run: RunRecord) -> tuple[list[DatasetManifest], list[str]]:
    """(the dataset manifests that can be read, a sentence for each that cannot)."""
    if run.config is None:
        return [], [f"{run.name}: without run_config.yaml nobody knows which data it read"]
    found, faults = [], []
    for path in dict.fromkeys(manifest_paths(run.config)):
        try:
            found.append(read_manifest(path, check_files=False))
        except DataError as error:
            faults.append(f"{run.name}: {error}")
    return found, faults


def way_back(file: Path) -> Iterator[tuple[Path, str]]:
    """(file, where it was fetched or which command made it), then the same of what it was made of.

    A stage with several input files goes on from its first. Files are looked for where they were when they were read.
    """
    seen: set[Path] = set()
    while len(seen) < MOST_STEPS and file not in seen:
        seen.add(file)
        if (fetched := _fetched(file)) is not None:
            yield file, fetched
            return
        made = _made(file)
        if made is None:
            yield file, "no record beside it" if file.exists() else "no longer there"
            return
        what, inputs = made
        yield file, what
        if not inputs:
            return
        file = inputs[0]


def _fetched(file: Path) -> str | None:
    for folder in list(file.parents)[:4]:
        entry = None
        if (folder / SOURCES_NAME).is_file():
            try:
                files = read_json(folder / SOURCES_NAME).get("files")
            except (DataError, OSError):
                return None
            entry = files.get(file.relative_to(folder).as_posix()) if isinstance(files, dict) else None
        if isinstance(entry, dict):
            return (
                f"fetched from {entry.get('url')} on {entry.get('date')}, revision {entry.get('revision')}, licence "
                f"{entry.get('licence')}, sha256 {str(entry.get('sha256'))[:16]}"
            )
    return None


def _made(file: Path) -> tuple[str, list[Path]] | None:
    """(what made it, of which files); None if there is no report of a command, its own or its folder's."""
    own = Path(f"{file}.{REPORT_NAME}")
    try:
        report = own if own.is_file() else file.parent / REPORT_NAME
        content = read_json(report)
    except (DataError, OSError):
        return None
    listed = content.get("inputs")
    inputs = [Path(str(item["file"])) for item in listed if isinstance(item, dict) and "file" in item] if isinstance(
        listed, list
    ) else []  # fmt: skip
    more = f" and {len(inputs) - 1} more" if len(inputs) > 1 else ""
    named = f" from {inputs[0]}{more}" if inputs else ""
    command = content.get("command")
    if not isinstance(command, str):
        return f"made by a command that {report} does not name{named}", inputs
    return f"made by syne {'' if command.startswith('synth ') else 'data '}{command}{named}", inputs
