"""The table of docs/benchmarks.md, from the files of results/.

python -m benchmarks._page --write
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks._figures import RESULTS, Figure

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
BEGIN, END = "<!-- made of benchmarks/results by python -m benchmarks._page --write -->\n", "<!-- end of it -->\n"


def read_results() -> dict[str, dict[str, Any]]:
    """By script. Errors: ValueError for a call that was cut."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    if cut := [name for name, result in found.items() if not result["whole"]]:
        raise ValueError(f"results/{cut[0]}.json is of a call that did not end: run it again with --record")
    return found


def figures_of(result: dict[str, Any]) -> list[Figure]:
    return [Figure(**{k: v for k, v in one.items() if k != "verdict"}) for one in result["figures"]]


def rendered() -> str:
    parts = []
    for name, result in read_results().items():
        machine = result["machine"]
        parts.append(f"### {name}\n")
        parts.append(f"`{result['command']}`, {result['started'][:10]}, {machine['cores']} cores of {machine['cpu']}\n")
        parts.append("| what | measured | target | |\n|---|---|---|---|")
        for figure in figures_of(result):
            note = f" ({figure.note})" if figure.note else ""
            what = f"{figure.what}{note}".replace("|", "\\|")
            parts.append(f"| {what} | {figure.measured} | {figure.bound} | {figure.verdict} |")
        parts.append("")
    return "\n".join(parts)


def page_with(text: str, table: str) -> str:
    """The page with its made part replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the page; else print")
    if parser.parse_args().write:
        PAGE.write_text(page_with(PAGE.read_text(), rendered()))
    else:
        print(rendered(), end="")


if __name__ == "__main__":
    main()
