"""Llama architectures by name, so that a plan needs no weights; each with the page its figures stand on."""

from dataclasses import replace

from megatron_synE.model.llama import LlamaArchitecture, RopeScaling

# config.json of the model's Hugging Face repository; Llama 3: also table 3 of arXiv 2407.21783.
_LLAMA3_8B = LlamaArchitecture(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    kv_channels=128,
    vocab_size=128256,
    max_position_embeddings=8192,
    rotary_base=500000.0,
    layernorm_epsilon=1e-5,
)

# Llama 3.2's long-context stretch: 8192 pre-training positions, factor 32.
_LLAMA32_ROPE = RopeScaling(
    rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)

ARCHITECTURES: dict[str, LlamaArchitecture] = {
    # meta-llama/Meta-Llama-3-8B config.json
    "llama3_8b": _LLAMA3_8B,
    # meta-llama/Meta-Llama-3-70B config.json
    "llama3_70b": replace(_LLAMA3_8B, num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64),
    # meta-llama/Llama-3.2-1B config.json
    "llama3.2_1b": replace(
        _LLAMA3_8B,
        num_layers=16,
        hidden_size=2048,
        ffn_hidden_size=8192,
        kv_channels=64,
        max_position_embeddings=131072,
        rope_scaling=_LLAMA32_ROPE,
        tied=True,
    ),
    # meta-llama/Llama-3.2-3B config.json
    "llama3.2_3b": replace(
        _LLAMA3_8B,
        num_layers=28,
        hidden_size=3072,
        ffn_hidden_size=8192,
        num_attention_heads=24,
        max_position_embeddings=131072,
        rope_scaling=_LLAMA32_ROPE,
        tied=True,
    ),
    # TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T config.json; arXiv 2401.02385, table 2
    "tinyllama_1.1b": LlamaArchitecture(
        num_layers=22,
        hidden_size=2048,
        ffn_hidden_size=5632,
        num_attention_heads=32,
        num_query_groups=4,
        kv_channels=64,
        vocab_size=32000,
        max_position_embeddings=2048,
        rotary_base=10000.0,
        layernorm_epsilon=1e-5,
    ),
    # HuggingFaceTB/SmolLM2-135M config.json
    "smollm2_135m": LlamaArchitecture(
        num_layers=30,
        hidden_size=576,
        ffn_hidden_size=1536,
        num_attention_heads=9,
        num_query_groups=3,
        kv_channels=64,
        vocab_size=49152,
        max_position_embeddings=8192,
        rotary_base=100000.0,
        layernorm_epsilon=1e-5,
        tied=True,
    ),
    # ours: the smallest model in which every layout up to TP 4, PP 4 is possible
    "tiny": LlamaArchitecture(
        num_layers=4,
        hidden_size=128,
        ffn_hidden_size=352,
        num_attention_heads=8,
        num_query_groups=4,
        kv_channels=16,
        vocab_size=1000,
        max_position_embeddings=2048,
        rotary_base=10000.0,
        layernorm_epsilon=1e-5,
    ),
}
