"""What a model is asked, as data (<language>.json beside this file), and how its answer falls into sections."""

import hashlib
import re
from pathlib import Path

import orjson
from pydantic.dataclasses import dataclass

from data_mixers.errors import ConfigError
from tools.data.yaml_file import STRICT, read_json
from tools.synthesis.code_examples import code_examples
from tools.synthesis.options import PROMPTS
from tools.synthesis.sections import Sections

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Shown:
    """A snippet, or a problem statement, with an answer to it, shown before the question."""

    text: str
    answer: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodePrompts:
    marker: str
    """The line that begins a code answer's third section, assertions that can be run."""
    user: str
    """As Prompts.user, and {tests}."""
    examples: tuple[Shown, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompts:
    """One <language>.json."""

    markers: tuple[str, str] | None
    """Lines that begin the problem and its solution. None: the seed is the problem, the whole answer its solution."""
    system: str
    user: str
    """With {focus}, {problem}, {solution} and {text}."""
    focus: dict[str, str]
    """Discipline -> what the problem is to be about."""
    code: CodePrompts
    examples: tuple[Shown, ...] = ()
    """Of the other disciplines; a small model keeps to the form of what it was shown."""

    def ask(self, discipline: str, text: str) -> Messages:
        """The messages for one snippet."""
        rounds = self.code.examples if discipline == "code" else self.examples
        messages = [{"role": "system", "content": self.system}]
        for shown in rounds:
            messages.append({"role": "user", "content": self._user(discipline, shown.text)})
            messages.append({"role": "assistant", "content": shown.answer})
        return [*messages, {"role": "user", "content": self._user(discipline, text)}]

    def template_hash(self, discipline: str) -> str:
        """Of everything but the snippet."""
        return hashlib.sha256(orjson.dumps(self.ask(discipline, "{text}"))).hexdigest()[:16]

    def split(self, answer: str, seed: str = "") -> tuple[str, str] | None:
        """(question, solution) of an answer with each marker once, in order, and text after both; else None.

        seed: the question where there are no markers.
        """
        if self.markers is None:
            return seed, answer.strip()
        first, second = self.markers
        opened = _cut(answer, first)
        parts = _cut(opened[1], second) if opened and answer.count(second) == 1 else None
        return parts if parts and all(parts) else None

    def sections(self, discipline: str, answer: str, seed: str = "") -> Sections | str:
        """What an answer says, or what is wrong with it. seed: the text that was asked about."""
        if discipline != "code":
            pair = self.split(answer, seed)
            return Sections(*pair) if pair is not None else "no two sections"
        parts = _cut(answer, self.code.marker)
        pair = self.split(parts[0], seed) if parts else None
        if parts is None or pair is None:
            return "no three sections"
        examples = code_examples(parts[1], pair[1])
        return Sections(*pair, tuple(examples)) if examples else "no assertion of the program"

    def _user(self, discipline: str, text: str) -> str:
        wording = self.code.user if discipline == "code" else self.user
        first, second = self.markers or ("", "")
        values = {"focus": self.focus.get(discipline, ""), "problem": first, "solution": second,
                  "tests": self.code.marker}  # fmt: skip
        for name, value in values.items():
            wording = wording.replace(f"{{{name}}}", value)
        return wording.replace("{text}", text)  # last: a snippet may hold braces of its own


def _cut(text: str, marker: str) -> tuple[str, str] | None:
    """What stands before and behind a marker; None unless it is there once.

    Of decoration only the marker's own goes ("## **[Problem]:**"), and a last line of nothing else: the sections' bold
    lines, and C#, are theirs.
    """
    if text.count(marker) != 1:
        return None
    behind = r"[:：]?(?:\1)?[ \t]*[:：]?(?:[ \t]*[*#]+[ \t]*$)?"
    found = re.search(rf"(?:^[ \t]*#+[ \t]*)?(\*+|_+|){re.escape(marker)}{behind}", text, re.MULTILINE)
    assert found is not None  # all but the marker is optional
    before, after = (
        re.sub(r"(?:^|\n)[ \t]*[*#]+\Z", "", part.strip()).strip()
        for part in (text[: found.start()], text[found.end() :])
    )
    return before, after


def read_prompts(folder: Path = PROMPTS) -> dict[str, Prompts]:
    """By language. Errors: ConfigError naming the file and what is wrong in it."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        prompts = read_json(path, Prompts)
        marks = {*(prompts.markers or ("problem", "solution")), prompts.code.marker}
        if any("{text}" not in wording for wording in (prompts.user, prompts.code.user)) or len(marks) < 3:
            raise ConfigError(f"{path}: user and code.user need {{text}}, the markers must differ")
        found[path.stem] = prompts
    if not found:
        raise ConfigError(f"prompts {folder}: there is no <language>.json")
    return found
