"""The GPU image gets what the package declares: nothing of pyproject.toml is left out of requirements/cuda.txt."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the file's own comment leaves to the container.
OF_THE_CONTAINER = {"torch", "numpy", "scipy", "sympy", "markupsafe"}
OTHER_PYTHON = {"megatron-core"}  # Python 3.12 there, 3.11 here


def versions(file: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {normal(name): version.split()[0] for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_gpu_image_has_every_dependency_and_what_evaluation_needs_in_the_versions_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["eval"]]
    names = {normal(re.split(r"[<>=\[ ]", entry)[0]) for entry in declared}
    gpu, cpu = versions("cuda.txt"), versions("cpu.lock")
    assert names - gpu.keys() == OF_THE_CONTAINER
    assert {name for name in gpu if gpu[name] != cpu.get(name)} == OTHER_PYTHON
