"""Continual pre-training of Llama-3 on Megatron-Core. Importing this package imports no torch."""

__version__ = "0.1.0"
