"""docs/licences.md names every package of the locks, with the version that is installed and its licence."""

import re

from tools.licences import LOCKS, PAGE, ROOT, locked, render


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m tools.licences --write"


def test_every_locked_package_has_a_row_with_its_version_and_a_licence() -> None:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {name: version for name, version, _ in rows if name != "package"}
    assert found == {name: version for lock in LOCKS for name, version in locked(lock).items()}
    assert not [name for name, _, licence in rows if licence == "see its licence file"]


def test_the_cuda_list_names_no_project_that_the_page_leaves_out() -> None:
    lines = (ROOT / "requirements/cuda.txt").read_text(encoding="utf-8").splitlines()
    names = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    assert names and names <= set(locked("cpu.lock"))
