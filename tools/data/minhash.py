"""MinHash through datatrove's blocks: its signatures and its external match of bands; grams and clusters are ours.

Ours, because datatrove cuts Chinese into words with spaCy and hashes each gram in Python (tools/data/units.py gives the
grams of a page as one array), and because its clusters keep the member that happened to grow the largest set, where we
keep the first in input order.
"""

import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_mixers.atomic import sync
from data_mixers.errors import ConfigError, DataError
from tools.data.rules import NearDuplicates
from tools.data.units import Hashes, ngram_hashes

BLOCK = 8192  # grams hashed at once: 15 MB of numbers, however long the text is
PAIRS_AT_ONCE = 1 << 22  # read: 64 MB

Sketch = npt.NDArray[np.uint8]
"""One byte of every hash of a document's signature, [num_bands * hashes_per_band]."""


def write_signatures(
    documents: Iterable[Hashes | None], folder: Path, task: int, settings: NearDuplicates
) -> npt.NDArray[np.uint8]:
    """Write the task's bands of sorted signatures into `folder`; returns a sketch per document.

    documents: hashes of each document's units in order; None, or fewer units than a gram has: no signature.
    """
    sketches: list[Sketch] = []

    def numbered() -> Iterator[SimpleNamespace]:
        for hashes in documents:
            step.sketch = np.zeros(settings.num_bands * settings.hashes_per_band, dtype=np.uint8)
            yield SimpleNamespace(text=hashes)
            sketches.append(step.sketch)

    with _written_aside(folder) as own:
        step = _signature_step(own, settings)
        step.run(numbered(), rank=task)
    return np.array(sketches, dtype=np.uint8).reshape(-1, settings.num_bands * settings.hashes_per_band)


def match_band(folder: Path, out: Path, band: int, num_tasks: int, settings: NearDuplicates) -> None:
    """Write the pairs of documents that agree in all hashes of a band: <out>/<band>_00.dups."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    _allow_open_files(num_tasks + 64)
    with _written_aside(out) as own:
        step = MinhashDedupBuckets(str(folder), str(own), config=_config(settings), lines_to_buffer=1024)
        step.run(None, rank=band, world_size=settings.num_bands)


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, whose files go there at the end.

    datatrove writes in place: an older copy of a requeued array element would cut off what the newer one has finished.
    """
    with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as own:
        yield Path(own)
        for file in (path for path in Path(own).rglob("*") if path.is_file()):
            target = folder / file.relative_to(own)
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            file.replace(target)


def cluster(folder: Path) -> npt.NDArray[np.int64]:
    """(document, first document of its cluster) of all but the first ones, [n, 2], sorted; node numbers as `node`.

    Memory: about 200 bytes a document that goes, in however many bands it agrees.
    """
    found = np.zeros((0, 2), dtype=np.int64)
    for path in sorted(folder.glob("*.dups")):
        new = [found]  # most pairs agree in several bands: of later ones only what joins two clusters is held
        with path.open("rb") as stream:
            while len(rows := np.fromfile(stream, dtype="<u4", count=4 * PAIRS_AT_ONCE).reshape(-1, 4)):
                ends = [_first(found, node(rows[:, at].astype(np.int64), rows[:, at + 1])) for at in (0, 2)]
                links = np.stack(ends, axis=1)
                new.append(links[links[:, 0] != links[:, 1]])
        if any(map(len, new[1:])):
            found = _joined(np.concatenate(new))
    return found


def _first(found: npt.NDArray[np.int64], nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first document of each one's cluster; itself, if it is in none so far."""
    if not len(found):
        return nodes
    at = np.minimum(np.searchsorted(found[:, 0], nodes), len(found) - 1)
    return np.where(found[at, 0] == nodes, found[at, 1], nodes)


def _joined(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """As `cluster`, of pairs of nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = np.unique(ends)
    one, other = (np.searchsorted(nodes, ends[:, at]).astype(np.int32) for at in (0, 1))
    links = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(links, directed=False)
    _, smallest = np.unique(component, return_index=True)
    firsts = smallest[component]
    later = firsts != np.arange(len(nodes))
    return np.stack([nodes[later], nodes[firsts[later]]], axis=1)


def node(task: npt.NDArray[np.int64] | int, number: npt.NDArray[np.int64] | int) -> Any:
    """One number for document `number` of `task`; they are ordered as the input is."""
    return task * (1 << 32) + number


def similarity(a: Sketch, b: Sketch) -> float:
    """The Jaccard similarity of two documents' grams that their sketches suggest, standard error at most 0.05.

    Source: b-bit minwise hashing, arXiv 0910.3349: of 8 bits, 1/256 agree by chance.
    """
    agree = float(np.mean(a == b))
    return max(0.0, (agree - 1 / 256) / (1 - 1 / 256))


def _config(settings: NearDuplicates) -> Any:
    try:
        from datatrove.pipeline.dedup.minhash import MinhashConfig
        from datatrove.utils.hashing import HashConfig
        from datatrove.utils.logging import logger
    except ImportError as error:
        raise ConfigError(
            "near-duplicates need datatrove: pip install 'megatron-synE[data]', or pass --no-near-duplicates"
        ) from error
    logger.disable("datatrove")  # it reports every band of every task
    return MinhashConfig(
        n_grams=settings.ngram,
        num_buckets=settings.num_bands,
        hashes_per_bucket=settings.hashes_per_band,
        seed=settings.seed,
        hash_config=HashConfig(precision=32),
    )


def _signature_step(folder: Path, settings: NearDuplicates) -> Any:
    config = _config(settings)
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    class NoWords(WordTokenizer):
        """datatrove asks for one; the units are there already."""

        word_tokenize = sent_tokenize = span_tokenize = None

    class UnitSignature(MinhashDedupSignature):
        sketch: Sketch

        def get_shingles(self, text: Hashes | None) -> Hashes:
            return ngram_hashes(np.zeros(0, dtype=np.uint64) if text is None else text, settings.ngram).reshape(-1, 1)

        def get_signature(self, shingles: Hashes) -> list[list[int]]:
            compute: Callable[[Hashes], list[list[int]]] = super().get_signature
            blocks = [compute(shingles[start : start + BLOCK]) for start in range(0, len(shingles), BLOCK)]
            smallest = np.min(np.array(blocks, dtype=np.uint32), axis=0)  # [num_bands, hashes_per_band]
            self.sketch = (smallest & 0xFF).astype(np.uint8).reshape(-1)
            signature: list[list[int]] = smallest.tolist()
            return signature

    return UnitSignature(str(folder), config=config, language=NoWords())


def _allow_open_files(count: int) -> None:
    """datatrove opens a band of every task at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise DataError(f"{count} files must be open at once and the limit is {hard}: raise it with ulimit -Hn")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
