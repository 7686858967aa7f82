"""One job of a study: its run in a process of its own, and what it measured; done again only if it was not finished.

A fork server has imported torch and megatron-core, so that a run of seconds does not begin with a start of seconds.
"""

import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter

from data_mixers.atomic import write_atomic
from data_mixers.errors import DataError, UserError
from data_mixers.file_version import check_version
from megatron_synE.config.load import dump_yaml
from megatron_synE.exit_codes import FINISHED
from tools.data.stage import Report, end_with_parent
from tools.surrogate.arms import Job
from tools.surrogate.outcome import Measured, read_run

PRELOADED = ["megatron_synE.runtime.mcore", "megatron_synE.trainer", "megatron_synE.start", "megatron_synE.train"]
SCHEMA_VERSION = 1  # of result.json
AGAIN = "remove it, and its run is read again"
LAST_LINES = 5  # of a log, in a message
CONFIG, LOG, RESULT = "run.yaml", "log.txt", "result.json"


def finished(arms: Path, job: Job) -> Measured | None:
    """What the job measured, if it is done. Errors: DataError for a damaged file."""
    path = arms / job.folder / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_version(content, understood=SCHEMA_VERSION, file=path, cure=AGAIN, fault=DataError, absent=1)
        return TypeAdapter(Measured).validate_python(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's is a ValueError
        raise DataError(f"{path} cannot be read ({error}); {AGAIN}") from error


def do_job(
    jobs: Sequence[Job], arms: Path, nproc: int | None, keeps_checkpoints: bool, number: int, report: Report
) -> dict[str, Any]:
    """Train job `number` to its end, from its newest checkpoint where there is one, and keep what it measured.

    Errors: DataError with the run's last words if it does not end well.
    """
    job = jobs[number]
    folder, run = arms / job.folder, arms / job.folder / "run"
    measured = finished(arms, job)
    if measured is None:
        folder.mkdir(parents=True, exist_ok=True)
        tree = job.config | {"run": job.config["run"] | {"dir": str(run)}}
        write_atomic(folder / CONFIG, dump_yaml(tree).encode())
        code = _trained(folder, nproc)
        if code != FINISHED:
            raise DataError(
                f"{job.arm}, seed {job.seed}: ended with exit code {code} ({_last_words(folder / LOG)}); its log is "
                f"{folder / LOG}; the same command goes on from here"
            )
        batch = job.config["training"]["global_batch_size"]
        measured = read_run(run, arm=job.arm, seed=job.seed, global_batch_size=batch)
        write_atomic(folder / RESULT, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(measured)}).encode())
    if not keeps_checkpoints:
        drop_checkpoints(arms, job)
    report(job.tokens)
    return {"arm": job.arm, "seed": job.seed}


def drop_checkpoints(arms: Path, job: Job) -> None:
    """Of a finished job only what it measured stays."""
    shutil.rmtree(arms / job.folder / "run" / "checkpoints", ignore_errors=True)


def _trained(folder: Path, nproc: int | None) -> int:
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_train, args=(folder, nproc))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


def _train(folder: Path, nproc: int | None) -> NoReturn:
    """The child: `syne train`, its output in the log, its exit code the process's."""
    from megatron_synE.train import main

    threading.Thread(target=end_with_parent, daemon=True).start()
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = main(folder / CONFIG, nproc=nproc)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except BaseException:  # noqa: BLE001  # as an interpreter does; the parent reads it in the log
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log"
    return " / ".join(line for line in lines[-LAST_LINES:] if line.strip()) or "an empty log"
