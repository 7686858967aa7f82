"""One writer per run folder, also where an old copy of a requeued job still runs and nobody can reach it.

    .lock            flock until the process ends: keeps a second run out, goes with its holder however that dies
    lease.json       who writes; replaced by whoever has a better right, e.g. a later restart of the same Slurm job
    .alive-<token>   touched by the holder every few seconds, so that others can see it live; gone when it left

A copy that lost the lease cannot write beside its successor. Everything it publishes is first written under a name with
its own token, then the lease is checked, then the name is changed. The successor replaces lease.json and *then* takes
all names of others away: a copy that looked before, and was held up for however long, no longer finds what to rename.
If its rename came first, the successor, which looks for checkpoints only afterwards, goes on from what was published.
"""

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from data_mixers.atomic import sync
from data_mixers.errors import ConfigError
from megatron_synE.exit_codes import LeaseLostError

logger = logging.getLogger(__name__)

LEASE = "lease.json"
LOCK_SECONDS = 10.0
"""A rank that was just killed needs a moment to go."""
EXPIRY_SECONDS = 30.0
"""Ours: six beats. A holder that was not seen to beat for so long is gone, or as good as gone."""
_BEAT_SECONDS = 5.0
_POLL_SECONDS = 0.1
_TEMPORARY = re.compile(r"\.tmp-.*|\..*\.tmp(-replaced)?")
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who writes into a run folder."""

    token: str
    job: str | None
    """SLURM_JOB_ID; it stays when a job is requeued."""
    restart_count: int
    """SLURM_RESTART_COUNT, which Slurm does not set on the first start."""
    host: str
    pid: int

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(
            token=secrets.token_hex(8),
            job=os.environ.get("SLURM_JOB_ID"),
            restart_count=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            host=os.uname().nodename,
            pid=os.getpid(),
        )

    def __str__(self) -> str:
        job = "" if self.job is None else f", restart {self.restart_count} of job {self.job}"
        return f"process {self.pid} on {self.host}{job}"

    def is_restart_of(self, other: "Holder | None") -> bool:
        """Whether Slurm started this one in the place of `other`, which it holds for dead."""
        same_job = other is not None and self.job is not None and self.job == other.job
        return same_job and other is not None and self.restart_count > other.restart_count


class Lease:
    """The right to write into one run folder; rank 0 holds it. Made by `take`."""

    def __init__(self, root: Path, holder: Holder, lock: IO[str] | None) -> None:
        self.root, self.holder = root, holder
        self.lost = False
        """Whether the last look, at most some seconds ago, found another holder."""
        self._lock = lock  # closing it would let go of the folder
        self._leaving = threading.Event()
        self._alive = _alive(root, holder)
        self._alive.touch()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    @property
    def token(self) -> str:
        """Part of every temporary name of this holder."""
        return self.holder.token

    def check(self) -> None:
        """Return if this process still is the holder. Cost: one small file read.

        Errors: LeaseLostError. Call it right before anything becomes visible under a name that others read.
        """
        held = read_holder(self.root)
        if held is None or held.token != self.token:
            self.lost = True
            raise LeaseLostError(
                f"{self.root}: {'nobody' if held is None else held} holds this run now; "
                f"{self.holder} stops and writes nothing more"
            )

    def release(self) -> None:
        """Leave the folder to the next run; the process may live on."""
        self._leaving.set()
        self._alive.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _beat(self) -> None:
        while not self._leaving.wait(_BEAT_SECONDS):
            try:
                os.utime(self._alive)
                self.check()
            except (LeaseLostError, FileNotFoundError):
                self.lost = True
                return
            except (OSError, ConfigError) as error:  # a file system that is away for a while
                logger.warning("%s: %s", self._alive, error)


def read_holder(root: Path) -> Holder | None:
    """Who holds the run folder; None if nobody ever did. Errors: ConfigError for a damaged lease.json."""
    try:
        try:
            text = (root / LEASE).read_text(encoding="utf-8")
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS: it was replaced between finding and opening it
                raise
            text = (root / LEASE).read_text(encoding="utf-8")
        return Holder(**json.loads(text))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{root / LEASE}: cannot be read ({error}); if nothing writes to this run, remove it"
        ) from error


def take(root: Path, *, takeover: bool = False, expiry_seconds: float = EXPIRY_SECONDS) -> Lease:
    """Become the writer of `root`, and take away what earlier writers left half-written.

    A later restart of the holder's Slurm job takes it at once. Anyone else needs the lock, and if the holder ran on
    another host (whose locks this one may not see), where the file system has no locks, or with takeover=True (the
    file system holds on to the lock of a node that is gone), the holder must not be seen to beat for expiry_seconds.
    Errors: ConfigError if another run writes there; LeaseLostError if a later restart of this very job does.
    """
    me = Holder.this_process()
    lock = _try_lock(root)
    deadline = time.monotonic() + LOCK_SECONDS
    while lock is None and not me.is_restart_of(read_holder(root)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        lock = _try_lock(root)
    held = read_holder(root)
    if held is not None and not me.is_restart_of(held) and not held.is_restart_of(me):
        _require_gone(root, held, lock, takeover=takeover, expiry_seconds=expiry_seconds)
    with _decision(root):
        now = read_holder(root)
        if now is not None and now.is_restart_of(me):
            raise LeaseLostError(f"{root}: {now} holds this run; this is only restart {me.restart_count} of that job")
        if now != held and not me.is_restart_of(now):
            raise ConfigError(f"run.dir={root}: {now} has just begun to write there; choose another folder")
        if lock is None:
            logger.warning("%s: taken over from %s, which still holds its lock; it is fenced off", root, now)
            lock = _new_lock(root, me)
        write_text(root / LEASE, json.dumps(asdict(me), indent=1) + "\n", token=me.token)
    _sweep(root)
    return Lease(root, me, lock)


def write_text(file: Path, text: str, *, token: str, lease: Lease | None = None) -> None:
    """Replace `file` by `text`: a temporary name with the token, fsync, the lease checked, rename, fsync."""
    temporary = file.with_name(f".{file.name}.{token}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if lease is not None:
            lease.check()
        temporary.rename(file)
        sync(file.parent)
    except OSError:
        if lease is not None:
            lease.check()  # the successor takes temporary files away: then that is the reason
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _require_gone(root: Path, held: Holder, lock: IO[str] | None, *, takeover: bool, expiry_seconds: float) -> None:
    alive = _alive(root, held)
    if lock is not None and (not alive.exists() or (held.host == os.uname().nodename and _is_locked(lock))):
        return
    if lock is None and not takeover:
        raise ConfigError(
            f"run.dir={root}: another run is writing there ({held}); stop it, or choose another folder. If its node is "
            "gone and the file system still holds its lock, run.takeover=true takes the folder once it does not beat"
        )
    logger.info("%s held this run and did not say goodbye; watching for %.0f s whether it lives", held, expiry_seconds)
    last, deadline = _mtime(alive), time.monotonic() + expiry_seconds
    while time.monotonic() < deadline:
        time.sleep(min(_POLL_SECONDS, expiry_seconds))
        # Compared with itself, never with this host's clock.
        if _mtime(alive) != last:
            raise ConfigError(f"run.dir={root}: {held} is alive and writing there; stop it, or choose another folder")


def _sweep(root: Path) -> None:
    """Take away every temporary name and sign of life of other holders. Their renames then fail."""
    for folder in (root, root / "checkpoints"):
        for path in folder.iterdir() if folder.is_dir() else ():
            if not _TEMPORARY.fullmatch(path.name) and not path.name.startswith((".alive-", ".writable-")):
                continue
            try:
                if path.is_symlink() or not path.is_dir():  # of a checkpoint on another disk the link goes
                    path.unlink(missing_ok=True)
                    continue
                # One atomic step before the long one: half a deleted folder must not be renamed either.
                swept = folder / f".swept-{secrets.token_hex(4)}"
                path.rename(swept)
                shutil.rmtree(swept, ignore_errors=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(f"{path}: what an earlier writer left cannot be moved away ({error})") from error
    for left in (*root.glob(".swept-*"), *root.glob("checkpoints/.swept-*")):
        shutil.rmtree(left, ignore_errors=True)


def _alive(root: Path, holder: Holder) -> Path:
    return root / f".alive-{holder.token}"


def _mtime(file: Path) -> int | None:
    try:
        with file.open("rb") as stream:  # NFS: opening asks the server; a stat may come from a cache, a minute old
            return os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _try_lock(root: Path) -> IO[str] | None:
    stream = (root / ".lock").open("a")
    # A successor puts another file in the place of a lock it could not get: only the one that bears the name counts.
    if _flock(stream) and os.path.samestat((root / ".lock").stat(), os.fstat(stream.fileno())):
        return stream
    stream.close()
    return None


def _new_lock(root: Path, me: Holder) -> IO[str]:
    temporary = root / f".lock.{me.token}.tmp"
    stream = temporary.open("w")
    _flock(stream)
    temporary.rename(root / ".lock")
    return stream


def _flock(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s: this file system has no locks (%s); only the lease keeps a second run out", stream.name, error
        )
    return True


def _is_locked(stream: IO[str]) -> bool:
    """Whether what `_flock` gave is a lock: on a file system without them it is not."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _decision(root: Path) -> Iterator[None]:
    """Alone between reading and replacing lease.json."""
    with (root / ".lease.lock").open("a") as stream:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _flock(stream):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"run.dir={root}: another run is taking it over at this moment; choose another folder"
                )
            time.sleep(_POLL_SECONDS)
        yield
