"""The picture in docs/architecture.md is the imports: no arrow too many, none left out."""

import re
from itertools import product
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_mixers", "megatron_synE", "tools", "examples", "benchmarks")
LEAVES = ("megatron_synE", "megatron_synE.exit_codes", "tools.cli_options", "tools.columns")
"""Named by anything, drawn nowhere."""
NODES = {"megatron_synE.data": "batches", "tools.checkpoint": "weights"}
"""Packages whose last name stands for another in the picture."""
LOOSE = {"megatron_synE": "trainer", "tools": "syne"}
"""What lies in no folder of its package."""

Arrow = tuple[str, str]


def drawn(page: str) -> set[Arrow]:
    (picture,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    arrows = set()
    for left, right in re.findall(r"^ *(.+?) (?:-->|-\.->) (.+)$", picture, re.MULTILINE):
        arrows |= set(product(left.split(" & "), right.split(" & ")))
    return arrows


def folder_of(module: str) -> str:
    package, _, rest = module.partition(".")
    folder = f"{package}.{rest.split('.')[0]}"
    if package in LOOSE:
        is_folder = (ROOT / folder.replace(".", "/")).is_dir()
        return NODES.get(folder, folder.partition(".")[2]) if is_folder else LOOSE[package]
    return package


def imported() -> set[Arrow]:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    arrows = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            package, others = module.partition(".")[0], other.partition(".")[0]
            if package != others:
                arrows.add((package, others))
            elif other not in LEAVES and (left := folder_of(module)) != (right := folder_of(other)):
                arrows.add((left, right))
    return arrows


def test_the_picture_is_the_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert drawn(page) == imported()


def test_the_picture_is_read_as_it_is_drawn() -> None:
    page = 'x\n```mermaid\ngraph TD\n  a --> b & c\n  subgraph s\n    n["a --- b"]\n    b -.-> a\n  end\n```\n'
    assert drawn(page) == {("a", "b"), ("a", "c"), ("b", "a")}
