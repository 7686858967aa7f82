"""NLL of many documents in one process: packed forward passes without gradients, no padding, logits in pieces.

documents ─ windows best-fit into rows ─ decoder ─ head and cross-entropy on pieces ─> document sums

Legend: t pairs of one row ≤ micro_batch_size * seq_length, k scored pairs among them, h hidden, v vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from megatron_synE.data.batch import micro_batch
from megatron_synE.data.scoring_rows import Window, rows_of
from megatron_synE.model.gpt import LlamaModel
from megatron_synE.model.head import linear_cross_entropy, vocabulary_part
from megatron_synE.runtime.device import Device


@dataclass(frozen=True)
class DocumentScores:
    """NLL of each document, in the order given. Unit: nats, over all tokens after each document's first."""

    nll_sums: npt.NDArray[np.float64]
    num_tokens: npt.NDArray[np.int64]


class Scorer:
    """A model from `build_alone`, ready to score. Takes the model's head off: use it for nothing else afterwards."""

    def __init__(
        self, model: LlamaModel, device: Device, *, seq_length: int, overlap: int, micro_batch_size: int = 1
    ) -> None:
        self._model, self._device = model, device.torch_device
        self._head = model.take_off_head()
        self._part = vocabulary_part(len(self._head), vocab_size=len(self._head))
        self._seq_length, self._overlap = seq_length, overlap
        self._row_pairs = seq_length * micro_batch_size

    @torch.inference_mode()
    def score(
        self, documents: Sequence[npt.NDArray[np.integer]], on_tokens: Callable[[int], None] = lambda count: None
    ) -> DocumentScores:
        """Score documents, each on its own: what lies beside it in a row changes nothing but rounding.

        on_tokens: hears how many tokens of the documents each forward pass has scored.
        Cost: memory for one row's activations, and 4 bytes per token given.
        """
        lengths = [len(document) for document in documents]
        rows = rows_of(lengths, seq_length=self._seq_length, overlap=self._overlap, row_pairs=self._row_pairs)
        pieces: list[torch.Tensor] = []
        for row in rows:
            pieces.append(self._row_nll(row, documents))
            on_tokens(sum(window.num_pairs - window.num_context for window in row))
        counts = np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0)
        sums = np.zeros(len(documents), dtype=np.float64)
        if pieces:
            # Summed on the host in one order: a sum by atomics on a GPU would differ from run to run.
            nll = torch.cat(pieces).cpu().numpy().astype(np.float64)
            windows = [window for row in rows for window in row]
            scored = np.array([window.num_pairs - window.num_context for window in windows])
            parts = np.add.reduceat(nll, np.cumsum(scored) - scored)
            np.add.at(sums, [window.document for window in windows], parts)
        return DocumentScores(sums, counts)

    def _row_nll(self, row: Sequence[Window], documents: Sequence[npt.NDArray[np.integer]]) -> torch.Tensor:
        """[k] fp32: NLL of the row's scored pairs, in order."""
        tokens = [documents[w.document][w.start : w.start + w.num_pairs + 1].astype(np.int64) for w in row]
        inputs = torch.from_numpy(np.concatenate([piece[:-1] for piece in tokens]))  # [t]
        labels = torch.from_numpy(np.concatenate([piece[1:] for piece in tokens]))  # [t]
        is_scored = torch.ones(len(inputs), dtype=torch.bool)
        bounds = [0]
        for window in row:
            is_scored[bounds[-1] : bounds[-1] + window.num_context] = False
            bounds.append(bounds[-1] + window.num_pairs)
        kept = is_scored.nonzero().squeeze(1)  # [k], found on the host
        mask = is_scored.unsqueeze(0).float()
        batch = micro_batch(inputs.unsqueeze(0), labels.unsqueeze(0), mask, tuple(bounds), device=self._device)
        hidden = self._model(batch.input_ids, None, None, packed_seq_params=batch.row).squeeze(1)  # [t, h]
        labels = batch.labels.squeeze(0)  # [t]
        if len(kept) < len(is_scored):
            kept = kept.to(self._device, non_blocking=True)
            hidden, labels = hidden[kept], labels[kept]  # [k, h], [k]
        return linear_cross_entropy(hidden, self._head, labels, self._part)
