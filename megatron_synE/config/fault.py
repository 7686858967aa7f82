"""One thing that stops a run, and many of them as one error."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_mixers.errors import ConfigError, DataError, UserError
from megatron_synE.exit_codes import CheckpointError


@dataclass(frozen=True)
class Fault:
    """One thing that stops the run."""

    key: str
    """section.key of the configuration."""
    message: str
    """What is wrong, with the values."""
    cure: str
    exit_code: int = ConfigError.exit_code
    """What the run ends with if all its faults are of this kind (docs/exit_codes.md)."""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}; {self.cure}"


def require(faults: Sequence[Fault], *, where: str) -> None:
    """Errors: one with a line for every fault: DataError or CheckpointError if all are such, else ConfigError."""
    if faults:
        codes = {fault.exit_code for fault in faults}
        kind = _ERRORS[codes.pop()] if len(codes) == 1 else ConfigError
        raise kind(listed(faults, where=where))


def listed(faults: Sequence[Fault | str], *, where: str) -> str:
    """How many there are, and a line for each."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n  ".join([f"{where}: {count}", *map(str, faults)])


_ERRORS: dict[int, type[UserError]] = {kind.exit_code: kind for kind in (ConfigError, DataError, CheckpointError)}
