"""docs/config.md from schema.py: every key with its type, default and the text that stands under its field.

Example:  python -m tools.config_reference --write
"""

import ast
import inspect
from pathlib import Path
from typing import Literal, get_args, get_origin

from megatron_synE.config import schema
from tools.cli_options import page_command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"
_HEAD = """# Configuration reference

Made from `megatron_synE/config/schema.py` by `python -m tools.config_reference --write`; do not edit.

One YAML file per run. `syne plan --config run.yaml` shows what was written, what it resolves to, what follows from it,
and every fault. On the command line `section.key=value` wins over the file, `data.stages.0.tokens=1e6` reaches into
lists, the file wins over `preset`, and the preset over the defaults below. Sections merge; lists replace each other as
a whole. Numbers of tokens may be written 92.5e9. Only `true` and `false` are booleans. Relative paths start at the
current folder. A key without a default must be written.
"""


def render_reference() -> str:
    source = ast.parse(inspect.getsource(schema))
    classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    root = classes["RunConfig"]
    parts = [_HEAD]
    top_level = []
    for field in _fields(root):
        section = classes.get(ast.unparse(field.node.annotation))
        if section is None:
            top_level.append(field)
        else:
            parts.append(_section(field.name, section))
            if field.name == "mixture":
                parts.append(_section("mixture.guard", classes["GuardSection"]))
            if field.name == "data":
                parts.append(_section("data.stages[i]", classes["StageSection"]))
                parts.append(_section("data.stages[i].curriculum", classes["CurriculumSection"]))
    parts.append("## Top level\n\n" + _table(top_level))
    return "\n".join(parts)


class _Field:
    def __init__(self, node: ast.AnnAssign, text: str) -> None:
        assert isinstance(node.target, ast.Name)
        self.node, self.text = node, text
        self.name = node.target.id

    def key(self) -> str:
        """As written in a file: the alias where there is one."""
        for call in ast.walk(self.node.annotation):
            if isinstance(call, ast.keyword) and call.arg == "alias" and isinstance(call.value, ast.Constant):
                return str(call.value.value)
        return self.name

    def type(self) -> str:
        annotation = self.node.annotation
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
            assert isinstance(annotation.slice, ast.Tuple)
            inner, constraint = (ast.unparse(part) for part in annotation.slice.elts[:2])
            note = "" if "alias" in constraint else f" {constraint.removeprefix('Field').strip('()')}"
            return inner + note
        text = ast.unparse(annotation)
        named = getattr(schema, text, None)
        if get_origin(named) is Literal:
            return f"Literal[{', '.join(map(repr, get_args(named)))}]"
        for name, plain in _PLAIN.items():
            text = text.replace(name, plain)
        return text

    def default(self) -> str:
        if self.node.value is None:
            return "required"
        text = ast.unparse(self.node.value)
        return {"None": "null", "True": "true", "False": "false", "()": "[]"}.get(
            text, "{}" if "default_factory" in text else text.strip("'")
        )


_PLAIN = {
    "PositiveFloat": "number > 0",
    "NonNegativeFloat": "number >= 0",
    "Positive": "integer > 0",
    "NonNegative": "integer >= 0",
    "Seed": "integer >= 0, < 2^62",
    "Tokens": "integer > 0",
    "Share": "number 0..1",
    "Path": "path",
    "StageSection": "stage",
    "GuardSection": "section",
    "None": "null",
}


def _fields(node: ast.ClassDef) -> list[_Field]:
    found = []
    for position, statement in enumerate(node.body):
        if isinstance(statement, ast.AnnAssign):
            after = node.body[position + 1] if position + 1 < len(node.body) else None
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
            found.append(_Field(statement, text))
    return found


def _section(title: str, node: ast.ClassDef) -> str:
    return f"## {title}\n\n{ast.get_docstring(node)}\n\n{_table(_fields(node))}"


def _table(fields: list[_Field]) -> str:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for field in fields:
        kind = field.type().replace("|", "\\|")
        rows.append(f"| `{field.key()}` | {kind} | {field.default()} | {field.text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    page_command(PAGE, render_reference, __doc__)
