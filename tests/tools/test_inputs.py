"""Which files an --input names: folders, patterns, links, what the tools wrote themselves."""

import errno
import os
from pathlib import Path, PurePath
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_mixers.errors import ConfigError
from tests.tools.test_readers import read, texts
from tools.data.readers import find_inputs


def test_a_folder_gives_its_files_in_natural_order_and_the_bucket_layout_is_read(tmp_path: Path) -> None:
    for bucket, numbers in (("zh-law", (10, 2)), ("en", (1,))):
        (tmp_path / "data" / bucket).mkdir(parents=True)
        for number in numbers:
            table = pyarrow.table({"text": [f"{bucket} {number}"]})
            pyarrow.parquet.write_table(table, tmp_path / "data" / bucket / f"part-{number}.parquet")
    (tmp_path / "data" / "README.md").write_text("not data")
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / ".cache" / "x.jsonl").write_text("{}")
    found = find_inputs([str(tmp_path / "data"), str(tmp_path / "data" / "*" / "part-2.parquet")])
    assert [text for path in found for text in texts(read(path))] == ["en 1", "zh-law 2", "zh-law 10"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^--input .*/empty matches no file and no folder with \.jsonl"):
        find_inputs([str(tmp_path / "empty")])


def test_a_folder_is_read_through_links_once_and_tells_what_it_passes_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("elsewhere/x.jsonl", "pages/y.jsonl", "pages/z.jsonl.bz2", "pages/K.JSONL", "pages/.hidden/h.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "pages/zh").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pages/again").symlink_to(tmp_path / "pages")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "pages")
    caplog.set_level("INFO")
    assert find_inputs([str(tmp_path / "pages")]) == [tmp_path / "pages/y.jsonl", tmp_path / "pages/zh/x.jsonl"]
    assert "not read, by suffix: 1 .JSONL, 1 .bz2 (2 in all)" in caplog.text


@pytest.mark.parametrize("name", ["b.jsonl", "zh"])
@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str, pattern: str) -> None:
    """A file, or a folder, on a disk that was purged: the others would be taken for all there is."""
    (tmp_path / "a.jsonl").touch()
    (tmp_path / name).symlink_to(tmp_path / "gone" / name)
    with pytest.raises(
        ConfigError, match=rf"^--input {tmp_path}/{name} is a link to {tmp_path}/gone/{name}, which is not"
    ):
        find_inputs([str(tmp_path / pattern)])
    (tmp_path / "gone" / name).mkdir(parents=True)
    assert find_inputs([str(tmp_path / pattern)]) == [tmp_path / "a.jsonl"]


@pytest.mark.parametrize("pattern", ["*/*.jsonl", "**/*.jsonl", "[ez]?/a.jsonl", "*/pages/*"])
def test_a_folder_that_a_pattern_goes_through_and_that_links_to_nothing_is_refused(
    tmp_path: Path, pattern: str
) -> None:
    for folder in ("en", "en/pages"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").touch()
    (tmp_path / "zh").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=rf"^--input {tmp_path}/zh is a link to {tmp_path}/gone, which is not there"):
        find_inputs([str(tmp_path / pattern)])
    (tmp_path / "zh").unlink()
    assert find_inputs([str(tmp_path / pattern)])


def test_a_folder_inside_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").touch()
    locked = tmp_path / "locked"
    locked.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:  # no mode keeps root out, who may run the tests
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(locked))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(ConfigError, match=rf"^--input {locked} cannot be read: Permission denied; allow it"):
        find_inputs([str(tmp_path)])


def test_a_name_with_brackets_is_taken_as_it_stands(tmp_path: Path) -> None:
    for name in ("a[1].jsonl", "a1.jsonl"):
        (tmp_path / name).touch()
    assert find_inputs([str(tmp_path / "a[1].jsonl")]) == [tmp_path / "a[1].jsonl"]
    assert find_inputs([str(tmp_path / "a[12].jsonl")]) == [tmp_path / "a1.jsonl"]


def test_reports_and_dropped_documents_are_read_only_if_they_are_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "quarantine.jsonl", "report.json", "dropped/a.jsonl", "mine/dropped/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    kept = [tmp_path / "a.jsonl", tmp_path / "mine/dropped/b.jsonl"]  # no report beside: a user's own folder
    for pattern in ("", "*", "**/*"):
        assert find_inputs([str(tmp_path / pattern)]) == kept
    for pattern in ("dropped", "dropped/*", "dropped/a.jsonl"):
        assert find_inputs([str(tmp_path / pattern)]) == [tmp_path / "dropped/a.jsonl"]
    assert find_inputs([str(tmp_path / "quarantine.jsonl")]) == [tmp_path / "quarantine.jsonl"]


def test_each_file_of_a_large_folder_is_compared_with_what_is_passed_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dropped").mkdir()
    (tmp_path / "report.json").write_text("{}")
    for number in range(150):
        for folder in (tmp_path, tmp_path / "dropped"):
            (folder / f"{number:03d}.jsonl").write_text("{}")
    hashed = 0
    own = PurePath.__hash__

    def counted(path: PurePath) -> int:
        nonlocal hashed
        hashed += 1
        return own(path)

    monkeypatch.setattr(PurePath, "__hash__", counted)
    found = find_inputs([str(tmp_path)])
    assert [path.name for path in found] == [f"{number:03d}.jsonl" for number in range(150)]
    assert hashed < 10 * 300


@pytest.mark.parametrize("pattern", ["", "out", "out/*.jsonl", "out/dropped", "**/*.jsonl", "out/a.jsonl"])
def test_a_folder_that_a_call_has_not_filled_to_the_end_is_refused(tmp_path: Path, pattern: str) -> None:
    for name in ("out/a.jsonl", "out/dropped/a.jsonl", "out/.work/call.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        ConfigError, match=rf"^--seeds .*: {tmp_path}/out is unfinished; run the command .* again first"
    ):
        find_inputs([str(tmp_path / pattern)], option="--seeds")
    (tmp_path / "out/.work/call.json").unlink()
    assert find_inputs([str(tmp_path / pattern)])


def test_a_name_that_is_not_utf_8_is_refused_before_any_document_is_read(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xcd\xf8.jsonl", "w") as stream:  # noqa: PTH123  # 网 in GBK
        stream.write('{"text": "a"}\n')
    with pytest.raises(ConfigError, match=r"\\xcd\\xf8\.jsonl'.* is not UTF-8.*convmv"):
        find_inputs((str(tmp_path),))
