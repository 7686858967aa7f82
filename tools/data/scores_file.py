"""`<prefix>.scores[-<name>].parquet`: one row per document of a token file, and what the rows were computed from."""

import glob
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_mixers.errors import ConfigError, DataError
from data_mixers.file_version import check_version
from data_mixers.manifest import ShardEntry
from tools.data.signals import SIGNALS

SCHEMA_VERSION = 1
METADATA_KEY = b"syne.scores"
DEFAULT_NAME = "default"
SCHEMA = pa.schema(
    [("nll_sum", pa.float64()), ("nll_tokens", pa.int64()), *((signal, pa.float64()) for signal in SIGNALS)]
)
"""nll_sum in nats over nll_tokens tokens: all after the document's first, EOS included; null without a model. Signals
are null without a tokenizer, or for a text that has nothing to measure."""
_NAME = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True, kw_only=True)
class ScoresOrigin:
    """What the rows come from; kept in the file's metadata."""

    bin_sha256: str
    """Of the token file, as its manifest says."""
    weights_sha256: str | None
    """A checkpoint's lineage hash, or the hash of an HF folder's files; None: no model."""
    seq_length: int | None
    overlap: int | None
    precision: str | None
    tokenizer_digest: str | None
    """Of the tokenizer that gave the signals; None: no signals."""


def check_name(name: str) -> None:
    """Errors: ConfigError if it cannot name a second set of scores."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} must consist of letters, digits, _ and . (a - separates two names in sort)")


def scores_suffix(name: str) -> str:
    """What follows a token file's prefix; DEFAULT_NAME has no name in the file's."""
    return ".scores.parquet" if name == DEFAULT_NAME else f".scores-{name}.parquet"


def scores_path(prefix: Path, name: str) -> Path:
    return Path(f"{prefix}{scores_suffix(name)}")


def names_of(prefix: Path) -> list[str]:
    pattern = f"{glob.escape(prefix.name)}.scores*.parquet"
    found = (path.name[len(prefix.name) :] for path in prefix.parent.glob(pattern))
    return sorted(
        part.removeprefix(".scores").removesuffix(".parquet").removeprefix("-") or DEFAULT_NAME for part in found
    )


def metadata_of(origin: ScoresOrigin) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION, **asdict(origin)}, sort_keys=True).encode()}


def read_origin(path: Path) -> ScoresOrigin:
    """Errors: DataError if the file cannot be read or is no scores file of this version."""
    try:
        metadata = pq.read_metadata(path).metadata or {}  # read_schema leaves out what was added on closing
        content = json.loads(metadata[METADATA_KEY])
        cure = "run `syne data score-ppl` again"
        check_version(content, understood=SCHEMA_VERSION, file=path, cure=cure, fault=DataError)
        return ScoresOrigin(**{key: value for key, value in content.items() if key != "schema_version"})
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(
            f"{path} cannot be read as scores ({error!r}); delete it and run `syne data score-ppl`"
        ) from error


def open_scores(prefix: Path, shard: ShardEntry, name: str) -> pq.ParquetFile:
    """The scores of a token file as it is now.

    Errors: DataError naming the file and the command if there are none, or they are of other tokens.
    """
    path = scores_path(prefix, name)
    cure = cure_of(prefix, name)
    if not path.is_file():
        raise DataError(f"{path} is missing: {prefix.name} has no scores; {cure}")
    if read_origin(path).bin_sha256 != shard.bin_sha256:
        raise DataError(f"{path} holds scores of other tokens than {prefix.name}.bin has now; {cure} again")
    file = pq.ParquetFile(path)
    if file.metadata.num_rows != shard.num_documents:
        raise DataError(
            f"{path} has {file.metadata.num_rows} rows, {prefix.name} has {shard.num_documents} documents; {cure} again"
        )
    return file


def cure_of(prefix: Path, name: str) -> str:
    """What to do where the scores of this name are missing or of other tokens."""
    asked = "" if name == DEFAULT_NAME else f" --name {name}"
    return f"run `syne data score-ppl --data {prefix.parent}{asked}`"
