"""Packed scores are those of transformers on one document at a time, whatever the lengths and the model."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_synE.alone import CPU, build_alone
from megatron_synE.model.head_sizes import CHUNK_ELEMENTS
from megatron_synE.model.llama import architecture_from_hf, read_hf_config
from megatron_synE.scoring import Scorer
from tests import tiny

TOLERANCE = 1e-4
"""Nats per token. fp32 sums in another order differ by some 1e-6."""
SEQ_LENGTH, OVERLAP = 64, 24
MODELS: dict[str, dict[str, Any]] = {
    "grouped-query attention": {},
    "tied": {"tie_word_embeddings": True},
    "vocabulary with padded rows": {"vocab_size": 251},
}
MIXES = {
    "all short": [2, 3, 5, 4, 9, 2, 7, 8, 3, 3, 2, 6] * 4,
    "log-normal": np.exp(np.random.default_rng(0).normal(3.2, 1.0, size=30)).astype(int).clip(2, 300).tolist(),
    "few long": [500, 331],
    "borders of the context": [1, 64, 65, 66, 128, 129, 130, 105, 106, 0, 1],
}


def one_by_one(hf: Path, documents: list[npt.NDArray[np.int32]]) -> list[float]:
    """NLL per document by transformers, in windows worked out here: a token sees OVERLAP tokens or its whole document.

    The window that scores target i begins at 0 while i ≤ SEQ_LENGTH; then every window scores SEQ_LENGTH - OVERLAP
    targets more.
    """
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    sums = []
    for document in documents:
        total, target = 0.0, 1
        while target < len(document):
            first_input = 0 if target == 1 else target - 1 - OVERLAP
            stop = min(first_input + SEQ_LENGTH + 1, len(document))
            window = torch.from_numpy(document[first_input:stop].astype(np.int64))
            with torch.no_grad():
                logits = model(window[:-1].unsqueeze(0)).logits[0].double()
            log_probabilities = torch.log_softmax(logits, dim=-1)
            for place in range(target, stop):
                total -= float(log_probabilities[place - 1 - first_input, document[place]])
            target = stop
        sums.append(total)
    return sums


@pytest.mark.parametrize("name", MODELS)
def test_packed_scores_equal_transformers_one_by_one(tmp_path: Path, name: str) -> None:
    hf = tiny.hf_folder(tmp_path, num_hidden_layers=2, **MODELS[name])
    architecture = architecture_from_hf(read_hf_config(hf), where=str(hf))
    model = build_alone(architecture, hf, seq_length=SEQ_LENGTH, precision="fp32", device=CPU)
    scorer = Scorer(model, CPU, seq_length=SEQ_LENGTH, overlap=OVERLAP, micro_batch_size=2)
    random = np.random.default_rng(1)
    for mix, lengths in MIXES.items():
        documents = [random.integers(3, 251, size=length).astype(np.int32) for length in lengths]
        heard: list[int] = []
        scores = scorer.score(documents, heard.append)
        assert scores.num_tokens.tolist() == [max(0, length - 1) for length in lengths]
        assert sum(heard) == scores.num_tokens.sum()
        wanted = np.array(one_by_one(hf, documents))
        per_token = np.abs(scores.nll_sums - wanted) / np.maximum(scores.num_tokens, 1)
        assert per_token.max() <= TOLERANCE, mix
        if mix == "few long":  # the check can fail: without the overlap the tokens behind a cut score otherwise
            none = Scorer(model, CPU, seq_length=SEQ_LENGTH, overlap=0).score(documents)
            assert (np.abs(none.nll_sums - wanted) / none.num_tokens).max() > 10 * TOLERANCE


def test_logits_in_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny.hf_folder(tmp_path, num_hidden_layers=1)
    architecture = architecture_from_hf(read_hf_config(hf), where=str(hf))
    model = build_alone(architecture, hf, seq_length=256, precision="fp32", device=CPU)
    documents = [np.arange(3, 250, dtype=np.int32)]
    whole = Scorer(model, CPU, seq_length=256, overlap=0).score(documents)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 1)  # a token at a time
    pieces = Scorer(model, CPU, seq_length=256, overlap=0).score(documents)
    assert pieces.nll_sums == pytest.approx(whole.nll_sums, rel=1e-6)
