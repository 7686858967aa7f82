"""How every command shows its example."""


def example(*lines: str) -> str:
    """An epilog that can be pasted; `lines` are joined by a backslash and a new line."""
    # \b keeps the lines as they are.
    return "\b\nExample:\n  " + " \\\n    ".join(lines)
