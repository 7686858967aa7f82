"""Held-out loss per topic: one (document, NLL sum, tokens) row per document, the same at every layout.

Legend: t pairs of one micro-batch = micro_batch_size * seq_length; cp context-parallel ranks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_mixers.errors import ConfigError, DataError
from data_mixers.guard import ProbeAnswers
from data_mixers.manifest import DatasetManifest, SourceEntry
from megatron_synE.build import Model
from megatron_synE.data.batch import MicroBatch, micro_batch
from megatron_synE.data.indexed import IndexedFile
from megatron_synE.data.packing import Row, pack, padding_row
from megatron_synE.data.probe import Probe
from megatron_synE.model.packed_row import moved
from megatron_synE.runtime.distributed import broadcast_from_last_stage, context_part, sum_over_tokens
from megatron_synE.runtime.mcore import parallel_state

MIN_DOCUMENTS = 8
"""Of each set, whatever a pass may cost: below, the noise gate of a controller has next to nothing to look at."""
HIGHEST_NLL = 700.0
"""Nats per token; beyond it PPL is no float any more (log of the largest: 709.8)."""
_MICRO_BATCHES_PER_CALL = 8
"""A stop request is honoured between calls; a multiple of this would keep a pipeline fuller but answer later."""


@dataclass(frozen=True)
class ValidationSet:
    """The documents of one (language, source, topic)."""

    name: str
    language: str
    source: str
    topic: str
    first_document: int
    """Index of its first document among those of all sets."""
    num_documents: int
    text_bytes: int
    """UTF-8 bytes of the documents read; turns nats into bits per byte."""


@dataclass(frozen=True)
class SetResult:
    """Loss of one set. Unit: nats, over all tokens after each document's first, EOS included."""

    name: str
    nll_sum: float
    tokens: int
    text_bytes: int

    @property
    def nll(self) -> float:
        return self.nll_sum / self.tokens

    @property
    def ppl(self) -> float:
        return math.exp(self.nll)

    @property
    def bits_per_byte(self) -> float:
        return self.nll_sum / math.log(2) / self.text_bytes

    @property
    def row(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {
            "set": self.name,
            "nll": self.nll,
            "ppl": self.ppl,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
        }


@dataclass(frozen=True)
class DocumentLosses:
    """NLL sum and number of scored tokens of every held-out document, on every rank alike."""

    nll_sums: torch.Tensor
    """[documents] fp64."""
    tokens: torch.Tensor
    """[documents] int64."""


@dataclass(frozen=True)
class Validator:
    """All validation sets, packed once; `run` scores them with the current weights."""

    sets: tuple[ValidationSet, ...]
    rows: tuple[Row, ...]
    seq_length: int
    micro_batch_size: int
    device: torch.device
    num_documents: int = field(default=0)
    probe: Probe | None = None
    """Its documents are the last ones."""

    def run(self, model: Model, should_stop: Callable[[], bool]) -> DocumentLosses | None:
        """Score every document; None if should_stop() turned true between two groups of micro-batches.

        Collective: every rank; should_stop must answer alike on all ranks.
        """
        sums = torch.zeros(2, self.num_documents, dtype=torch.float64, device=self.device)
        for batches in self._groups(len(model.chunks) > 1):
            if should_stop():
                return None
            for owners, nll in _forward(model, batches, self.micro_batch_size * self.seq_length):
                kept = owners >= 0
                sums[0].index_add_(0, owners[kept], nll[kept].double())
                sums[1].index_add_(0, owners[kept], torch.ones_like(nll[kept], dtype=torch.float64))
        sum_over_tokens(sums)
        broadcast_from_last_stage(sums)
        sums = sums.cpu()
        return DocumentLosses(sums[0], sums[1].to(torch.int64))

    def per_set(self, losses: DocumentLosses) -> list[SetResult]:
        results = []
        for entry in self.sets:
            mine = slice(entry.first_document, entry.first_document + entry.num_documents)
            tokens = int(losses.tokens[mine].sum())
            results.append(SetResult(entry.name, float(losses.nll_sums[mine].sum()), tokens, entry.text_bytes))
        return results

    def answers(self, losses: DocumentLosses) -> ProbeAnswers | None:
        """To the probe; None without one."""
        if self.probe is None:
            return None
        return self.probe.answers(losses.nll_sums[self.num_documents - self.probe.num_documents :].tolist())

    def _groups(self, interleaved: bool) -> Iterator[list[tuple[torch.Tensor, MicroBatch]]]:
        """Groups of (document of each pair, micro-batch) for this data-parallel rank; as many groups on every rank."""
        rank = parallel_state.get_data_parallel_rank()
        size = parallel_state.get_data_parallel_world_size()
        pipeline = parallel_state.get_pipeline_model_parallel_world_size()
        per_call = max(pipeline, _MICRO_BATCHES_PER_CALL // pipeline * pipeline)
        rows_per_micro_batch = self.micro_batch_size * size
        count = -(-len(self.rows) // rows_per_micro_batch)
        if interleaved:
            count = -(-count // pipeline) * pipeline  # the interleaved schedule wants a multiple of the pipeline size
        padding = padding_row(self.seq_length)
        for first in range(0, count, per_call):
            group = []
            for index in range(first, min(first + per_call, count)):
                start = (index * size + rank) * self.micro_batch_size
                rows = list(self.rows[start : start + self.micro_batch_size])
                rows += [padding] * (self.micro_batch_size - len(rows))
                group.append(self._micro_batch(rows))
            yield group

    def _micro_batch(self, rows: Sequence[Row]) -> tuple[torch.Tensor, MicroBatch]:
        part = context_part()
        owners = torch.cat([row.documents for row in rows])  # [t], on the host
        bounds = [index * self.seq_length + start for index, row in enumerate(rows) for start in row.starts]
        batch = micro_batch(
            torch.cat([row.inputs for row in rows]).unsqueeze(0),  # [1, t]
            torch.cat([row.labels for row in rows]).unsqueeze(0),  # [1, t]
            (owners >= 0).float().unsqueeze(0),
            (*bounds, len(rows) * self.seq_length),
            device=self.device,
            part=part,
        )
        return moved(part.of(owners), self.device), batch


def build_validator(
    manifests: Sequence[DatasetManifest],
    *,
    seq_length: int,
    micro_batch_size: int,
    max_tokens_per_topic: int | None,
    max_tokens: int | None = None,
    device: torch.device,
    probe: Probe | None = None,
) -> Validator:
    """Read and pack the validation sources of these manifests, and the probe, whole.

    max_tokens: of a whole pass, divided evenly over the sets, each of which keeps MIN_DOCUMENTS documents; it counts
    where max_tokens_per_topic does not say otherwise.

    Errors: ConfigError if none has role validation, DataError for damaged files.
    """
    documents: list[np.ndarray] = []
    sets = []
    limit, min_documents = max_tokens_per_topic, 1
    if limit is None and max_tokens is not None:
        count = sum(source.role == "validation" for manifest in manifests for source in manifest.sources)
        limit, min_documents = max_tokens // max(1, count), MIN_DOCUMENTS
    for manifest in manifests:
        for source in manifest.sources:
            if source.role != "validation":
                continue
            found, text_bytes = _documents(
                manifest.folder, source, limit, min_documents=min_documents, vocab_size=manifest.tokenizer.vocab_size
            )
            if all(len(document) < 2 for document in found):
                raise DataError(
                    f"{manifest.folder}: {source.name} has no document of two tokens, so nothing can be scored; "
                    "preprocess it again with more text, or leave it out"
                )
            sets.append(
                ValidationSet(
                    name=source.name,
                    language=source.language,
                    source=source.source,
                    topic=source.topic,
                    first_document=len(documents),
                    num_documents=len(found),
                    text_bytes=text_bytes,
                )
            )
            documents += found
    if not sets:
        raise ConfigError("validation.manifests: no source with role validation in them; preprocess with --holdout N")
    if probe is not None:
        documents += [np.array(choice) for item in probe.items for choice in item.choices]
    rows = pack(documents, seq_length=seq_length)
    return Validator(tuple(sets), tuple(rows), seq_length, micro_batch_size, device, len(documents), probe)


def _check_ids(file: IndexedFile, vocab_size: int) -> None:
    """Held-out files are small: looked at whole, once. Padded rows of the embedding would take a wrong id silently."""
    tokens = file.tokens(0, file.num_tokens)
    if file.num_tokens and (int(tokens.max()) >= vocab_size or int(tokens.min()) < 0):
        raise DataError(
            f"{file.bin_path}: token ids from {int(tokens.min())} to {int(tokens.max())}, outside the vocabulary of "
            f"{vocab_size}; the file is damaged or of another tokenizer: preprocess again"
        )


def _documents(
    folder: Path, source: SourceEntry, max_tokens: int | None, *, min_documents: int, vocab_size: int
) -> tuple[list[np.ndarray], int]:
    """The first whole documents up to max_tokens, and the UTF-8 bytes of their texts (the shard's share, when cut)."""
    found: list[np.ndarray] = []
    taken = 0
    text_bytes = 0.0
    for shard in source.shards:
        file = IndexedFile(folder / shard.prefix)
        _check_ids(file, vocab_size)
        starts = file.document_ranges().tolist()
        in_shard = 0
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            if max_tokens is not None and len(found) >= min_documents and taken + stop - start > max_tokens:
                break
            found.append(np.array(file.tokens(start, stop)))
            taken += stop - start
            in_shard += stop - start
        text_bytes += shard.text_bytes * in_shard / max(1, file.num_tokens)
    return found, round(text_bytes)


def _forward(
    model: Model, batches: Sequence[tuple[torch.Tensor, MicroBatch]], num_pairs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(document of each pair [t / cp], NLL [t / cp]) per micro-batch, on the last pipeline stage; nothing elsewhere."""

    def forward_step(iterator: Iterator[tuple[torch.Tensor, MicroBatch]], chunk: Any) -> tuple[Any, Callable[..., Any]]:
        owners, batch = next(iterator)
        output = chunk(batch.input_ids, None, None, labels=batch.labels, packed_seq_params=batch.row)

        def loss(nll: torch.Tensor) -> tuple[Any, Any, dict[str, torch.Tensor]]:
            # The schedule may scale what is returned in place: hand it a zero and keep the losses apart.
            zero = nll.sum() * 0.0
            return zero, torch.zeros((), dtype=torch.int32, device=nll.device), {"owners": owners, "nll": nll.view(-1)}

        return output, loss

    with torch.no_grad():
        outputs = model.run(forward_step, batches, row=num_pairs, forward_only=True)
    for output in outputs:
        yield output["owners"], output["nll"]
