"""`syne data fetch` against a real server process that cuts, stalls, refuses and lies."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from data_mixers.atomic import temporary_path
from data_mixers.errors import ConfigError, DataError
from tools.data.download import Web, note_of
from tools.data.fetch import FetchOptions, fetch, list_files, load_catalogue
from tools.data.readers import find_inputs

REPOSITORY = "survivi/Llama-3-SynE-Dataset"
COMMIT = "c0ffee"
CONTENT = {name: random.Random(name).randbytes(300_000) for name in ("part-0.parquet", "part-1.parquet")}
RESOLVE = f"datasets/{REPOSITORY}/resolve/{COMMIT}"


class Server:
    """The folder it serves from, and where it listens."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.endpoint = f"http://127.0.0.1:{port}"

    def requests(self, path: str) -> list[dict[str, Any]]:
        lines = (self.folder / "requests.jsonl").read_text().splitlines()
        return [asked for asked in map(json.loads, lines) if asked["path"] == path]


def _put(folder: Path, path: str, content: bytes) -> None:
    target = folder / "files" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _item(path: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": "0", "lfs": {"oid": digest, "size": 1}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    processes = []

    def run(faults: dict[str, list[str]] | None = None, **changes: Any) -> Server:
        folder = tmp_path / f"server{len(processes)}"
        folder.mkdir()
        tree = f"api/datasets/{REPOSITORY}/tree/{COMMIT}/data/cn_web"
        items = [_item(f"data/cn_web/{name}", content) | changes for name, content in CONTENT.items()]
        _put(folder, f"api/datasets/{REPOSITORY}/revision/main", json.dumps({"sha": COMMIT}).encode())
        # Two pages of the listing, as the hub gives long ones.
        _put(folder, tree, json.dumps([{"type": "directory", "path": "data/cn_web/x"}, items[0]]).encode())
        (folder / "files" / f"{tree}.link").write_text(f'</{tree}2?cursor=1>; rel="next"')
        readme = {"type": "file", "path": "data/cn_web/README.md", "size": 1}
        _put(folder, f"{tree}2", json.dumps([items[1], readme]).encode())
        for name, content in CONTENT.items():
            _put(folder, f"{RESOLVE}/data/cn_web/{name}", content)
        resolved = {f"{RESOLVE}/data/cn_web/{name}": found for name, found in (faults or {}).items()}
        (folder / "faults.json").write_text(json.dumps(resolved))
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("flaky_server.py")), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return Server(folder, int(process.stdout.readline()))

    yield run
    for process in processes:
        process.kill()
        process.wait()


def _options(out: Path, server: Server, **changes: Any) -> FetchOptions:
    options: dict[str, Any] = {
        "name": "llama-3-syne",
        "out": out,
        "slices": ("cn_web",),
        "endpoint": server.endpoint,
        "pause_seconds": 0.0,
        "connections": 1,
    }
    return FetchOptions(**options | changes)


def _check_fetched(out: Path) -> None:
    for name, content in CONTENT.items():
        assert (out / "data/cn_web" / name).read_bytes() == content
    assert sorted(path.name for path in (out / "data/cn_web").iterdir()) == sorted(CONTENT)


def test_files_come_with_where_they_are_from(tmp_path: Path, start: Callable[..., Server]) -> None:
    server = start()
    paths = fetch(_options(tmp_path / "out", server))
    assert paths == [tmp_path / "out/data/cn_web" / name for name in CONTENT]
    _check_fetched(tmp_path / "out")
    sources = json.loads((tmp_path / "out/sources.json").read_text())["files"]
    found = sources["data/cn_web/part-1.parquet"]
    assert found["url"] == f"{server.endpoint}/{RESOLVE}/data/cn_web/part-1.parquet"
    assert found["sha256"] == hashlib.sha256(CONTENT["part-1.parquet"]).hexdigest()
    assert (found["size_bytes"], found["revision"]) == (300_000, COMMIT)
    assert "not stated" in found["licence"] and found["date"].startswith("20")
    before = (tmp_path / "out/sources.json").read_bytes()
    fetch(_options(tmp_path / "out", server))  # nothing is asked for again
    assert len(server.requests(f"{RESOLVE}/data/cn_web/part-1.parquet")) == 1
    assert (tmp_path / "out/sources.json").read_bytes() == before


def test_cuts_and_busy_answers_are_overcome_from_where_it_was_cut(tmp_path: Path, start: Callable[..., Server]) -> None:
    faults = ["cut 100000", "429", "500", "cut 50000", "503"]
    server = start({"part-0.parquet": faults, "part-1.parquet": ["cut 200000", "no range"]})
    fetch(_options(tmp_path / "out", server, connections=2))
    _check_fetched(tmp_path / "out")
    ranges = [asked["range"] for asked in server.requests(f"{RESOLVE}/data/cn_web/part-0.parquet")]
    assert ranges == [None, *["bytes=100000-"] * 3, *["bytes=150000-"] * 2]


def test_a_busy_server_is_given_the_time_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds or, as RFC 9110 allows too, as a date."""
    pauses: list[float | None] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, timeout=None: pauses.append(timeout))
    for asked in ("30", formatdate(time.time() + 30, usegmt=True), formatdate(0, usegmt=True), "soon"):
        headers = Message()
        headers["Retry-After"] = asked
        busy = HTTPError("http://server/x", 429, "busy", headers, None)
        Web(pause_seconds=0.0).wait_or_fail("http://server/x", busy, 1)
    assert pauses == [30.0, pytest.approx(30.0, abs=2.0), 0.0, 0.0]


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path, start: Callable[..., Server]) -> None:
    server = start({"part-0.parquet": ["stall"]})
    out = tmp_path / "out"
    arguments = ["llama-3-syne", "--slice", "cn_web", "--out", str(out), "--endpoint", server.endpoint]
    process = subprocess.Popen(
        [sys.executable, "-m", "tools", "data", "fetch", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partial = out / "data/cn_web/part-0.parquet.partial"
    while process.poll() is None and not ((server.folder / "stalled").exists() and partial.exists()):
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not partial.with_suffix("").exists()  # nothing half under the final name
    # As if it had been killed a moment earlier, while it wrote the one's note, and after it had the other.
    part_0, part_1 = (out / "data/cn_web" / name for name in CONTENT)
    left = temporary_path(note_of(part_0)).name.replace(f".{os.getpid()}.", f".{process.pid}.")
    part_0.with_name(left).write_bytes(b"{")
    exporting = out / "models" / temporary_path(Path("hf")).name  # by a command that works beside it
    exporting.mkdir(parents=True)
    (exporting.parent / ".weights.tmp").touch()
    Path(f"{part_1}.partial").unlink(missing_ok=True)
    part_1.write_bytes(CONTENT["part-1.parquet"])
    note_of(part_1).write_bytes(b"{}")
    assert find_inputs((str(out),)) == [part_1]  # no note is taken for documents
    fetch(_options(out, server))
    assert sorted(path.name for path in exporting.parent.iterdir()) == sorted((exporting.name, ".weights.tmp"))
    shutil.rmtree(exporting.parent)
    _check_fetched(out)


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"part-1.parquet": ["endless"]}, 130),
        ({"part-1.parquet": ["429 120"] * 6}, 130),
        ({"part-0.parquet": ["meanwhile 404"], "part-1.parquet": ["endless"]}, 3),
        ({"part-0.parquet": ["endless"], "part-1.parquet": ["meanwhile 404"]}, 3),
    ],
)
def test_what_ends_a_call_ends_its_other_files_too(
    tmp_path: Path, start: Callable[..., Server], faults: dict[str, list[str]], code: int
) -> None:
    """Ctrl-C (130) while a file comes, and while a busy server is waited for; and another file's fault."""
    server = start(faults, size=1 << 50)
    arguments = ["llama-3-syne", "--slice", "cn_web", "--out", str(tmp_path / "out"), "--endpoint", server.endpoint]
    arguments += ["--match", "*part-1*"] if code == 130 else []
    process = subprocess.Popen([sys.executable, "-m", "tools", "data", "fetch", *arguments], stderr=subprocess.PIPE)
    begun = server.folder / "begun"
    while code == 130 and process.poll() is None and not begun.exists():
        os.sched_yield()
    process.send_signal(signal.SIGINT) if code == 130 else None
    try:
        said = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == code, said
    assert code == 130 or "the server says 404" in said
    kept = {path.stem for path in (tmp_path / "out").rglob("*.partial")}  # it goes on from there
    assert kept == {name for name, fault in faults.items() if fault == ["endless"]}


def test_a_file_that_changed_meanwhile_is_taken_anew(tmp_path: Path, start: Callable[..., Server]) -> None:
    server = start({"part-0.parquet": ["cut 1000"]})
    out = tmp_path / "out/data/cn_web"
    out.mkdir(parents=True)
    url = f"{server.endpoint}/{RESOLVE}/data/cn_web/part-0.parquet"
    (out / "part-0.parquet.partial").write_bytes(b"x" * 5000)
    note_of(out / "part-0.parquet").write_text(json.dumps({"url": url, "etag": '"other"'}))
    fetch(_options(tmp_path / "out", server))
    _check_fetched(tmp_path / "out")


@pytest.mark.parametrize(
    "noted", [{"etag": None, "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"etag": None, "size_bytes": 999}]
)
def test_a_changed_file_of_unknown_size_is_not_joined_to_its_old_beginning(
    tmp_path: Path, start: Callable[..., Server], noted: dict[str, Any]
) -> None:
    """No sha256 in a list of URLs, and a weak ETag: the date, or the size that it had, says that it is another file."""
    server = start()
    (server.folder / "weak").touch()
    _put(server.folder, "api/datasets/allenai/dolma/revision/main", json.dumps({"sha": COMMIT}).encode())
    _put(server.folder, "v1/x.gz", b"new" * 1000)
    url = f"{server.endpoint}/v1/x.gz"
    _put(server.folder, f"datasets/allenai/dolma/resolve/{COMMIT}/urls/v1.txt", url.encode())
    target = tmp_path / "out/v1/x.gz"
    target.parent.mkdir(parents=True)
    target.with_name("x.gz.partial").write_bytes(b"old" * 100)
    note_of(target).write_text(json.dumps({"url": url, **noted}))
    fetch(_options(tmp_path / "out", server, name="dolma", slices=("v1",)))
    assert target.read_bytes() == b"new" * 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lfs": {"oid": "0" * 64, "size": 1}}, "has sha256"),
        ({"size": 300_001}, "has 300000 bytes, its listing says 300001"),
        ({"path": "data/cn_web/../../../x.parquet"}, "outside of the data set"),
    ],
)
def test_what_is_not_as_listed_is_refused(
    tmp_path: Path, start: Callable[..., Server], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch(_options(tmp_path / "out", start(**change)))
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_wrong_announcement_and_a_dead_end_are_told(tmp_path: Path, start: Callable[..., Server]) -> None:
    server = start({"part-0.parquet": ["long"] * 20, "part-1.parquet": ["404"] * 9})
    with pytest.raises(DataError, match="300005 bytes, its listing says 300000"):
        fetch(_options(tmp_path / "out", server))
    with pytest.raises(DataError, match=r"part-1\.parquet: the server says 404"):
        fetch(_options(tmp_path / "two", server, match="*part-1*"))
    busy = start({"part-0.parquet": ["500"] * 20})
    with pytest.raises(DataError, match=r"part-0\.parquet cannot be reached \(500"):
        fetch(_options(tmp_path / "three", busy))
    assert len(busy.requests(f"{RESOLVE}/data/cn_web/part-0.parquet")) == 6


def test_offline_and_without_a_network_one_error_says_whence_and_whither(
    tmp_path: Path, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    out = tmp_path / "out"
    wanted = f"/datasets/{REPOSITORY}/resolve/main/data/cn_web/\\*.parquet .* put the files at {out}/data/cn_web"
    with pytest.raises(DataError, match=f"offline, and no file .* take {server.endpoint}{wanted}"):
        fetch(_options(out, server, offline=True))
    nobody = Server(tmp_path, 1)  # port 1: nothing listens
    with pytest.raises(DataError, match=f"cannot be reached .* take http://127.0.0.1:1{wanted}"):
        fetch(_options(out, nobody))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (out / "data/cn_web").mkdir(parents=True)
    (out / "data/cn_web/part-0.parquet").write_bytes(CONTENT["part-0.parquet"])
    assert fetch(_options(out, server)) == [out / "data/cn_web/part-0.parquet"]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fetch(_options(out, server))  # what was put there by hand is known by its sha256
    assert not server.requests(f"{RESOLVE}/data/cn_web/part-0.parquet")
    _check_fetched(out)


def test_dolma_comes_from_its_list_of_urls(tmp_path: Path, start: Callable[..., Server]) -> None:
    server = start()
    _put(server.folder, "api/datasets/allenai/dolma/revision/main", json.dumps({"sha": COMMIT}).encode())
    urls = f"{server.endpoint}/dolma-v1_6/cc/cc-0.json.gz\n{server.endpoint}/dolma-v1_6/books/books-0.json.gz\n"
    _put(server.folder, f"datasets/allenai/dolma/resolve/{COMMIT}/urls/v1_6-sample.txt", urls.encode())
    _put(server.folder, "dolma-v1_6/cc/cc-0.json.gz", CONTENT["part-0.parquet"])
    options = _options(tmp_path / "out", server, name="dolma", slices=("v1_6-sample",), match="*/cc/*")
    assert [remote.path for remote in list_files(options)] == ["dolma-v1_6/cc/cc-0.json.gz"]
    fetch(options)
    fetch(options)
    assert (tmp_path / "out/dolma-v1_6/cc/cc-0.json.gz").read_bytes() == CONTENT["part-0.parquet"]
    assert len(server.requests("dolma-v1_6/cc/cc-0.json.gz")) == 1


def test_what_is_named_twice_comes_once(tmp_path: Path, start: Callable[..., Server]) -> None:
    """A slice given twice, a list with a line twice: two connections would write one partial file."""
    server = start({"part-0.parquet": ["cut 100000"]})
    paths = fetch(_options(tmp_path / "out", server, slices=("cn_web", "cn_web"), connections=4))
    assert paths == [tmp_path / "out/data/cn_web" / name for name in CONTENT]
    _check_fetched(tmp_path / "out")
    _put(server.folder, "api/datasets/allenai/dolma/revision/main", json.dumps({"sha": COMMIT}).encode())
    _put(server.folder, "v1/a/x.gz", b"x" * 1000)
    urls, listing = [f"{server.endpoint}/v1/a/x.gz"] * 2, f"datasets/allenai/dolma/resolve/{COMMIT}/urls/v1.txt"
    _put(server.folder, listing, "\n".join(urls).encode())
    options = _options(tmp_path / "dolma", server, name="dolma", slices=("v1",), connections=4)
    assert fetch(options) == [tmp_path / "dolma/v1/a/x.gz"]
    _put(server.folder, listing, "\n".join([*urls, "http://127.0.0.2/v1/a/x.gz"]).encode())
    with pytest.raises(DataError, match=r"x\.gz and http://127\.0\.0\.2/v1/a/x\.gz would both be v1/a/x\.gz"):
        fetch(options)


def test_the_token_is_for_the_hub_alone(
    tmp_path: Path, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start()
    _put(other.folder, "elsewhere", CONTENT["part-0.parquet"])
    server = start({"part-0.parquet": [f"to {other.endpoint}/elsewhere"]})
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(_options(tmp_path / "out", server))
    _check_fetched(tmp_path / "out")
    asked = server.requests(f"{RESOLVE}/data/cn_web/part-0.parquet")
    assert [request["authorization"] for request in asked] == ["Bearer hf_secret"]
    assert [request["authorization"] for request in other.requests("elsewhere")] == [None]


def test_the_catalogue_is_whole_and_unknown_names_are_refused(tmp_path: Path) -> None:
    entries = load_catalogue()
    assert set(entries) == {"llama-3-syne", "dolma", "c4", "c4-multilingual"}
    assert all("{slice}" in (entry.files or entry.url_lists or "") for entry in entries.values())
    assert all((entry.files is None) != (entry.url_lists is None) for entry in entries.values())
    nobody = Server(tmp_path, 1)
    with pytest.raises(ConfigError, match="known: llama-3-syne, dolma"):
        fetch(_options(tmp_path, nobody, name="pile"))
    with pytest.raises(ConfigError, match="--slice is missing"):
        fetch(_options(tmp_path, nobody, slices=()))
    with pytest.raises(ConfigError, match="cannot be a folder"):
        fetch(_options(tmp_path, nobody, slices=("../x",)))
