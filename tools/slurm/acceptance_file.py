"""The file that says whether a cluster passed: which one, with which software, on how many nodes."""

import json
from pathlib import Path
from typing import Any

from data_mixers.errors import DataError
from data_mixers.file_version import check_version
from megatron_synE import __version__
from megatron_synE.runtime.run_dir import versions

SCHEMA_VERSION = 1
COMPARED = ("torch", "megatron-core", "transformer-engine")
"""Another version of one of them computes with other kernels."""


def acceptance_fault(file: Path, *, cluster: str, nodes: int) -> str | None:
    """Why there is no pass for this cluster and this software; None if there is one."""
    again = f"run `syne slurm acceptance --nodes {min(nodes, 2)}` before spending GPU hours"
    if not file.is_file():
        return f"{file}: this cluster has passed no acceptance; {again}"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{file}: cannot be read ({error}); {again}"
    try:
        check_version(found, understood=SCHEMA_VERSION, file=file, cure=again, fault=DataError)
    except DataError as error:
        return str(error)
    if found.get("cluster") != cluster:
        return f"{file}: is of cluster {found.get('cluster')!r}, this is {cluster!r}; {again}"
    if not found.get("passed"):
        return f"{file}: the acceptance of this cluster failed; {again}"
    if nodes > 1 and found.get("nodes", 1) < 2:
        return f"{file}: was run on one node, this job has {nodes}; {again}"
    now = {"megatron-synE": __version__, **versions()}
    for package in ("megatron-synE", *COMPARED):
        then = found.get("versions", {}).get(package)
        if then != now.get(package):
            return f"{file}: was run with {package} {then}, installed is {now.get(package)}; {again}"
    return None
