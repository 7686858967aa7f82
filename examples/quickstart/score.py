"""How well a Hugging Face folder foretells held-out text, by plain transformers: no code of the trainer takes part."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples.quickstart.progress import step
from megatron_synE.runtime.cpu_features import cpu_has_bf16

if TYPE_CHECKING:
    import torch

TOKENS_PER_BATCH = 4096  # about 100 MB of activations for 135M parameters; more gains nothing on two cores
LOGIT_ROWS = 512  # the logits of more rows at once only cost memory: 512 x 49,152 x 4 bytes = 100 MB


@dataclass(frozen=True)
class SetScore:
    """nll_sum: nats over `tokens` targets (a document's tokens after its first). text_bytes: whole documents, UTF-8."""

    name: str
    nll_sum: float
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll_sum / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nll_sum / math.log(2) / self.text_bytes


def pooled(name: str, scores: Sequence[SetScore]) -> SetScore:
    """All tokens of several sets as one."""
    return SetScore(
        name,
        math.fsum(score.nll_sum for score in scores),
        sum(score.tokens for score in scores),
        sum(score.text_bytes for score in scores),
    )


def set_name(path: Path) -> str:
    """`<language>/<source>/<topic>` of a file `.../<language>/<source>/<topic>.jsonl`."""
    return "/".join((*path.parts[-3:-1], path.stem))


def score_hf(
    hf_dir: Path, files: Sequence[Path], *, seq_length: int, dtype: "torch.dtype | None" = None
) -> list[SetScore]:
    """NLL of each JSONL file's documents, every document on its own, in the order of `files`.

    A document longer than seq_length is read in consecutive windows of seq_length targets, each starting afresh.
    dtype: of weights and activations; None takes bf16 where the CPU multiplies it in hardware, else fp32.
    Cost: for 135M parameters on two idle cores about 2,000 tokens/s in bf16 and 700 in fp32.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    chosen = dtype or (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    with step(f"scoring {len(files)} sets with {hf_dir.name}"), torch.inference_mode():
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=chosen, local_files_only=True)
        model.eval()  # type: ignore[no-untyped-call]
        texts = [[json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()] for file in files]
        windows: list[tuple[int, list[int]]] = []  # set index, token ids
        for index, documents in enumerate(texts):
            for ids in tokenizer(documents, add_special_tokens=False, verbose=False).input_ids:
                windows += [(index, ids[i : i + seq_length + 1]) for i in range(0, len(ids) - 1, seq_length)]
        nll, tokens = [0.0] * len(files), [0] * len(files)
        for batch in _batches(windows):
            for (index, ids), value in zip(batch, _nll(model, [ids for _, ids in batch]), strict=True):
                nll[index] += value
                tokens[index] += len(ids) - 1
    return [
        SetScore(set_name(file), nll[i], tokens[i], sum(len(text.encode()) for text in texts[i]))
        for i, file in enumerate(files)
    ]


def _batches(windows: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Windows of like length together: little padding."""
    batch: list[tuple[int, list[int]]] = []
    for window in sorted(windows, key=lambda window: len(window[1])):
        if batch and (len(batch) + 1) * len(window[1]) > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _nll(model: "torch.nn.Module", windows: list[list[int]]) -> list[float]:
    """Nats of each window's tokens after the first. Padding is on the right, where causal attention cannot see it."""
    import torch
    from torch.nn.functional import cross_entropy

    longest = max(map(len, windows))
    ids = torch.tensor([window + [0] * (longest - len(window)) for window in windows])  # [b, s + 1]
    lengths = torch.tensor([len(window) - 1 for window in windows])
    hidden = model.get_submodule("model")(ids[:, :-1], use_cache=False).last_hidden_state  # [b, s, h]
    is_target = torch.arange(longest - 1) < lengths[:, None]  # [b, s]
    rows, targets = hidden[is_target], ids[:, 1:][is_target]  # [targets, h], [targets]
    head = model.get_submodule("lm_head")
    losses = torch.cat(
        [
            cross_entropy(head(rows[i : i + LOGIT_ROWS]).float(), targets[i : i + LOGIT_ROWS], reduction="none")
            for i in range(0, len(rows), LOGIT_ROWS)
        ]
    )
    return [part.double().sum().item() for part in torch.split(losses, lengths.tolist())]
