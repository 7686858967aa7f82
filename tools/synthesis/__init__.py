"""Synthetic QA: sources of pairs, checks on them, and text out of them (docs/synthesis.md)."""
