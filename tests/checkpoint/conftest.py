"""Small random Llamas as transformers writes them, and process groups of one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MakeHf = Callable[..., tuple[Path, LlamaForCausalLM]]


@pytest.fixture
def make_hf(tmp_path: Path) -> MakeHf:
    """Save a random model as an HF folder; gives the folder and the model. Norms are not all ones."""
    count = 0

    def make(
        *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", seed: int = 0, **overrides: Any
    ) -> tuple[Path, LlamaForCausalLM]:
        nonlocal count
        count += 1
        settings: dict[str, Any] = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 131, "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        }  # fmt: skip
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model = model.to(dtype).eval()
        folder = tmp_path / f"hf{count}"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder, model

    return make


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """torch.distributed and megatron-core's groups for this process alone, as `syne train` has them."""
    from megatron_synE.alone import CPU
    from megatron_synE.config.schema import ParallelSection
    from megatron_synE.runtime.distributed import initialize, shut_down
    from megatron_synE.runtime.environment import ALONE

    starts_here = not torch.distributed.is_initialized()
    if starts_here:
        initialize(CPU, ALONE, ParallelSection(), seed=1)
    yield
    if starts_here:
        shut_down()
