"""Whole runs that read top to bottom."""
