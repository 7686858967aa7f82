"""A report as Markdown with its figures as SVG files beside it; every string escaped."""

import html
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from tools.report.content import Block, Excerpt, Figure, Missing, Report, Table, Text, printable
from tools.report.svg import with_legend

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$])")
_LIST_MARK = re.compile(r"^(\d*)([-+=.)])")


def markdown(report: Report, *, figures_folder: str) -> tuple[str, dict[str, str]]:
    """(the text, SVG files by name). figures_folder: where they will lie, relative to the text."""
    figures: dict[str, str] = {}
    parts = [f"# {escaped(report.title)}", _paragraph(report.subtitle)]
    for section in report.sections:
        parts.append(f"## {escaped(section.title)}")
        for block in section.blocks:
            parts += _block(block, figures, figures_folder)
    return printable("\n\n".join(parts) + "\n"), figures


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, inside another."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _paragraph(text: str) -> str:
    """The same as a line of its own, which must not begin a list."""
    return _LIST_MARK.sub(r"\1\\\2", escaped(text))


def _block(block: Block, figures: dict[str, str], folder: str) -> Iterator[str]:
    if isinstance(block, Text):
        yield _paragraph(block.text)
    elif isinstance(block, Missing):
        yield f"> **Missing:** {escaped(block.text)}"
    elif isinstance(block, Table):
        yield _table(block)
    elif isinstance(block, Figure):
        name = f"{len(figures) + 1:02d}_{re.sub(r'[^a-z0-9]+', '_', block.title.lower()).strip('_') or 'figure'}.svg"
        figures[name] = with_legend(block.svg, block.title, block.legend)
        yield f"### {escaped(block.title)}"
        yield f"![{escaped(block.alt)}]({quote(folder)}/{name})"  # a space would end the link
    elif isinstance(block, Excerpt):
        yield f"### {escaped(block.title)}"
        yield _paragraph(" · ".join(block.facts))
        if block.text:
            fence = "`" * (3 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
            yield f"{fence}text\n{block.text}\n{fence}"


def _table(table: Table) -> str:
    aligned = [" --- " if column < table.num_text_columns else " ---: " for column in range(len(table.header))]
    lines = [_row(table.header), "|" + "|".join(aligned) + "|", *map(_row, table.rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"
