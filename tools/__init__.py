"""Offline commands behind `syne`."""
