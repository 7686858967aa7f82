"""`syne data fetch`: published data sets by slice, resumable, with URL, licence, size and date kept in sources.json."""

import datetime
import json
import logging
import os
import re
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic.dataclasses import dataclass as checked

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.data.download import RemoteFile, UnreachableError, Web, fetch_file, note_of, sha256_of
from tools.data.options import FetchOptions
from tools.data.progress import LiveProgress
from tools.data.stage import only_one
from tools.data.yaml_file import STRICT, read_yaml

logger = logging.getLogger(__name__)

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
DEFAULT_ENDPOINT = "https://huggingface.co"
SOURCES_NAME = "sources.json"


@checked(frozen=True, kw_only=True, config=STRICT)
class Entry:
    what: str
    licence: str
    repository: str
    files: str | None = None
    url_lists: str | None = None


def load_catalogue() -> dict[str, Entry]:
    return read_yaml(CATALOGUE, dict[str, Entry])


def fetch(options: FetchOptions) -> list[Path]:
    """The files of the slices below `options.out`; those that are there already are checked by size and kept.

    Errors: ConfigError for an unknown name; DataError naming the URL that cannot be had and where the file belongs.
    """
    entry = _entry(options)
    if options.offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return _present(entry, options)
    try:
        web, commit, remotes = _listed(entry, options)
    except UnreachableError as error:
        by_hand = "; ".join(_where(entry, options, part) for part in options.slices)
        raise DataError(f"{error}. By hand: {by_hand}") from error
    with only_one(options.out):
        # Of a killed call. Whatever else is temporary down there is of commands that may be writing it now.
        for left in (*options.out.rglob("..*.partial.json.*.tmp"), *options.out.glob(f".{SOURCES_NAME}.*.tmp")):
            left.unlink()
        sources = _Sources(options.out / SOURCES_NAME)
        with (
            LiveProgress(f"fetch {options.name}", total=sum(remote.size_bytes or 0 for remote in remotes)) as progress,
            ThreadPoolExecutor(options.connections) as pool,
        ):
            lock = threading.Lock()

            def on_bytes(amount: int) -> None:
                web.go_on()
                with lock:
                    progress.advance(amount)

            def bring(remote: RemoteFile) -> None:
                digest = _bring(remote, options.out, web, sources, on_bytes)
                with lock:
                    sources.add(remote, digest, name=options.name, licence=entry.licence, commit=commit)

            futures = [pool.submit(bring, remote) for remote in remotes]
            try:
                for future in as_completed(futures):  # one that fails is not behind gigabytes of an earlier one
                    future.result()
            finally:
                web.ended.set()
                pool.shutdown(cancel_futures=True)
    return [options.out / remote.path for remote in remotes]


def list_files(options: FetchOptions) -> list[RemoteFile]:
    return _listed(_entry(options), options)[2]


def _entry(options: FetchOptions) -> Entry:
    entries = load_catalogue()
    if options.name not in entries:
        raise ConfigError(f"{options.name} is not in the catalogue; known: {', '.join(entries)}")
    if not options.slices:
        raise ConfigError(f"--slice is missing: {options.name} is {entries[options.name].what}")
    for part in options.slices:
        if not re.fullmatch(r"[\w.-]+", part) or part.startswith("."):
            raise ConfigError(f"--slice {part!r} cannot be a folder's name")
    return entries[options.name]


def _endpoint(options: FetchOptions) -> str:
    return (options.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def _listed(entry: Entry, options: FetchOptions) -> tuple[Web, str, list[RemoteFile]]:
    """(how to ask, the revision's commit, the files that fit)."""
    from huggingface_hub import get_token

    endpoint = _endpoint(options)
    web = Web(token=get_token(), token_for=f"{endpoint}/", pause_seconds=options.pause_seconds)
    api = f"{endpoint}/api/datasets/{entry.repository}"
    url = f"{api}/revision/{options.revision}"
    commit = str(_parsed(web.read(url)[0], url)["sha"])
    root = f"{endpoint}/datasets/{entry.repository}/resolve/{commit}"
    remotes: list[RemoteFile] = []
    for part in options.slices:
        if entry.url_lists is not None:
            remotes += _of_url_list(web, f"{root}/{entry.url_lists.format(slice=part)}")
        else:
            remotes += _of_tree(web, f"{api}/tree/{commit}", root, (entry.files or "").format(slice=part))
    found = _each_once([remote for remote in remotes if fnmatchcase(remote.path, options.match)])
    if not found:
        raise ConfigError(
            f"{options.name} has no file for --slice {', '.join(options.slices)} --match {options.match} at {endpoint}"
        )
    return web, commit, sorted(found, key=lambda remote: remote.path)[: options.max_files]


def _of_tree(web: Web, tree: str, root: str, pattern: str) -> list[RemoteFile]:
    """The files of a repository that fit the pattern, with sizes and, of large ones, sha256."""
    folder = pattern.rpartition("/")[0]
    url: str | None = f"{tree}/{folder}?recursive=false"
    remotes = []
    while url is not None:
        raw, link = web.read(url)
        for item in _parsed(raw, url):
            if item["type"] == "file" and fnmatchcase(item["path"], pattern):
                path, sha256 = _safe(item["path"], url), (item.get("lfs") or {}).get("oid")
                file = f"{root}/{urllib.parse.quote(path)}"
                remotes.append(RemoteFile(url=file, path=path, size_bytes=int(item["size"]), sha256=sha256))
        following = re.search(r'<([^>]+)>;\s*rel="next"', link or "")
        url = urllib.parse.urljoin(url, following[1]) if following else None
    return remotes


def _of_url_list(web: Web, url: str) -> list[RemoteFile]:
    """The files named in a list; their sizes are not known before they are asked for."""
    lines = web.read(url)[0].decode("utf-8", "replace").split()
    return [RemoteFile(url=line, path=_safe(urllib.parse.urlsplit(line).path.lstrip("/"), url)) for line in lines]


def _each_once(remotes: list[RemoteFile]) -> list[RemoteFile]:
    """Without what is named twice: two threads would write one file. Errors: DataError for two URLs with one place."""
    found: dict[str, RemoteFile] = {}
    for remote in remotes:
        other = found.setdefault(remote.path, remote)
        if other.url != remote.url:
            raise DataError(f"{other.url} and {remote.url} would both be {remote.path}; fetch them apart with --slice")
    return list(found.values())


def _safe(path: str, url: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise DataError(f"{url} names a file {path!r} outside of the data set")
    return path


def _parsed(raw: bytes, url: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise DataError(f"{url} does not answer in JSON ({error}); is --endpoint a mirror of the hub?") from error


def _bring(remote: RemoteFile, out: Path, web: Web, sources: "_Sources", on_bytes: Callable[[int], None]) -> str:
    """The file's sha256, after it is there."""
    target = out / remote.path
    if target.is_file():
        note_of(target).unlink(missing_ok=True)  # of a call that was killed just before it went
        size = target.stat().st_size
        known = sources.digest_of(remote, size)
        if known is not None:
            on_bytes(size)
            return known
        digest = sha256_of(target)  # put there by hand
        if size == remote.size_bytes and remote.sha256 in (None, digest):
            on_bytes(size)
            return digest
        if remote.size_bytes is not None:
            raise DataError(f"{target} is not the file at {remote.url}: another size or sha256; remove it")
    return fetch_file(remote, out, web, on_bytes)


def _present(entry: Entry, options: FetchOptions) -> list[Path]:
    """Offline: the files that are there. Errors: DataError saying what is missing, whence and whither."""
    listed = _Sources(options.out / SOURCES_NAME).files
    there: dict[str, Path] = {}
    for path in sorted(options.out.rglob("*")):
        # Hidden are .in_use, notes, and what a killed call left.
        if path.is_file() and path.name != SOURCES_NAME and not path.name.startswith(".") and path.suffix != ".partial":
            there[path.relative_to(options.out).as_posix()] = path
    found: list[str] = []
    for part in options.slices:
        pattern = (entry.files or "*").format(slice=part)
        names = [name for name in there if fnmatchcase(name, pattern) and fnmatchcase(name, options.match)]
        if not names:
            raise DataError(
                f"offline, and no file of {options.name} {part} is below {options.out}: {_where(entry, options, part)}"
            )
        found += names
    for name in found:
        size, is_size = listed.get(name, {}).get("size_bytes"), there[name].stat().st_size
        if size not in (None, is_size):
            raise DataError(f"{there[name]} has {is_size} bytes, {SOURCES_NAME} says {size}; fetch it again")
    return [there[name] for name in found]


def _where(entry: Entry, options: FetchOptions, part: str) -> str:
    """What to take whence and to put where, for a person with another machine."""
    root = f"{_endpoint(options)}/datasets/{entry.repository}/resolve/{options.revision}"
    if entry.files is None:
        listing = f"{root}/{(entry.url_lists or '').format(slice=part)}"
        return f"take the URLs listed in {listing} and put each file at {options.out}/<path of its URL>"
    wanted = entry.files.format(slice=part)
    return f"take {root}/{wanted} on a machine with a network and put the files at {options.out / wanted}"


class _Sources:
    """sources.json: where every file is from. Written after each file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.files: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["files"]
        except FileNotFoundError:
            self.files = {}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove it, files that are there are kept") from error

    def digest_of(self, remote: RemoteFile, size: int) -> str | None:
        """sha256 of a file that was fetched from the same URL and has its size still."""
        kept = self.files.get(remote.path)
        if kept is None or kept["size_bytes"] != size or remote.size_bytes not in (None, size):
            return None
        is_same = kept["url"] == remote.url or kept["sha256"] == remote.sha256
        return str(kept["sha256"]) if is_same else None

    def add(self, remote: RemoteFile, digest: str, *, name: str, licence: str, commit: str) -> None:
        size = (self._path.parent / remote.path).stat().st_size
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        kept = self.files.get(remote.path)
        date = kept["date"] if kept is not None and kept["sha256"] == digest else today
        self.files[remote.path] = {
            "data_set": name,
            "url": remote.url,
            "licence": licence,
            "revision": commit,
            "size_bytes": size,
            "sha256": digest,
            "date": date,
        }
        content = json.dumps({"files": dict(sorted(self.files.items()))}, indent=1, ensure_ascii=False)
        write_atomic(self._path, content.encode())
