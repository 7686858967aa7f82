"""Key retrieval: a number that stands once in a long text must be named at its end. Made from a seed, needs no data."""

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

NUM_ITEMS = 60
WORDS = (500, 1500, 3000, 4500, 5500)
"""Length of the filler. Ours: the longest is below the context of 8,192 tokens at 1.4 tokens a word."""
_SUBJECTS = ("The river", "A farmer", "The old bridge", "Her sister", "The market", "A small boat", "The teacher")
_VERBS = ("passes", "remembers", "follows", "reaches", "waits near", "looks at", "leaves")
_OBJECTS = ("the mill", "a quiet field", "the northern road", "the harbour", "an open door", "the grey hill")
_NAMES = ("Amber", "Basalt", "Cedar", "Dune", "Ember", "Fjord", "Grove", "Harbour", "Iris", "Juniper")


def key_retrieval(**settings: Any) -> "DatasetDict":
    """The set, always the same. settings: what the harness passes; none is read."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list([item(index) for index in range(NUM_ITEMS)])})


def item(index: int) -> dict[str, Any]:
    """Item by number: lengths take turns, depths go from the beginning to the end."""
    generator = random.Random(f"key {index}")
    num_words, depth = WORDS[index % len(WORDS)], (index // len(WORDS)) / (NUM_ITEMS // len(WORDS) - 1)
    sentences: list[str] = []
    count = 0
    while count < num_words:
        sentence = (
            f"{generator.choice(_SUBJECTS)} {generator.choice(_VERBS)} {generator.choice(_OBJECTS)}"
            f" and {generator.choice(_VERBS)} {generator.choice(_OBJECTS)}."
        )
        sentences.append(sentence)
        count += len(sentence.split())
    name, key = generator.choice(_NAMES), str(generator.randrange(10_000, 100_000))
    sentences.insert(round(depth * len(sentences)), f"The key of {name} is {key}.")
    prompt = f"{' '.join(sentences)}\n\nQuestion: What is the key of {name}?\nAnswer: The key of {name} is"
    return {"prompt": prompt, "key": key, "num_words": num_words, "depth": depth}


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the answer begins with the key."""
    said, key = results[0].strip(), doc["key"]
    return {"exact_match": float(said.startswith(key) and not said[len(key) :][:1].isdigit())}
