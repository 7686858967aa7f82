"""The GPU image gets what the package declares: requirements of pyproject.toml, and all folders of code."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the file's own comment leaves to the container.
OF_THE_CONTAINER = {"torch", "numpy", "scipy", "sympy", "markupsafe"}
OTHER_PYTHON = {"megatron-core"}  # Python 3.12 there, 3.11 here


def versions(file: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if "==" in line and not line.startswith("#")]
    return {normal(name): rest.partition(";")[0].split()[0] for name, _, rest in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_gpu_image_has_every_dependency_and_what_evaluation_needs_in_the_versions_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["eval"]]
    names = {normal(re.split(r"[<>=\[ ]", entry)[0]) for entry in declared}
    gpu, cpu = versions("cuda.txt"), versions("cpu.lock")
    assert names - gpu.keys() == OF_THE_CONTAINER
    assert {name for name in gpu if gpu[name] != cpu.get(name)} == OTHER_PYTHON


def test_both_recipes_of_the_image_take_every_folder_of_the_package_and_nothing_that_git_does_not_track() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    docker = {line.removeprefix("!") for line in lines if line.startswith("!")}
    files = (ROOT / "docker" / "apptainer.def").read_text(encoding="utf-8").split("%files")[1].split("%post")[0]
    apptainer = dict(line.split() for line in files.strip().splitlines())
    assert "*" in lines and docker == apptainer.keys()
    assert all(target == f"/opt/megatron-syne/{source}" for source, target in apptainer.items())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in tracked.splitlines()}
    assert docker <= top
    # What is left out: the lists themselves, and what no one reads inside an image.
    of_the_clone = {
        ".ci",
        ".dockerignore",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README_zh.md",
        "SECURITY.md",
    }
    assert top - docker <= of_the_clone
