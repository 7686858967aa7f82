"""Evaluation of models by lm-evaluation-harness, and honest comparison of what it measured."""
