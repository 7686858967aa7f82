"""The rules of `syne synth check` that look at one pair (pair_rules.yaml), and what the first broken one says of it.

prepare(record) ─> question, answer, final_answer ─ judge_pair ─> Verdict or None
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pydantic.dataclasses
from pydantic import Field

from data_mixers.errors import ConfigError
from tools.data.documents import Document
from tools.data.measures import Measured
from tools.data.readers import BadRecord
from tools.data.rules import NearDuplicates, Rule, check_rules, identify_language, judge
from tools.data.selection import Verdict
from tools.data.units import num_han, units_of
from tools.data.yaml_file import STRICT, read_yaml
from tools.synthesis.code_examples import code_of
from tools.synthesis.equations import false_equation
from tools.synthesis.latex import latex_fault
from tools.synthesis.recompute import Recomputer
from tools.synthesis.record import CUT_OFF, QaRecord, record_of
from tools.synthesis.sandbox import Example, Sandbox
from tools.synthesis.sections import split_sections, stated_result

RAW_KEYS = ("question", "text", "completion", "answer")
"""Where the text of a record may stand: parsed already, or the model's words as they came."""
_END = re.compile(r"(?:[.!?。！？…;；:：)\]}）】》”\"'’`$|>*°%]|\\\]|\\\)|\d|\bQED\b|□|■|∎)\s*$")
_FORMULA = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\begin\{.*?\\end\{[^}]*\}|\\[a-zA-Z]+",
    re.DOTALL,
)
# Of Markdown: then it is there to look at.
_TABLE = re.compile(r"^[^\n]*\|[^\n]*\|[^\n]*\n\s*\|?\s*:?-{2,}", re.MULTILINE)
_LAST_EQUATION = re.compile(r"=[^\n]{1,80}$|->[^\n]{1,80}$|→[^\n]{1,80}$|\[[A-Z][a-z]\][^\n]*$")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Length:
    min: Annotated[int, Field(ge=0)]
    max: Annotated[int, Field(ge=1)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class HanShare:
    zh: float
    """Least share of Han characters among the units of a Chinese text."""
    other: float
    """Most of them in any other but Japanese."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class PairLanguage:
    han_share: HanShare
    min_score: Annotated[float, Field(ge=0.0, le=1.0)]
    min_units: int


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Refusals:
    characters: int
    patterns: list[str]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class References:
    question: list[str]
    answer: list[str]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class ContaminationRule:
    ngram: Annotated[int, Field(ge=2)]
    max_share: Annotated[float, Field(ge=0.0, le=1.0)]
    max_short_share: Annotated[float, Field(ge=0.0, le=1.0)]
    source: str


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class PairRules:
    question_marks: list[str]
    answer_marks: list[str]
    question_units: Length
    answer_units: Length
    language: PairLanguage
    repetition: list[Rule]
    refusals: Refusals
    references: References
    near_duplicates: NearDuplicates
    contamination: ContaminationRule


def load_pair_rules(path: Path) -> PairRules:
    """Errors: ConfigError naming the file and the key or the pattern."""
    rules = read_yaml(path, PairRules)
    check_rules(path, rules.repetition)
    for pattern in (*rules.refusals.patterns, *rules.references.question, *rules.references.answer):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{path}: {pattern!r} is no regular expression: {error}") from error
    return rules


def prepare(document: Document, rules: PairRules) -> Document | BadRecord:
    """The record with `question`, `answer` and, where the answer states a result, `final_answer`.

    A completion that cannot be cut into sections keeps its text and gets no question: judge_pair says so.
    BadRecord: a key that every pair needs is missing or of the wrong kind.
    """
    fields = dict(document.fields)
    if not isinstance(fields.get("question"), str):
        raw = next((fields[key] for key in RAW_KEYS if isinstance(fields.get(key), str)), "")
        found = split_sections(raw, rules.question_marks, rules.answer_marks)
        if isinstance(found, str):
            fields["unparsed"] = found
            problem = record_of(replace(document, fields=fields | {"question": raw, "answer": raw}))
            return problem if isinstance(problem, BadRecord) else replace(document, text=raw, fields=fields)
        fields |= {"question": found.question, "answer": found.answer}
    if isinstance(fields.get("answer"), str) and not fields.get("final_answer"):
        result = stated_result(fields["answer"]) if fields.get("discipline") != "code" else None
        fields |= {"final_answer": result} if result is not None else {}
    prepared = replace(document, text=str(fields["question"]), fields=fields)
    record = record_of(prepared)
    return record if isinstance(record, BadRecord) else prepared


def judge_pair(document: Document, rules: PairRules, recomputer: Recomputer, sandbox: Sandbox | None) -> Verdict | None:
    """The first rule the prepared pair breaks, cheap ones first; None keeps it. sandbox None: code is not run."""
    if "unparsed" in document.fields:
        return Verdict(reason="unparsed", value=document.fields["unparsed"], limit=None)
    pair = record_of(document)
    assert isinstance(pair, QaRecord)  # prepare has looked
    return (
        _truncated(pair)
        or _refused(pair, rules.refusals)
        or _length(pair, rules)
        or _language(pair, rules.language)
        or _repetition(pair, rules.repetition)
        or _reference(pair, rules.references)
        or _latex(pair)
        or _arithmetic(pair, recomputer)
        or _code(pair, sandbox)
    )


def _truncated(pair: QaRecord) -> Verdict | None:
    value: Any = None
    if pair.extra.get("finish_reason") in CUT_OFF:
        value = f"finish_reason {pair.extra['finish_reason']}"
    elif pair.usage.get("completion_tokens", 0) >= float(pair.sampling.get("max_tokens", 0) or float("inf")):
        value = f"{pair.usage['completion_tokens']} completion tokens, all that were allowed"
    elif pair.answer.count("```") % 2:
        value = "a code block is not closed"
    elif pair.discipline != "code" and not _ends(pair):
        value = f"ends with {pair.answer.rstrip()[-30:]!r}"
    return None if value is None else Verdict(reason="truncated", value=value, limit=None)


def _ends(pair: QaRecord) -> bool:
    """Whether the answer ends like a sentence, with a formula, or with the result."""
    answer = pair.answer.rstrip()
    last = answer.splitlines()[-1].strip()
    if last.endswith(("=", "+", "-", "\\", ",", "，", "(", "、", ":", "：")):
        return False
    if _END.search(last) or _LAST_EQUATION.search(last):
        return True
    return bool(pair.final_answer) and last.endswith(str(pair.final_answer))


def _refused(pair: QaRecord, rule: Refusals) -> Verdict | None:
    for text in (pair.answer, pair.question):
        for pattern in rule.patterns:
            found = re.search(pattern, text[: rule.characters].replace("\u2019", "'"), re.IGNORECASE)
            if found is not None:
                return Verdict(reason="refused", value=found[0], limit=None)
    return None


def _length(pair: QaRecord, rules: PairRules) -> Verdict | None:
    for name, text, limits in (
        ("question", pair.question, rules.question_units),
        ("answer", pair.answer, rules.answer_units),
    ):
        count = len(units_of(text))
        if count < limits.min:
            return Verdict(reason=f"{name}_too_short", value=count, limit=limits.min)
        if count > limits.max:
            return Verdict(reason=f"{name}_too_long", value=count, limit=limits.max)
    return None


def _language(pair: QaRecord, rule: PairLanguage) -> Verdict | None:
    """By script between Chinese and others, else by the identifier where it is sure; formulas and code are left out."""
    for name, text in (("question", pair.question), ("answer", pair.answer)):
        if pair.discipline == "code" and name == "answer":
            continue
        words = [
            unit for unit in units_of(_FORMULA.sub(" ", text)) if unit.isalpha() and (len(unit) > 1 or num_han([unit]))
        ]
        if len(words) < min(rule.min_units, 6):
            continue
        share = num_han(words) / len(words)
        is_chinese = pair.language == "zh"
        limit = rule.han_share.zh if is_chinese else rule.han_share.other
        if pair.language != "ja" and (share < limit if is_chinese else share > limit):
            value = {"where": name, "asked": pair.language, "han_share": round(share, 3)}
            return Verdict(reason="language", value=value, limit=limit)
        if len(words) >= rule.min_units and not is_chinese:
            found, score = identify_language(" ".join(words))
            if found != pair.language and score >= rule.min_score:
                value = {"where": name, "asked": pair.language, "language": found, "score": round(score, 3)}
                return Verdict(reason="language", value=value, limit=rule.min_score)
    return None


def _repetition(pair: QaRecord, rules: Sequence[Rule]) -> Verdict | None:
    found = judge(Measured(pair.answer), rules)
    return found and Verdict(reason="repetition", value=found.value, limit=found.limit, matched=found.reason)


def _reference(pair: QaRecord, rule: References) -> Verdict | None:
    has_table = _TABLE.search(pair.question) is not None
    for text, patterns in ((pair.question, rule.question), (pair.answer, rule.answer)):
        for pattern in patterns:
            found = re.search(pattern, text, re.IGNORECASE)
            if found is not None and not (has_table and re.search("table|表", found[0], re.IGNORECASE)):
                return Verdict(reason="not_self_contained", value=found[0], limit=None)
    return None


def _latex(pair: QaRecord) -> Verdict | None:
    if pair.discipline == "code":
        return None
    fault = latex_fault(pair.question) or latex_fault(pair.answer)
    return None if fault is None else Verdict(reason="latex", value=fault, limit=None)


def _arithmetic(pair: QaRecord, recomputer: Recomputer) -> Verdict | None:
    if pair.discipline == "code":
        return None
    text = pair.answer
    if pair.language not in ("zh", "en", "ja", "ko"):  # 3,5 + 1 = 4,5 elsewhere, and 1.000 may be a thousand
        text = re.sub(r"(?<=\d)[.,](?=\d)", "¤", text)  # no sign of arithmetic: such a number is passed over
    found = false_equation(text, recomputer)
    return None if found is None else Verdict(reason="arithmetic", value=str(found), limit=None)


def _code(pair: QaRecord, sandbox: Sandbox | None) -> Verdict | None:
    """A code answer against its `examples`: [{"stdin": …, "stdout": …} or {"test": …}, …]."""
    if sandbox is None or pair.discipline != "code":
        return None
    listed = pair.extra.get("examples")
    if not isinstance(listed, list) or not listed:
        return Verdict(reason="no_examples", value="code without examples cannot be run against any", limit=None)
    try:
        given = [{key: str(value) for key, value in entry.items() if value is not None} for entry in listed]
        examples = [Example(**entry) for entry in given]
    except (TypeError, AttributeError):
        return Verdict(reason="no_examples", value="examples are not stdin, stdout, test", limit=None)
    if any(example.stdout is None and example.test is None for example in examples):
        return Verdict(reason="no_examples", value="an example has neither stdout nor test", limit=None)
    verdict = sandbox.check(code_of(pair.answer), examples)
    return None if verdict.passed else Verdict(reason="code_fails", value=verdict.reason, limit=None)
