"""docs/licences.md: what is installed, at which version, under which licence, from the packages' own metadata.

python -m tools.licences --write       after `make lock`, in the environment of the lock
"""

import re
from importlib import metadata
from pathlib import Path

from tools.cli_options import page_command

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
LOCKS = {"cpu.lock": "Installed and imported", "files.lock": "Of which files are read, without importing them"}
LONGEST = 60  # characters of a line that names a licence
_HEAD = """# Licences of what is installed

Made from `requirements/*.lock` and the packages' own metadata by `python -m tools.licences --write`; do not edit. The
project itself is Apache-2.0. `requirements/cuda.txt` names packages of the same projects at the container's versions.
Weights and texts that the examples fetch keep their own licences (`runs/quickstart/LICENCES.md`).
"""


def locked(lock: str) -> dict[str, str]:
    """Package -> version, as the lock says."""
    lines = (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {name: rest.partition(";")[0].strip() for name, _, rest in pairs}


def licence_of(package: str) -> str:
    """SPDX expression where there is one, else its classifiers, else the first line of its licence.

    Errors: importlib.metadata.PackageNotFoundError if it is not installed.
    """
    fields = metadata.metadata(package)
    if expressions := fields.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [name for name in fields.get_all("Classifier") or [] if name.startswith("License ::")]
    named = [name.rpartition(" :: ")[2] for name in classifiers if name != "License :: OSI Approved"]
    if named:
        return ", ".join(named)
    texts = list(map(str, fields.get_all("License") or []))
    texts += [path.read_text(encoding="utf-8") for path in metadata.files(package) or [] if "LICENSE" in path.name]
    lines = [" ".join(line.split()) for text in texts for line in text.strip().splitlines()[:1]]
    return next((line for line in lines if 0 < len(line) <= LONGEST), "see its licence file")


def render() -> str:
    parts = [_HEAD]
    for lock, title in LOCKS.items():
        parts.append(f"## {title}: `requirements/{lock}`\n\n| package | version | licence |\n|---|---|---|")
        for name, version in sorted(locked(lock).items(), key=lambda pair: pair[0].lower()):
            licence = re.sub(r"([|*_<])", r"\\\1", licence_of(name))
            parts.append(f"| {name} | {version} | {licence} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    page_command(PAGE, render, __doc__)
