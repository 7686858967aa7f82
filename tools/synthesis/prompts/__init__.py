"""What a model is asked, as data (<language>.json beside this file), and how its answer falls into sections."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import orjson

from data_mixers.errors import ConfigError
from tools.synthesis.code_examples import code_examples
from tools.synthesis.sections import Sections

OWN_PROMPTS = Path(__file__).parent
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompts:
    markers: tuple[str, str] | None
    """Lines that begin the problem and its solution. None: the seed is the problem, the whole answer its solution."""
    system: str
    user: str
    """With {focus}, {problem}, {solution} and {text}."""
    focus: dict[str, str]
    """Discipline -> what the problem is to be about."""
    code_marker: str
    """The line that begins a code answer's third section, assertions that can be run."""
    code_user: str
    """As user, and {tests}."""
    code_examples: tuple[tuple[str, str], ...]
    """(problem statement, answer) pairs that are shown before the question."""
    examples: tuple[tuple[str, str], ...] = ()
    """The same of the other disciplines; a small model keeps to the form of what it was shown."""

    def ask(self, discipline: str, text: str) -> Messages:
        """The messages for one snippet."""
        rounds = self.code_examples if discipline == "code" else self.examples
        messages = [{"role": "system", "content": self.system}]
        for statement, answer in rounds:
            messages.append({"role": "user", "content": self._user(discipline, statement)})
            messages.append({"role": "assistant", "content": answer})
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
        if answer.count(first) != 1 or answer.count(second) != 1:
            return None
        _, _, rest = answer.partition(first)
        question, found, solution = rest.partition(second)
        question, solution = (part.strip(" \t\r\n:：*#") for part in (question, solution))
        return (question, solution) if found and question and solution else None

    def sections(self, discipline: str, answer: str, seed: str = "") -> Sections | str:
        """What an answer says, or what is wrong with it. seed: the text that was asked about."""
        if discipline != "code":
            pair = self.split(answer, seed)
            return Sections(*pair) if pair is not None else "no two sections"
        body, found, tests = answer.partition(self.code_marker)
        pair = self.split(body, seed)
        if pair is None or not found or self.code_marker in tests:
            return "no three sections"
        examples = code_examples(tests.lstrip(" \t\r\n:：*#"), pair[1])
        return Sections(*pair, tuple(examples)) if examples else "no assertion of the program"

    def _user(self, discipline: str, text: str) -> str:
        wording = self.code_user if discipline == "code" else self.user
        first, second = self.markers or ("", "")
        values = {"focus": self.focus.get(discipline, ""), "problem": first, "solution": second,
                  "tests": self.code_marker}  # fmt: skip
        for name, value in values.items():
            wording = wording.replace(f"{{{name}}}", value)
        return wording.replace("{text}", text)  # last: a snippet may hold braces of its own


def _are_texts(prompts: Prompts) -> bool:
    texts = (prompts.system, prompts.user, prompts.code_marker, prompts.code_user, *prompts.focus.values())
    shown = (*(prompts.markers or ()), *(text for example in (*prompts.examples, *prompts.code_examples)
                                         for text in example))  # fmt: skip
    return all(isinstance(text, str) for text in (*texts, *shown))


def read_prompts(folder: Path = OWN_PROMPTS) -> dict[str, Prompts]:
    """By language. Errors: ConfigError naming the file and what is wrong in it."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = orjson.loads(path.read_bytes())
            code, (first, second) = content["code"], content["markers"] or ("problem", "solution")
            shown, shown_code = (
                tuple((example["text"], example["answer"]) for example in examples)
                for examples in (content.get("examples", ()), code["examples"])
            )
            prompts = Prompts(
                (first, second) if content["markers"] else None, content["system"], content["user"], content["focus"],
                code["marker"], code["user"], shown_code, shown,
            )  # fmt: skip
            if not _are_texts(prompts):
                raise TypeError("system, user, focus (discipline: text), markers, examples and code must hold texts")
            wordings, marks = (prompts.user, prompts.code_user), {first, second, prompts.code_marker}
            if any("{text}" not in wording for wording in wordings) or len(marks) < 3:
                raise ValueError("user and code.user need {text}, the markers must differ")
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"prompts {path}: {type(error).__name__}: {error}") from error
        found[path.stem] = prompts
    if not found:
        raise ConfigError(f"prompts {folder}: there is no <language>.json")
    return found
