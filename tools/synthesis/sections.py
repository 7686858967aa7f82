"""A completion cut into question and answer, and the result that an answer states."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATED = re.compile(
    r"(?:####\s*|\b(?:final answer|the answer|answer|result)\b\**\s*(?:is|:|=)+\**\s*"
    r"|(?:故选|应选|答案(?=[^一-鿿]|是|为|选)|(?:结果|(?<!解)答)(?=\**\s*[是为：:]))\**\s*[是为：:]*\**\s*)"
    r"(?P<result>[^\n]{1,80})",
    re.IGNORECASE,
)
_RULE = re.compile(r"(?:-{3,}|\*{3,}|={3,}|\[/?\w+\]|</\w+>)?")  # or a blank line
_ENDS = ".。;；,，!！ *"


@dataclass(frozen=True)
class Sections:
    """A question, its worked answer, and for code what the program can be run against."""

    question: str
    answer: str
    examples: tuple[dict[str, str], ...] = ()


def split_sections(text: str, question_marks: Sequence[str], answer_marks: Sequence[str]) -> Sections | str:
    """The two sections, or what is wrong with the completion. What stands before the first mark is left out."""
    questions, answers = (_marks(text, words) for words in (question_marks, answer_marks))
    if len(questions) != 1:
        return f"{len(questions)} question sections"
    (_, start) = questions[0]
    answers = [found for found in answers if found[0] >= start]
    if not answers:
        return "no answer section"
    stop, begin = answers[0]
    question, answer = _bare(text[start:stop]), _bare(text[begin:])
    if not question or not answer:
        return f"empty {'answer' if question else 'question'} section"
    return Sections(question, answer)


def _marks(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) of the marks: "## Problem", "**Problem**", "[Problem]", "Problem:", alone or before the content."""
    any_word = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    number = r"(?:\s*(?:\d{1,2}|[一二三]))?"
    patterns = (
        rf"[ \t]*(?:#{{1,6}}[ \t]*)?(?:\*\*|__)?[\[【<〈](?:{any_word}){number}[\]】>〉](?:\*\*|__)?[ \t]*[:：]?",
        rf"[ \t]*#{{1,6}}[ \t]*(?:\*\*|__)?(?:{any_word}){number}[ \t]*[:：]?(?:\*\*|__)?[ \t]*[:：]?[ \t]*$",
        rf"[ \t]*(?:#{{1,6}}[ \t]*)?(?:\*\*|__)(?:{any_word}){number}[ \t]*[:：]?(?:\*\*|__)[ \t]*[:：]?",
        rf"[ \t]*(?:#{{1,6}}[ \t]*)?(?:{any_word}){number}[ \t]*[:：]",
    )
    pattern = re.compile("|".join(f"^(?:{one})" for one in patterns), re.IGNORECASE | re.MULTILINE)
    return [found.span() for found in pattern.finditer(text)]


def _bare(text: str) -> str:
    """Without blanks, rules and end marks around it."""
    lines = text.strip().split("\n")
    while len(lines) > 1 and _RULE.fullmatch(lines[-1].strip()):
        lines.pop()
    return "\n".join(lines).strip()


def stated_result(answer: str) -> str | None:
    """The last boxed result, or what follows the last "the answer is" and its like; None if there is none."""
    boxed = None
    for found in _BOXED.finditer(answer):
        boxed = to_closing_brace(answer, found.end()) or boxed
    if boxed is not None:
        return boxed.strip() or None
    for match in reversed(list(_STATED.finditer(answer))):
        result = match["result"].strip(" \t*").rstrip(_ENDS).strip()
        if result:
            return result
    return None


def to_closing_brace(text: str, start: int) -> str | None:
    """What stands between a brace that opens before `start` and the one that closes it; None if none does."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None
