"""Is an HF folder the same model as a checkpoint: tensors, config, and logits of two implementations: `syne verify`."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from megatron_synE.checkpoint import layout
from megatron_synE.checkpoint.hf_verify import verify_folder
from megatron_synE.exit_codes import CheckpointError
from megatron_synE.model.llama import LlamaArchitecture, architecture_from_hf, read_hf_config

NUM_POSITIONS = 512
TOLERANCE = 2e-5
"""Largest difference, as a share of the largest logit, or of 5 if that is less. Ours: the same operations in fp32 stay
ten times below it (often at nought); the wrong rotary scaling, a swapped head or a norm of the wrong layer are far
above. Sums in another order can reach it on a model's worst token, so both sides add in the same (build_reference)."""
_SMALLEST_SCALE = 5.0


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    num_tensors: int
    num_positions: int
    """Tokens whose logits were compared; 0: none."""
    last_position: int
    max_logit_difference: float
    why_no_logits: str | None
    seconds: float

    def logits_summary(self) -> str:
        if not self.num_positions:
            return f"logits not compared ({self.why_no_logits})"
        return (
            f"logits within {self.max_logit_difference:.1e} of transformers' at {self.num_positions} positions "
            f"up to {self.last_position}"
        )

    def summary(self) -> str:
        return (
            f"{self.num_tensors} tensors equal bit for bit, config equal, {self.logits_summary()}; {self.seconds:.1f} s"
        )


def verify(
    hf: Path, checkpoint: Path, *, tensors: bool = True, logits: bool = True, positions: int = NUM_POSITIONS
) -> VerifyReport:
    """Compare an HF folder with an iter_* folder (or the newest in a run).

    tensors: False where they were just compared while converting.
    logits: also run transformers on the folder and our own model on the checkpoint, in fp32, one after the other.
    positions: tokens in that run, spread evenly over the model's whole context.
    Errors: CheckpointError listing the first tensors or fields that differ, or the largest difference of logits.
    Cost: tensors pass in blocks; logits need the model once in fp32, and are left out with a reason if it does not fit.
    """
    started = time.perf_counter()
    folder = layout.resolve_checkpoint(checkpoint)
    num_tensors = verify_folder(hf, folder) if tensors else 0
    architecture = architecture_from_hf(read_hf_config(folder), where=str(folder / "config.json"))
    why_no_logits = _memory_shortage(architecture, positions) if logits else "not asked for"
    difference, last = 0.0, 0
    if why_no_logits is None:
        tokens, places = _probe(architecture, positions)
        last = int(places[-1])
        theirs = _logits_of_transformers(hf, tokens, places)
        difference = _compare(theirs, _our_logits(architecture, folder, tokens, places), hf)
    return VerifyReport(
        num_tensors=num_tensors,
        num_positions=0 if why_no_logits else positions,
        last_position=last,
        max_logit_difference=difference,
        why_no_logits=why_no_logits,
        seconds=time.perf_counter() - started,
    )


def _memory_shortage(architecture: LlamaArchitecture, positions: int) -> str | None:
    # fp32 weights once, and the logits of both models beside them.
    needed = 4 * architecture.num_parameters + 3 * 4 * positions * architecture.vocab_size
    available = psutil.virtual_memory().available
    if needed < available:
        return None
    return f"they need {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} GB are free"


def _probe(architecture: LlamaArchitecture, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens [s], and their places [s], ascending up to the last of the context.

    Distances between places are what rotary embeddings see, so a few tokens far apart test what a long text would.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, architecture.vocab_size, (positions,), generator=generator)
    step = max(1, (architecture.max_position_embeddings - 1) // max(positions - 1, 1))
    return tokens, torch.arange(positions) * step


@torch.no_grad()
def _logits_of_transformers(hf: Path, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[s, vocab_size] fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, trust_remote_code=False)
    model.train(False)
    row = tokens.unsqueeze(0)
    # Without a mask transformers would take gaps between places for borders of documents.
    out = model(row, position_ids=places.unsqueeze(0), attention_mask=torch.ones_like(row), use_cache=False)
    logits: torch.Tensor = out.logits.squeeze(0)
    return logits


def _our_logits(
    architecture: LlamaArchitecture, checkpoint: Path, tokens: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """[s, vocab_size] fp32."""
    from megatron_synE.alone import build_reference, logits

    return logits(build_reference(architecture, checkpoint, seq_length=len(tokens)), tokens, positions=places)


def _compare(theirs: torch.Tensor, ours: torch.Tensor, hf: Path) -> float:
    difference = (theirs - ours).abs().amax(dim=-1)
    largest = float(difference.max())
    allowed = TOLERANCE * max(float(theirs.abs().max()), _SMALLEST_SCALE)
    if not largest <= allowed:
        first = int((~(difference <= allowed)).nonzero()[0])
        raise CheckpointError(
            f"{hf}: its logits in transformers differ from ours by up to {largest:.2e} (allowed {allowed:.1e}), "
            f"first at token {first} of {len(difference)}"
        )
    return largest
