"""The two faults that this layer can report; each carries the process exit code of docs/exit_codes.md."""


class UserError(Exception):
    """A fault that a person can mend: shown as one message without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """Wrong configuration, ratio or schedule. The message names the key and the cure."""


class DataError(UserError):
    """A data file that is missing, damaged, or not what its manifest says. The message names the file."""

    exit_code = 3
