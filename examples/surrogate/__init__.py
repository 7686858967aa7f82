"""Surrogate studies as files: the paper's at 1.1 B for a cluster, and small ones that run here on real text."""
