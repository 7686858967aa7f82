"""megatron-core's GPTModel as a Llama: rotary angles once per micro-batch, a head that never has whole logits.

Legend: t tokens of one packed row, v vocabulary rows on this TP rank (padding included).
"""

from typing import Any

import torch

from megatron_synE.model.head import OutputLayer
from megatron_synE.model.llama import LlamaArchitecture
from megatron_synE.model.packed_row import PackedRow
from megatron_synE.model.rope import cos_sin, inverse_frequencies
from megatron_synE.runtime.mcore import GPTModel, TransformerBlockSubmodules, TransformerConfig, tensor_parallel


class LlamaModel(GPTModel):
    """One pipeline stage (or virtual chunk) of a Llama."""

    def __init__(
        self,
        config: TransformerConfig,
        architecture: LlamaArchitecture,
        spec: TransformerBlockSubmodules,
        *,
        padded_vocab_size: int,
        max_sequence_length: int,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ) -> None:
        super().__init__(
            config,
            spec,
            vocab_size=padded_vocab_size,
            max_sequence_length=max_sequence_length,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=architecture.tied,
            position_embedding_type="none",
            vp_stage=vp_stage,
        )
        self.architecture = architecture
        if post_process:
            # GPTModel names the class of its output layer; ours is that one, and gives losses too.
            self.output_layer.__class__ = OutputLayer
            self.output_layer.vocab_size = architecture.vocab_size
        self._dtype = config.params_dtype
        # Not a buffer: Float16Module casts buffers to bf16, which ruins angles at long positions.
        self._inverse_frequencies = inverse_frequencies(architecture)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
        loss_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """input_ids and labels [1, t]. Last stage: NLL per token [1, t] in fp32, or logits [1, t, v] without labels.

        loss_mask [1, t] is multiplied into the NLL: who takes its plain sum has both gradients of the head for free.
        """
        assert packed_seq_params is not None
        if packed_seq_params.rotary_cos is None:
            positions = packed_seq_params.positions
            if self._inverse_frequencies.device != positions.device:
                self._inverse_frequencies = self._inverse_frequencies.to(positions.device)
            packed_seq_params.rotary_cos, packed_seq_params.rotary_sin = cos_sin(
                self._inverse_frequencies, positions, self._dtype
            )
        return super().forward(  # type: ignore[no-any-return]
            input_ids, position_ids, attention_mask, labels=labels, packed_seq_params=packed_seq_params,
            loss_mask=loss_mask, **kwargs,
        )  # fmt: skip

    def _postprocess(self, **parts: Any) -> torch.Tensor:
        """megatron-core's last act of a forward pass; with labels the head's own loss instead of whole logits."""
        if not self.post_process or parts["labels"] is None:
            return super()._postprocess(**parts)  # type: ignore[no-any-return]
        weight = self.shared_embedding_or_output_weight() if self.architecture.tied else None
        return self.output_layer(  # type: ignore[no-any-return]
            parts["hidden_states"], weight, labels=parts["labels"], token_weights=parts["loss_mask"]
        )

    def take_off_head(self) -> torch.Tensor:
        """Make forward give the normalised hidden states [t, 1, h]; returns the head's weight [vocab_size, h].

        For who wants the head's output in pieces, never whole. Without tensor or pipeline parallelism only.
        """
        self.post_process = False  # megatron-core's GPTModel looks at it once, before the head
        weight = self.shared_embedding_or_output_weight() if self.architecture.tied else self.output_layer.weight
        return weight[: self.architecture.vocab_size]  # type: ignore[no-any-return]

    def gather_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """[1, t, v] on each TP rank -> [1, t, vocab_size] without padding. Collective: the TP group."""
        whole = tensor_parallel.gather_from_tensor_model_parallel_region(logits)
        return whole[..., : self.architecture.vocab_size]  # type: ignore[no-any-return]
