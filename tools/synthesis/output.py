"""Where a step may write its pairs."""

from pathlib import Path

from data_mixers.errors import ConfigError


def check_out(out: Path) -> None:
    """Make the folder of an output file. Errors: ConfigError for another suffix, or if it cannot be written."""
    if out.suffixes[-2:] != [".jsonl", ".zst"] and out.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: the name must end with .jsonl or .jsonl.zst")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: its folder cannot be made ({error.strerror})") from error
