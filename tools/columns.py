"""Tables as text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, num_left: int, ends_in_text: bool = False) -> str:
    """Cells in columns, the first num_left of them to the left, the others to the right; text at the end is free."""
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = range(num_left, len(widths) - ends_in_text)
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(space + cell if column in right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    """On a terminal: Chinese characters take two columns."""
    return sum(2 if ord(character) > 0x2E7F else 1 for character in text)
