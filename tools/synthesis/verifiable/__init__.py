"""Pairs that are exact by construction: each topic is a finite, numbered set of problems (docs/synthesis.md)."""
