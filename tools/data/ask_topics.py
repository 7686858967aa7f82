"""`syne data ask-topics`: a small labelled set from language models behind OpenAI's interface, and their agreement.

document ─ prompt.json ─ each rater (a model, a pass) ─> answers.jsonl, a line an answer, kept at once
                                                      └─ majority ─> labelled.jsonl.zst, agreement.json
"""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import combinations, compress
from pathlib import Path
from typing import Any

import httpx
import orjson

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.data.chat import ATTEMPTS, RefusedError, host_of, open_client, post
from tools.data.documents import CONFIDENCE_KEY, TOPIC_KEY, Document, DocumentWriter, TaskDocuments, source_of_file
from tools.data.options import AskOptions
from tools.data.progress import LiveProgress
from tools.data.readers import find_inputs, plan_tasks
from tools.data.stage import only_one
from tools.data.topic_labels import read_topics
from tools.data.topic_metrics import cohen_kappa, topic_kappa

logger = logging.getLogger(__name__)

ANSWERS, LABELLED, AGREEMENT = "answers.jsonl", "labelled.jsonl.zst", "agreement.json"
FEWEST_UNANSWERED, MOST_UNANSWERED = 5, 0.1
"""So many questions, and this share of those asked by then, in calls before too, may end without a topic before it is
taken for the prompt's fault. Ours."""
TEXT_CHARACTERS = 4000  # ours: of each document are shown to the model
ANSWER_TOKENS = 100


@dataclass(frozen=True)
class _Question:
    rater: str
    model: str
    seed: int
    document: Document
    messages: tuple[dict[str, str], ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """(document, rater, hash of what is asked): what an answer is kept by."""
        asked = hashlib.sha256(orjson.dumps(self.messages)).hexdigest()[:16]
        return self.document.id, self.rater, asked


def ask_topics(options: AskOptions) -> dict[str, Any]:
    """The agreement report, and in it how many lines were no documents, by reason.

    Documents with the majority's topic go to <out>/labelled.jsonl.zst; topic_confidence there is the share of raters
    that gave the topic; at a tie the first rater decides.
    Asked is what has no answer yet to the same words; documents for which a rater names no topic, or that its server
    refuses, are left out, and listed.
    Errors: ConfigError for no URL, an unknown language or prompt, or a model given twice; DataError if the server
    refuses everything, stays away or mostly names no topic, if there is no document, or if a label to compare with is
    missing or no topic.
    """
    topics = read_topics(options.topics)
    if options.language not in topics:
        raise ConfigError(f"--language {options.language} has no topics; known: {', '.join(topics)}")
    titles = topics[options.language]
    host_of(options.url, option="--url")
    if twice := [name for name, count in Counter(options.models).items() if count > 1]:
        raise ConfigError(f"--model {twice[0]} is given twice; --passes 2 asks a model twice")
    prompt = _read_prompt(options)
    documents, left_out = _documents(options)
    gold = _gold(options, documents, titles)
    with only_one(options.out):
        answers = _kept(options.out / ANSWERS)
        asked = [_messages(prompt, titles, document) for document in documents]
        raters = [(f"{model}#{number}", model, number) for model in options.models for number in range(options.passes)]
        questions = [  # of each document, of each rater
            [_Question(*rater, document, messages) for rater in raters]
            for document, messages in zip(documents, asked, strict=True)
        ]
        missing = [each for of_document in questions for each in of_document if each.key not in answers]
        num_kept = len(documents) * len(raters) - len(missing)
        _ask_all(options, prompt, titles, missing, answers, num_kept=num_kept)
        has_all = [all(each.key in answers for each in of_document) for of_document in questions]
        if not any(has_all):
            raise DataError("no document got a topic from every rater; look at the --prompt and the models")
        answered = list(compress(questions, has_all))
        labels = {
            rater: [answers[of_document[place].key] for of_document in answered]
            for place, (rater, _, _) in enumerate(raters)
        }
        gold = {key: list(compress(of_key, has_all)) for key, of_key in gold.items()}
        unanswered = [document.id for document, is_whole in zip(documents, has_all, strict=True) if not is_whole]
        report = _agreement(gold | labels) | {"lines_left_out": dict(left_out), "without_answer": unanswered}
        _write_labelled(options.out / LABELLED, list(compress(documents, has_all)), list(labels.values()))
        write_atomic(options.out / AGREEMENT, json.dumps(report, ensure_ascii=False, indent=1).encode())
    return report


def _read_prompt(options: AskOptions) -> dict[str, str]:
    path = options.prompt or Path(__file__).with_name("topics") / "prompt.json"
    try:
        prompt: dict[str, str] = orjson.loads(path.read_bytes())[options.language]
        are_texts = all(isinstance(prompt[key], str) for key in ("system", "user", "again"))
        if not are_texts or "{text}" not in prompt["user"]:
            raise ValueError("system, user (with {text} and {topics}) and again must be texts")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--prompt {path}, language {options.language}: {error}") from error
    return prompt


def _documents(options: AskOptions) -> tuple[list[Document], Counter[str]]:
    """(All documents, with a language and a source as `train-classifier` asks for; lines that are none by reason)."""
    found: list[Document] = []
    left_out: Counter[str] = Counter()
    own = (options.out / LABELLED).resolve()  # of an earlier call, in a folder that is read
    if named := [name for name in options.inputs if Path(name).resolve() == own]:
        raise ConfigError(f"--input {named[0]} is what this call writes; choose another --out")
    for task in plan_tasks([path for path in find_inputs(options.inputs) if path.resolve() != own]):
        documents = TaskDocuments(task, text_key=options.text_key)
        known = {"language": options.language, "source": source_of_file(task.path)}
        for document in documents:
            added = {key: value for key, value in known.items() if document.fields.get(key) in (None, "")}
            found.append(replace(document, fields=document.fields | added))
        left_out.update(reason for _, reason in documents.bad)
    shown = ", ".join(f"{reason} ({count})" for reason, count in left_out.most_common(3))
    if not found:
        raise DataError(f"there is no document in {', '.join(options.inputs)}{f': {shown}' if shown else ''}")
    if left_out:
        logger.warning("%d lines are no documents, so nobody is asked: %s", left_out.total(), shown)
    twice = [name for name, count in Counter(document.id for document in found).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} ids occur more than once, e.g. {twice[0]!r}; answers are kept by id: give each document its "
            "own, or ask files of one name in calls of their own"
        )
    return found, left_out


def _messages(prompt: dict[str, str], titles: Mapping[str, str], document: Document) -> tuple[dict[str, str], ...]:
    listed = "\n".join(f'"{topic}": {title}' for topic, title in titles.items())
    asked = prompt["user"].replace("{topics}", listed).replace("{text}", document.text.strip()[:TEXT_CHARACTERS])
    return {"role": "system", "content": prompt["system"]}, {"role": "user", "content": asked}


def _kept(path: Path) -> dict[tuple[str, str, str], str]:
    """Answers of earlier calls, by _Question.key; a last line that was cut off is cut from the file too.

    Errors: DataError for a line that is no answer.
    """
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_atomic(path, whole)
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = orjson.loads(line)
            found[row["id"], row["rater"], row.get("question", "")] = row["topic"]
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}, is no answer ({error!r}); remove the line and run again"
            ) from error
    return found


def _ask_all(
    options: AskOptions,
    prompt: dict[str, str],
    titles: Mapping[str, str],
    questions: Sequence[_Question],
    answers: dict[tuple[str, str, str], str],
    *,
    num_kept: int,
) -> None:
    """num_kept: questions of this call that have an answer already; a call made again asks those without one alone."""
    with (
        LiveProgress("asking", total=len(questions), unit="answers", scale=1.0) as progress,
        open_client(options.url, timeout_seconds=options.timeout_seconds) as client,
        (options.out / ANSWERS).open("ab") as kept,
        ThreadPoolExecutor(options.parallel) as pool,
    ):
        num_asked, num_unanswered = num_kept, 0
        ended = threading.Event()
        futures = {pool.submit(_ask, client, prompt, titles, question, ended): question for question in questions}
        try:
            for future in as_completed(futures):
                question, refusal = futures[future], ""
                name, rater, asked = question.key
                try:
                    topic = future.result()
                except RefusedError as error:  # longer than its context, say: others may be answered
                    topic, refusal = None, f", as its server refuses it: {error}"
                progress.advance(1)
                num_asked += 1
                if topic is None:
                    num_unanswered += 1
                    logger.warning("%s names no topic for document %s, which is left out%s", rater, name, refusal)
                    if num_unanswered >= FEWEST_UNANSWERED and num_unanswered > MOST_UNANSWERED * num_asked:
                        raise DataError(
                            f"{num_unanswered} of {num_asked} questions got no topic in {ATTEMPTS} attempts, the last "
                            f"from {rater} for document {name}{refusal}; look at the --prompt and the model, whose "
                            f"answer must fit {ANSWER_TOKENS} tokens, thought included; answers are kept"
                        )
                    continue
                row = {"id": name, "rater": rater, "question": asked, "topic": topic}
                kept.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                kept.flush()
                answers[question.key] = topic
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url {options.url}: {error}") from error
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


def _ask(
    client: httpx.Client, prompt: dict[str, str], titles: Mapping[str, str], question: _Question, ended: threading.Event
) -> str | None:
    """The topic one rater gives; None if it answers, and names none however often it is asked.

    Transient faults are waited out. Errors: RefusedError; DataError if the server stays away.
    """
    messages, fault = list(question.messages), ""
    for attempt in range(ATTEMPTS):
        body = {
            "model": question.model, "messages": messages, "seed": question.seed + attempt, "max_tokens": ANSWER_TOKENS,
            "temperature": 0.0 if question.seed == attempt == 0 else 0.7, "response_format": _schema(list(titles)),
        }  # fmt: skip
        reply, fault = post(client, body, attempt, ended)
        if reply is None:
            continue
        topic = parse_topic(reply, titles)
        if topic is not None:
            return topic
        again = [{"role": "assistant", "content": reply}, {"role": "user", "content": prompt["again"]}]
        messages = [*messages[:2], *again]
    if not fault:  # the last attempt had an answer
        return None
    raise DataError(
        f"{question.rater}, document {question.document.id}: gave up after {ATTEMPTS} attempts ({fault}); "
        "what was answered so far is kept, run the same command again"
    )


def _schema(topics: list[str]) -> dict[str, Any]:
    """Servers that can, decode only these names."""
    schema = {
        "type": "object", "properties": {"topic": {"type": "string", "enum": topics}}, "required": ["topic"],
        "additionalProperties": False,
    }  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": "topic", "strict": True, "schema": schema}}


def parse_topic(reply: str, titles: Mapping[str, str]) -> str | None:
    """The topic a reply names, as {"topic": name} or as the bare name or title; None for anything else."""
    start, stop = reply.find("{"), reply.rfind("}")
    name: object = reply
    if 0 <= start < stop:
        try:
            name = orjson.loads(reply[start : stop + 1]).get("topic")
        except orjson.JSONDecodeError:
            return None
    if not isinstance(name, str):
        return None
    name = name.strip().strip("\"'`.。").casefold()
    return next((topic for topic, title in titles.items() if name in (topic.casefold(), title.casefold())), None)


def _gold(options: AskOptions, documents: list[Document], titles: Mapping[str, str]) -> dict[str, list[str]]:
    """The labels that are there, as a rater's; nothing where none are asked for."""
    if options.gold_key is None:
        return {}
    gold = []
    for document in documents:
        topic = document.fields.get(options.gold_key)
        if not isinstance(topic, str):
            raise DataError(f"--gold-key {options.gold_key}: a document has no label there ({document.id})")
        if topic not in titles:
            known = ", ".join(titles)
            raise DataError(f"--gold-key {options.gold_key}: {topic!r} ({document.id}) is no topic; known: {known}")
        gold.append(topic)
    return {options.gold_key: gold}


def _agreement(rated: dict[str, list[str]]) -> dict[str, Any]:
    num_documents = len(next(iter(rated.values())))
    pairs = {}
    for (first, of_first), (second, of_second) in combinations(rated.items(), 2):
        there = sorted(set(of_first) | set(of_second))
        pairs[f"{first} and {second}"] = {
            "agreement": sum(a == b for a, b in zip(of_first, of_second, strict=True)) / num_documents,
            "kappa": _or_none(cohen_kappa(of_first, of_second)),
            "kappa_by_topic": {topic: _or_none(topic_kappa(of_first, of_second, topic)) for topic in there},
        }
    counts = {name: dict(sorted(Counter(of_name).items())) for name, of_name in rated.items()}
    return {"num_documents": num_documents, "topics": counts, "pairs": pairs}


def _or_none(value: float) -> float | None:
    return value if value == value else None  # JSON has no NaN


def _write_labelled(path: Path, documents: list[Document], labels: list[list[str]]) -> None:
    with DocumentWriter(path) as writer:
        for document, given in zip(documents, zip(*labels, strict=True), strict=True):
            counts = Counter(given)  # keeps the raters' order among equals
            topic, number = counts.most_common(1)[0]
            writer.write(document.fields | {TOPIC_KEY: topic, CONFIDENCE_KEY: number / len(given)})
