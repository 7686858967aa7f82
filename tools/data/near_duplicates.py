"""Near-duplicates over all tasks of a call: signatures of each task, bands, clusters, and what they say of a document.

    sign (in any stage, a task at a time) ─ find_near ─ near_verdicts (a task at a time)
Of a cluster the first document in input order stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import write_atomic
from tools.data.calls import Call
from tools.data.minhash import cluster, match_band, node, similarity, write_signatures
from tools.data.rules import NearDuplicates
from tools.data.selection import SelectionTask, Verdict
from tools.data.stage import Report
from tools.data.units import Hashes

SIGNATURES, PAIRS = "signatures", "pairs"


@dataclass(frozen=True)
class NearWork:
    folder: Path

    @property
    def duplicates(self) -> Path:
        return self.folder / "near.duplicates"

    def of_task(self, task: int, kind: str) -> Path:
        return self.folder / "examined" / f"{task:07d}.{kind}"

    def keep(self, task: int, kind: str, content: bytes) -> None:
        """What later stages want to know of a task's documents."""
        target = self.of_task(task, kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content)

    def keep_places(self, task: int, places: Sequence[int]) -> None:
        """Where each document of the task lies in its file, for what duplicates say of the kept one."""
        self.keep(task, "places", np.array(places, dtype="<u8").tobytes())


def sign(work: NearWork, documents: Iterable[Hashes | None], task: int, settings: NearDuplicates) -> None:
    """Write the signatures of a task's documents, in order; None: the document is not compared."""
    work.keep(task, "sketches", write_signatures(documents, work.folder / SIGNATURES, task, settings).tobytes())


def find_near(call: Call, work: NearWork, settings: NearDuplicates | None) -> None:
    """The clusters of all signed documents; settings None: there are none."""
    if settings is None:
        write_atomic(work.duplicates, b"")
        return
    match = partial(_match, work, len(call.tasks), settings)
    call.run("near-duplicates", match, folder="bands", sizes=(1,) * settings.num_bands, unit="bands", scale=1.0)
    write_atomic(work.duplicates, cluster(work.folder / PAIRS).astype("<i8").tobytes())


def _match(work: NearWork, num_tasks: int, settings: NearDuplicates, band: int, report: Report) -> None:
    match_band(work.folder / SIGNATURES, work.folder / PAIRS, band, num_tasks, settings)
    report(1)


def near_verdicts(work: NearWork, items: Sequence[SelectionTask], index: int) -> dict[int, Verdict]:
    """By document number: all of the task but the first ones of their clusters."""
    found = {}
    for document, first in pairs_of_task(work.duplicates, index).items():
        value = round(similarity(_sketch(work, index, document), _sketch(work, *divmod(first, 1 << 32))), 4)
        found[document] = Verdict(
            reason="near_duplicate", value=value, limit=None, matched=place_of(work, items, first)
        )
    return found


def pairs_of_task(path: Path, index: int) -> dict[int, int]:
    """Document number -> node of the one that is kept; `path` holds such pairs of nodes, sorted."""
    if not path.stat().st_size:
        return {}
    pairs = np.memmap(path, dtype="<i8", mode="r").reshape(-1, 2)
    start, stop = np.searchsorted(pairs[:, 0], [node(index, 0), node(index + 1, 0)])
    return {int(document) - node(index, 0): int(first) for document, first in pairs[start:stop]}


def place_of(work: NearWork, items: Sequence[SelectionTask], kept: int) -> str:
    """Where a document lies, as the ids of documents without their own say it, with the whole path."""
    task, number = divmod(kept, 1 << 32)
    return f"{items[task].task.path}:{int(_mapped(work.of_task(task, 'places'), '<u8')[number])}"


def forget_maps() -> None:
    """Before a task reads what another call may have replaced, and before the folder is removed."""
    _mapped.cache_clear()


def _sketch(work: NearWork, task: int, number: int) -> npt.NDArray[np.uint8]:
    num_documents = len(_mapped(work.of_task(task, "places"), "<u8"))
    return np.array(_mapped(work.of_task(task, "sketches"), "|u1").reshape(num_documents, -1)[number])


@lru_cache(maxsize=256)  # maps held open: duplicates point anywhere, mostly near
def _mapped(path: Path, dtype: str) -> npt.NDArray[np.integer]:
    return np.memmap(path, dtype=dtype, mode="r")
