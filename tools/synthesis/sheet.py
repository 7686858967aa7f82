"""The audit's sheet: the sampled pairs as CSV for a spreadsheet, and the verdicts that a person wrote into it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.synthesis.record import QaRecord

SHEET = "sheet.csv"
VERDICTS = ("right", "wrong", "unclear")
_SHOWN = ("discipline", "language", "question", "answer")
Verdict = tuple[str, str]
"""(one of VERDICTS, reason). Unclear counts as called wrong, in a judge's calibration too."""


def write_sheet(path: Path, sample: Sequence[QaRecord]) -> None:
    """Write the sheet; one that a person has begun to fill in is left as it is.

    Errors: ConfigError if verdicts of another sample lie there.
    """
    if path.exists():
        try:
            if any(row.get("verdict") for row in _rows(path).values()):
                _read(path, sample)
                return
        except (OSError, KeyError, ValueError, csv.Error) as error:
            raise ConfigError(f"{path} has verdicts of another sample ({error}); move it, or name another") from error
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["id", *_SHOWN, "verdict", "reason"])
    for pair in sample:
        writer.writerow([*(_safe(getattr(pair, key)) for key in ("id", *_SHOWN)), "", ""])
    write_atomic(path, stream.getvalue().encode("utf-8-sig"))


def read_sheet(path: Path, sample: Sequence[QaRecord]) -> dict[str, Verdict]:
    """id -> verdict of every pair of the sample, in its order.

    Errors: DataError if the sheet is of other pairs, or of the same ones with other texts, or a verdict is missing.
    """
    try:
        verdicts = _read(path, sample)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(f"--filled {path} is not the sheet of this sample, filled in ({error!r})") from error
    if wrong := [name for name, (verdict, _) in verdicts.items() if verdict not in VERDICTS]:
        told = f"{len(wrong)} verdicts are not right, wrong or unclear, the first of {wrong[0]}"
        raise DataError(f"--filled {path}: {told}")
    return verdicts


def _read(path: Path, sample: Sequence[QaRecord]) -> dict[str, Verdict]:
    """Errors: KeyError or ValueError for a sheet of other pairs."""
    rows, found = _rows(path), {}
    for pair in sample:
        row = rows[pair.id]
        # Spreadsheets change line ends and blanks; anything else means that the verdict was on another text.
        for key in _SHOWN:
            if (row[key] or "").lstrip("'").split() != getattr(pair, key).lstrip("'").split():
                raise ValueError(f"the {key} of {pair.id} is not what was sampled")
        found[pair.id] = ((row["verdict"] or "").strip().casefold(), row.get("reason") or "")
    return found


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return {row["id"].removeprefix("'"): row for row in csv.DictReader(stream)}


def _safe(cell: str) -> str:
    """A spreadsheet would compute a cell that begins so."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell
