"""Surrogate studies: a recipe tried on a small model first, with what its size can and cannot tell."""
