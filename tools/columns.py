"""Tables as text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, num_left: int, ends_in_text: bool = False) -> str:
    """Cells in columns, the first num_left of them to the left, the others to the right; text at the end is free."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = range(num_left, len(widths) - ends_in_text)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
