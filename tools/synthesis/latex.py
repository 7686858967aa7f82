"""Whether the LaTeX of a text is closed: dollars, \\( \\), \\[ \\], environments, braces, \\left and \\right."""

import re

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_PARAGRAPH = re.compile(r"\n\s*\n")
_MONEY = re.compile(r"\$\s?\d[\d,.]*(?![\d,.$])")
_PAIRED = (
    (re.compile(r"(?<!\\)\\\("), re.compile(r"(?<!\\)\\\)"), r"\( and \)"),
    (re.compile(r"(?<!\\)\\\[(?!\d*(?:pt|em|ex|mm)\])"), re.compile(r"(?<!\\)\\\]"), r"\[ and \]"),
    (re.compile(r"\\left(?![a-zA-Z])"), re.compile(r"\\right(?![a-zA-Z])"), r"\left and \right"),
)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([^{}]*)\}")


def latex_fault(text: str) -> str | None:
    """What is not closed; None if all is. Code between backticks is not looked at, nor are dollars before amounts."""
    text = _CODE.sub(" ", text)
    return _environments(text) or _pairs(text) or _braces(text) or _dollars(text)


def _environments(text: str) -> str | None:
    opened: list[str] = []
    for kind, name in _ENVIRONMENT.findall(text):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return f"\\end{{{name}}} closes nothing"
    return f"\\begin{{{opened[-1]}}} is not closed" if opened else None


def _pairs(text: str) -> str | None:
    for opening, closing, name in _PAIRED:
        opened, closed = len(opening.findall(text)), len(closing.findall(text))
        if opened != closed:
            return f"{opened} and {closed} of {name}"
    return None


def _braces(text: str) -> str | None:
    depth = 0
    for brace in re.findall(r"(?<!\\)(?:\\\\)*([{}])", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return "a brace } closes nothing"
    return f"{depth} braces {{ are not closed" if depth else None


def _dollars(text: str) -> str | None:
    r"""$$ over the whole text; $ inside a paragraph, which formulas do not leave."""
    text = text.replace("\\\\", "  ").replace("\\$", "  ")
    if text.count("$$") % 2:
        return "$$ is not closed"
    for paragraph in _PARAGRAPH.split(re.sub(r"\$\$.*?\$\$", " ", text, flags=re.DOTALL)):
        if paragraph.count("$") % 2 and not _MONEY.search(paragraph):
            return "$ is not closed"
    return None
