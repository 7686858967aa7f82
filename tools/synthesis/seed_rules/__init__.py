"""The rules of `syne synth seeds` in one language, read from <language>.json beside this file or from a folder."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from data_mixers.errors import ConfigError
from tools.data.units import HAN_AND_KANA
from tools.data.yaml_file import STRICT, read_json
from tools.synthesis.options import SEED_RULES
from tools.synthesis.record import DISCIPLINES

LANGUAGES = ("zh", "en")


@dataclass(frozen=True)
class Picked:
    """Why a page belongs to a discipline."""

    discipline: str
    by: str
    """domain, topic or keywords."""
    per_hundred: float
    """Keywords in 100 units of the page."""


@checked(frozen=True, kw_only=True, config=STRICT)
class Discipline:
    topics: list[str]
    """Topic labels that may mean it."""
    domains: list[str]
    keywords: list[str]


@checked(frozen=True, kw_only=True, config=STRICT)
class SeedRules:
    """What decides which pages and which of their sentences are used."""

    window: tuple[Annotated[int, Field(ge=1)], int]
    """Fewest and most units (words; characters of Chinese) of a snippet."""
    whole_window: tuple[int, int]
    """Of a problem statement that is taken as it stands."""
    least_keywords: int
    """Different keywords that a page picked by them alone must hold."""
    least_per_hundred: float
    abbreviations: tuple[str, ...]
    bad_openings: list[str]
    """Words with which a sentence leans on the one before it."""
    disciplines: dict[str, Discipline]

    @cached_property
    def opening(self) -> re.Pattern[str]:
        """Matches where a sentence begins so, in case-folded text."""
        return _words(self.bad_openings, plural=False)

    @cached_property
    def topics(self) -> dict[str, list[str]]:
        """Topic label -> the disciplines it may mean."""
        found: dict[str, list[str]] = {}
        for name, discipline in self.disciplines.items():
            for topic in discipline.topics:
                found.setdefault(topic, []).append(name)
        return found

    @cached_property
    def domains(self) -> dict[str, str]:
        return {domain.casefold(): name for name, found in self.disciplines.items() for domain in found.domains}

    @cached_property
    def keywords(self) -> dict[str, re.Pattern[str]]:
        """By discipline; matches in case-folded text."""
        return {name: _words(found.keywords, plural=True) for name, found in self.disciplines.items()}

    def pick(self, text: str, *, num_units: int, topic: str | None, url: str | None) -> Picked | None:
        """The page's discipline: by its domain, else its topic label, else keywords, which also settle a topic that
        covers two disciplines. None if nothing says one clearly."""
        counts = {name: Counter(found.findall(text.casefold())) for name, found in self.keywords.items()}
        shares = {name: 100 * count.total() / max(1, num_units) for name, count in counts.items()}
        if url and (named := self._by_domain(url)):
            return Picked(named, "domain", shares[named])
        allowed = self.topics.get(topic or "", [])
        if len(allowed) == 1:
            return Picked(allowed[0], "topic", shares[allowed[0]])
        names = [
            name
            for name in allowed or self.keywords
            if len(counts[name]) >= self.least_keywords and shares[name] >= self.least_per_hundred
        ]
        if not names:
            return None
        best = max(names, key=lambda name: (shares[name], name))
        return Picked(best, "topic" if allowed else "keywords", shares[best])

    def _by_domain(self, url: str) -> str | None:
        try:
            host = (urlsplit(url).hostname or "").casefold()
        except ValueError:
            return None
        labels = host.split(".")
        return next((found for i in range(len(labels)) if (found := self.domains.get(".".join(labels[i:])))), None)


def read_seed_rules(language: str, folder: Path = SEED_RULES) -> SeedRules:
    """Errors: ConfigError naming the file and what is wrong in it."""
    path = folder / f"{language}.json"
    rules = read_json(path, SeedRules)
    if unknown := sorted(set(rules.disciplines) - set(DISCIPLINES)):
        raise ConfigError(f"{path}: unknown disciplines {', '.join(unknown)}")
    if rules.window[0] > rules.window[1]:
        raise ConfigError(f"{path}: window {rules.window}: the fewest units are more than the most")
    return rules


def _words(words: list[str], *, plural: bool) -> re.Pattern[str]:
    """Whole words of scripts with blanks; Han characters wherever they stand. The longest first."""
    patterns = []
    for word in sorted(words, key=lambda word: (-len(word), word)):
        escaped = re.escape(word.casefold())
        is_han = re.match(f"[{HAN_AND_KANA}]", word) is not None
        patterns.append(escaped if is_han else rf"\b{escaped}\b" if not plural else rf"\b{escaped}(?=s?\b)")
    return re.compile("|".join(patterns) if patterns else r"(?!)")
