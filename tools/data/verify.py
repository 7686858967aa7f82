"""`syne data stats --verify`: are the token files, byte for byte, those of which the manifest tells?"""

import hashlib
from pathlib import Path

from data_mixers.errors import DataError
from data_mixers.manifest import MANIFEST_NAME, read_manifest
from tools.data.progress import LiveProgress

PIECE_BYTES = 8 << 20
MOST_NAMED = 5


def verify(folder: Path) -> int:
    """Read every .bin and .idx of the manifest once; how many bytes they are. About 0.6 CPU-seconds a GB.

    Training compares sizes alone: a copy that was cut short is found there, one with other bytes only here.
    Errors: DataError for a folder without a manifest, and files that are missing or have another size or sha256, named.
    """
    manifest = read_manifest(folder, check_files=False)
    expected = [
        (Path(f"{manifest.shard_prefix(shard)}.{suffix}"), size, digest)
        for entry in manifest.sources
        for shard in entry.shards
        for suffix, size, digest in (
            ("bin", shard.bin_size_bytes, shard.bin_sha256),
            ("idx", shard.idx_size_bytes, shard.idx_sha256),
        )
    ]
    total = sum(size for _, size, _ in expected)
    faults = []
    with LiveProgress("verify", total=total) as live:
        for path, size, digest in expected:
            found = path.stat().st_size if path.is_file() else None
            if found is None:
                faults.append(f"{path} is missing")
            elif found != size:
                faults.append(f"{path} has {found:,} bytes, not {size:,}")
            elif _sha256(path, live) != digest:
                faults.append(f"{path} has another sha256")
    if faults:
        rest = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise DataError(
            f"{len(faults)} of {len(expected)} token files are not those of {folder / MANIFEST_NAME}: "
            f"{'; '.join(faults[:MOST_NAMED])}{rest}. Copy them again, or make them again in another folder"
        )
    return total


def _sha256(path: Path, live: LiveProgress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
            live.advance(len(piece))
    return digest.hexdigest()
