"""A file of pairs in which a chosen share is wrong: the study tool behind `syne synth corrupt`.

Share of pairs: exactly round(share x N) of N pairs are changed, those with the lowest hash of (seed, id) among the ones
that can be. So what is wrong at 10 % is wrong at 30 % too, in the same way, and the arms of a study differ by the rest.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from data_mixers.errors import ConfigError, DataError
from data_mixers.permutation import keyed_hash
from tools.data.documents import Document, DocumentWriter
from tools.data.progress import LiveProgress
from tools.data.readers import InputTask, find_inputs, plan_tasks
from tools.synthesis.corruption import Change, corrupt
from tools.synthesis.options import CorruptOptions
from tools.synthesis.output import check_no_input, check_out, documents_of
from tools.synthesis.vocabulary import ChineseWords, Vocabulary
from tools.synthesis.wordnet import WordNet

RECORD_KEY = "corruption"


def corrupt_file(options: CorruptOptions) -> str:
    """Write the pairs in their order, wrong ones with what was changed; says how many and what.

    Cost: reads the input twice and holds 16 bytes a pair. Errors: DataError if a line is no record, or if fewer pairs
    can be changed than are asked for; ConfigError if a word list is missing.
    """
    check_out(options.out)
    tasks = plan_tasks(find_inputs(options.inputs))
    check_no_input(options.out, tasks)
    pairs = _Pairs(options, tasks)
    ranks = []
    for place, document in enumerate(pairs):
        if pairs.changed(document)[1]:
            ranks.append((keyed_hash("corrupt pair", options.seed, document.id), place))
    if not pairs.num_read:
        raise DataError(f"there is no pair in {', '.join(options.inputs)}")
    wanted = round(options.share * pairs.num_read)
    if wanted > len(ranks):
        raise DataError(
            f"--share {options.share:g} of {pairs.num_read} pairs is {wanted}, but only {len(ranks)} hold a "
            f"{', '.join(options.kinds)} that can be changed; allow more kinds or a smaller share"
        )
    wrong = {place for _, place in sorted(ranks)[:wanted]}
    return _write(pairs, wrong, options)


def _write(pairs: "_Pairs", wrong: set[int], options: CorruptOptions) -> str:
    counts: Counter[str] = Counter()
    with DocumentWriter(options.out) as file:
        for place, document in enumerate(pairs):
            if place not in wrong:
                file.write(document.fields)
                continue
            fields, changes = pairs.changed(document)
            fields[RECORD_KEY] = {"seed": options.seed, "changes": [asdict(change) for change in changes]}
            file.write(fields)
            counts.update(change.kind for change in changes)
    made = ", ".join(f"{counts[kind]} {kind}s" for kind in options.kinds)
    return f"{options.out}: {len(wrong)} of {pairs.num_read} pairs are wrong ({made} changed)"


class _Pairs:
    """The documents of all inputs, in order, each time it is gone through."""

    def __init__(self, options: CorruptOptions, tasks: list[InputTask]) -> None:
        self.num_read = 0
        self._options, self._tasks = options, tasks
        self._vocabularies: dict[str, Vocabulary] = {}

    def __iter__(self) -> Iterator[Document]:
        self.num_read = 0
        total = sum(task.size_bytes for task in self._tasks)
        with LiveProgress("corrupt", total=total) as progress:
            for task, item in documents_of(self._tasks, text_key=self._options.keys[0], on_bytes=progress.advance):
                if RECORD_KEY in item.fields:
                    raise DataError(f"{task.path}: {item.id} is corrupted already; start from the clean pairs")
                self.num_read += 1
                yield item

    def changed(self, document: Document) -> tuple[dict[str, Any], list[Change]]:
        """The record made wrong, and the changes."""
        options = self._options
        language = document.fields.get("language") or options.language
        vocabulary, seed = self._vocabulary(language, document.id), f"{options.seed} {document.id}"
        return corrupt(document.fields, options.keys, vocabulary=vocabulary, kinds=options.kinds, seed=seed)

    def _vocabulary(self, language: object, name: str) -> Vocabulary | None:
        if self._options.kinds == ("number",):
            return None  # needs no words, so any language will do
        key = str(language)
        if key not in self._vocabularies:
            if key == "en":
                self._vocabularies[key] = WordNet(self._options.wordnet)
            elif key == "zh":
                self._vocabularies[key] = ChineseWords(self._options.words)
            else:
                raise ConfigError(f"{name}: language {language}; words are known of zh and en (--language)")
        return self._vocabularies[key]
