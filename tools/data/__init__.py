"""Data commands."""
