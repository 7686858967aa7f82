"""The version of a file's schema: every reader of what this program writes asks here, so that all refuse alike."""

from collections.abc import Callable, Mapping
from pathlib import Path

KEY = "schema_version"


def check_version(
    content: object,
    *,
    understood: int,
    file: Path | str,
    cure: str,
    fault: Callable[[str], Exception],
    absent: int | None = None,
) -> None:
    """Whether `content`, what a file holds, is of the version that its reader understands.

    absent: the version of a file that names none: of one that people write by hand, or that is older than its first
    number. None: such a file is refused.
    Errors: whatever `fault` makes, naming the file, the version found, the one understood, and the cure.
    """
    found = content.get(KEY, absent) if isinstance(content, Mapping) else absent
    if found != understood or isinstance(found, bool):
        raise fault(f"{file}: {KEY} is {found!r}, this program reads {understood}; {cure}")
