"""The wheel holds every file of the packages, and works in an environment that has never seen the source."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("data_mixers", "megatron_synE", "tools")


def tracked(*folders: str) -> list[str]:
    command = ["git", "ls-files", "-z", *folders]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_data_file_of_the_packages_is_named_for_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    names = [Path(name).name for name in tracked(*PACKAGES) if not name.endswith(".py")]
    assert len(names) > 40
    assert [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)] == []


@pytest.mark.slow
def test_the_wheel_works_in_another_environment(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert set(tracked(*PACKAGES)) - set(archive.namelist()) == set()

    # What it depends on comes from this environment, as a path: a .pth file in it, the editable install, is not read.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=elsewhere)
    found = run(python, "-c", "import tools, megatron_synE, data_mixers; print(tools.__file__)", cwd=elsewhere)
    assert found.startswith(str(site))
    syne = tmp_path / "venv" / "bin" / "syne"
    assert "surrogate" in run(syne, "--help", cwd=elsewhere)
    assert "collective" in run(syne, "doctor", cwd=elsewhere)
    assert "OpenBookQA" in run(syne, "eval", "--suite", "probe", "--list", cwd=elsewhere)  # reads its data files
