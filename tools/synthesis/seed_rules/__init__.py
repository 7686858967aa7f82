"""The rules of `syne synth seeds` in one language, read from <language>.json beside this file or from a folder."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from data_mixers.errors import ConfigError
from tools.data.units import HAN_AND_KANA
from tools.synthesis.record import DISCIPLINES

OWN_RULES = Path(__file__).parent
LANGUAGES = ("zh", "en")


@dataclass(frozen=True)
class Picked:
    """Why a page belongs to a discipline."""

    discipline: str
    by: str
    """domain, topic or keywords."""
    per_hundred: float
    """Keywords in 100 units of the page."""


@dataclass(frozen=True, kw_only=True)
class SeedRules:
    """What decides which pages and which of their sentences are used."""

    window: tuple[int, int]
    """Fewest and most units (words; characters of Chinese) of a snippet."""
    whole_window: tuple[int, int]
    """Of a problem statement that is taken as it stands."""
    least_keywords: int
    """Different keywords that a page picked by them alone must hold."""
    least_per_hundred: float
    abbreviations: tuple[str, ...]
    opening: re.Pattern[str]
    """Matches where a sentence leans on the one before it."""
    topics: dict[str, tuple[str, ...]]
    """Topic label -> the disciplines it may mean."""
    domains: dict[str, str]
    keywords: dict[str, re.Pattern[str]]
    """By discipline; matches in case-folded text."""

    def pick(self, text: str, *, num_units: int, topic: str | None, url: str | None) -> Picked | None:
        """The page's discipline: by its domain, else its topic label, else keywords, which also settle a topic that
        covers two disciplines. None if nothing says one clearly."""
        counts = {name: Counter(found.findall(text.casefold())) for name, found in self.keywords.items()}
        shares = {name: 100 * count.total() / max(1, num_units) for name, count in counts.items()}
        if url and (named := self._by_domain(url)):
            return Picked(named, "domain", shares[named])
        allowed = self.topics.get(topic or "", ())
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


def read_seed_rules(language: str, folder: Path = OWN_RULES) -> SeedRules:
    """Errors: ConfigError naming the file and what is wrong in it."""
    path = folder / f"{language}.json"
    try:
        content = orjson.loads(path.read_bytes())
        fewest, most = content["window"]
        fewest_whole, most_whole = content["whole_window"]
        disciplines = content["disciplines"]
        unknown = sorted(set(disciplines) - set(DISCIPLINES))
        if unknown or not 0 < fewest <= most:
            raise ValueError(f"unknown disciplines {unknown}" if unknown else f"window {fewest}, {most}")
        topics: dict[str, tuple[str, ...]] = {}
        for name, of_name in disciplines.items():
            for topic in of_name["topics"]:
                topics[topic] = (*topics.get(topic, ()), name)
        return SeedRules(
            window=(fewest, most),
            whole_window=(fewest_whole, most_whole),
            least_keywords=content["least_keywords"],
            least_per_hundred=content["least_per_hundred"],
            abbreviations=tuple(content["abbreviations"]),
            opening=_words(content["bad_openings"], plural=False),
            topics=topics,
            domains={domain.casefold(): name for name, of_name in disciplines.items() for domain in of_name["domains"]},
            keywords={name: _words(of_name["keywords"], plural=True) for name, of_name in disciplines.items()},
        )
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"rules {path}: {type(error).__name__}: {error}") from error


def _words(words: list[str], *, plural: bool) -> re.Pattern[str]:
    """Whole words of scripts with blanks; Han characters wherever they stand. The longest first."""
    patterns = []
    for word in sorted(words, key=lambda word: (-len(word), word)):
        escaped = re.escape(word.casefold())
        is_han = re.match(f"[{HAN_AND_KANA}]", word) is not None
        patterns.append(escaped if is_han else rf"\b{escaped}\b" if not plural else rf"\b{escaped}(?=s?\b)")
    return re.compile("|".join(patterns) if patterns else r"(?!)")
