"""Checkpoint commands."""
