"""A report as one HTML file: no script, nothing fetched, every string escaped.

markupsafe escapes whatever is formatted into a Markup. The policy in the page's head would also keep a browser from
running or fetching anything that had slipped through.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from tools.report.content import Block, Excerpt, Figure, LegendEntry, Missing, Report, Section, Table, Text, printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_PAGE = Markup(
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<link rel="icon" href="data:,">\n'  # or a browser asks for favicon.ico
    "<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n<p>{subtitle}</p>\n"
    '<nav aria-label="Sections"><ul>{contents}</ul></nav>\n</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
)


def page(report: Report) -> str:
    style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))  # ours, not a run's
    return printable(
        _PAGE.format(
            policy=POLICY,
            title=report.title,
            subtitle=report.subtitle,
            style=style,
            contents=Markup("").join(
                Markup('<li><a href="#part-{}">{}</a></li>').format(index, section.title)
                for index, section in enumerate(report.sections)
            ),
            body=Markup("\n").join(_section(index, section) for index, section in enumerate(report.sections)),
        )
    )


def _section(index: int, section: Section) -> Markup:
    parts = []
    # Neighbouring figures share a grid.
    for is_figure, blocks in groupby(section.blocks, lambda block: isinstance(block, Figure)):
        shown = Markup("\n").join(map(_block, blocks))
        parts.append(Markup('<div class="figures">{}</div>').format(shown) if is_figure else shown)
    return Markup('<section id="part-{}">\n<h2>{}</h2>\n{}\n</section>').format(
        index, section.title, Markup("\n").join(parts)
    )


def _block(block: Block) -> Markup:
    if isinstance(block, Text):
        return Markup("<p>{}</p>").format(block.text)
    if isinstance(block, Missing):
        return Markup('<p class="missing">{}</p>').format(block.text)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return _figure(block)
    return _excerpt(block)


def _table(table: Table) -> Markup:
    head = Markup("").join(_cell("th", cell, column, table) for column, cell in enumerate(table.header))
    rows = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell("td", cell, i, table) for i, cell in enumerate(row)))
        for row in table.rows
    )
    # A scrolling part of a page must be reachable by keyboard.
    return Markup(
        '<div class="scroll" tabindex="0" role="group" aria-label="{}"><table><thead><tr>{}</tr></thead><tbody>\n{}\n'
        "</tbody></table></div>"
    ).format(f"Table: {', '.join(filter(None, table.header))}", head, rows)


def _cell(tag: str, text: str, column: int, table: Table) -> Markup:
    kind = Markup(' class="text"') if column < table.num_text_columns else Markup("")
    scope = Markup(' scope="col"') if tag == "th" else Markup("")
    return Markup("<{0}{1}{2}>{3}</{0}>").format(Markup(tag), scope, kind, text)


def _figure(figure: Figure) -> Markup:
    # The drawing is markup made by figures.py, which escapes what it writes; its name and text are set here.
    opened, _, rest = figure.svg.partition(">")
    svg = Markup(opened) + Markup(' role="img" aria-label="{}">').format(figure.alt) + Markup(rest)
    return Markup("<figure><h3>{}</h3>{}{}</figure>").format(figure.title, svg, _legend(figure.legend))


def _legend(entries: Sequence[LegendEntry]) -> Markup:
    if not entries:
        return Markup("")
    items = Markup("").join(
        Markup(
            '<li><svg viewBox="0 0 26 10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" stroke="{}" '
            'stroke-width="{}" stroke-dasharray="{}"/></svg><span>{}</span></li>'
        ).format(entry.colour, 10 if entry.kind == "area" else 2.5, entry.dash or "none", entry.label)
        for entry in entries
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _excerpt(excerpt: Excerpt) -> Markup:
    text = Markup("<pre>{}</pre>").format(excerpt.text) if excerpt.text else Markup("")
    return Markup('<div class="excerpt"><h3>{}</h3><p>{}</p>{}</div>').format(
        excerpt.title, " · ".join(excerpt.facts), text
    )
