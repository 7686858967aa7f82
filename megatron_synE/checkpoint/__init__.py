"""Checkpoints: layout, saving, loading, HF folders."""
