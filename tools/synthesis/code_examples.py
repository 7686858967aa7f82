"""Of a code answer's section of assertions: examples that `check --run-code` can run against its program."""

import ast
import re
import textwrap

# Of any language, so that no end is taken for a start; what opens and closes in one line has no content.
_BLOCK = re.compile(r"```[^`\n]+```|```[ \t]*([^`\n]*)\n(.*?)```", re.DOTALL)
_PYTHON = ("python", "python3", "py")


def code_of(text: str) -> str:
    """The Python of a text: its blocks that say so one after the other, else those that name no language, else all."""
    blocks = [(named.split(" ")[0].strip().casefold(), _dedented(code)) for named, code in _BLOCK.findall(text)]
    python, unnamed = ([code for named, code in blocks if named in names] for names in (_PYTHON, ("",)))
    return "\n".join(python or unnamed) or text


def _dedented(code: str) -> str:
    """Without its list's indentation, if it has one: dedent empties lines of blanks, in texts of the program too."""
    return textwrap.dedent(code) if code[:1].isspace() else code


def code_examples(tests: str, solution: str) -> list[dict[str, str]]:
    """[{"test": …}, …]: each assertion that uses something the solution defines, with what it needs before it.

    An assertion that does not (`assert True`) says nothing of the program and is left out; where the text is no
    Python there is none.
    """
    try:
        statements, program = ast.parse(code_of(tests)).body, ast.parse(code_of(solution)).body
    except (SyntaxError, ValueError):  # ValueError: a null character
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {statement.name for statement in program if isinstance(statement, kinds)}
    # A test may call the program ahead of its assertion: `found = f(3)`, then `assert found == 4`.
    before: list[str] = []
    examples = []
    for statement in statements:
        if isinstance(statement, ast.Assert):
            if _names(statement.test) & defined:
                examples.append({"test": "\n".join([*before, ast.unparse(statement)])})
        else:
            if _names(statement) & defined:
                defined |= {node.id for node in ast.walk(statement)
                            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}  # fmt: skip
            before.append(ast.unparse(statement))
    return examples


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
