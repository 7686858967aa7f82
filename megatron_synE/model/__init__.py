"""The Llama model on megatron-core."""
