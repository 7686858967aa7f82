"""How problems are put into words: one JSON file per language in wordings/, so a language more needs no code.

{"closing": "The answer is {shown}.", "words": {"goods": [...], "elements": [...]},
 "topics": {"gcd": {"questions": ["...{n}...{m}...", ...], "solution": ["line with {places}", ...]}}}
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from data_mixers.errors import ConfigError

FOLDER = Path(__file__).with_name("wordings")


@cache
def _file(language: str) -> dict[str, Any]:
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    if language not in known:
        raise ConfigError(f"--language {language}: there are wordings in {', '.join(known)}")
    content: dict[str, Any] = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return content


def words(language: str, name: str) -> list[str]:
    """A list of a language's words; empty where it has none."""
    found: list[str] = _file(language)["words"].get(name, [])
    return found


def question(language: str, topic: str, values: dict[str, str], choice: int) -> str:
    """One of the topic's phrasings, number `choice` modulo their number."""
    phrasings: list[str] = _file(language)["topics"][topic]["questions"]
    return phrasings[choice % len(phrasings)].format(**values)


def answer(language: str, topic: str, values: dict[str, str]) -> str:
    """The worked solution; its last line says the result ("shown" where that differs from "final")."""
    content = _file(language)
    values = {"shown": values["final"]} | values
    lines = [*content["topics"][topic]["solution"], content["topics"][topic].get("closing", content["closing"])]
    return "\n".join(line.format(**values) for line in lines)
