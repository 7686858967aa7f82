"""`syne synth generate`: a model's pair for every seed and sample, exactly one of each, whatever happens in between.

    seeds ─ not answered yet ─ asking ─> <out>/parts/*.jsonl (append only)
    all there ─> pairs.jsonl.zst · failed.jsonl.zst · report.json
A job array takes seed i on element i modulo the array's size; every element writes a part of its own.
"""

import asyncio
import hashlib
import json
import logging
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

from data_mixers.atomic import write_atomic
from data_mixers.errors import ConfigError, DataError
from tools.data.documents import DocumentWriter
from tools.data.progress import LiveProgress
from tools.data.readers import FAILED, PAIRS, BadRecord, find_inputs, plan_tasks
from tools.data.stage import Report, Stage, forget, only_one, run_stage
from tools.synthesis.answers import Key, Part, key, key_of, parts_of, read_part
from tools.synthesis.asking import Question, Requests, ask_all
from tools.synthesis.options import GenerateOptions
from tools.synthesis.output import bad_line, documents_of
from tools.synthesis.own_server import own_server
from tools.synthesis.prompts import Prompts, read_prompts
from tools.synthesis.record import QaRecord
from tools.synthesis.sections import Sections
from tools.synthesis.text_generator import Completion, HttpGenerator, LocalGenerator, TextGenerator

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_NOTES = 5.0
NEEDED = ("text", "seed_id", "seed_hash", "discipline", "language")
USAGE = ("prompt_tokens", "completion_tokens")
REPORT = "report.json"


def generate(options: GenerateOptions) -> dict[str, Any]:
    """Ask what is not answered yet and write pairs, failures and the report, which is returned.

    A call that was stopped in any way goes on when made again, with other endpoints, more samples or more seeds too.
    Errors: ConfigError for options that do not fit, or a folder of another model, prompt or sampling; DataError for
    damaged seeds or a server that stays away; KeyboardInterrupt after SIGINT or SIGTERM, with all answers kept.
    Memory: some 100 bytes a seed and sample, 2 · concurrency questions and max_answer_bytes · concurrency.
    """
    if sum(map(bool, (options.endpoints, options.local, options.server_command))) != 1:
        raise ConfigError("name one of --endpoint (repeated for more), --local and --server-command")
    if options.samples > 1 and options.temperature == 0:
        raise ConfigError(
            f"--samples {options.samples} with --temperature 0 gives one answer {options.samples} times; "
            "raise --temperature, or take --samples 1"
        )
    prompts = read_prompts(options.prompts)
    with only_one(options.out):
        _check_folder(options)
        num_seeds, digest = _count(options, prompts)
        total = num_seeds * options.samples
        if (array := options.array) is None:
            with LiveProgress("generate", total=total, unit="QA", scale=1) as progress:
                results = [_share(options, 0, 1, progress.advance, progress.skip, progress.note)]
        else:
            stage = Stage(
                name="generate", work=options.out / ".work", fingerprint=_fingerprint(options, array.tasks, digest),
                sizes=tuple(len(range(rank, total, array.tasks)) for rank in range(array.tasks)),
                do=partial(_task, options, array.tasks), unit="QA", scale=1,
            )  # fmt: skip
            if options.retry_failed:
                for rank in range(array.tasks):
                    forget(stage, rank)
            results = run_stage(stage, workers=1, array=array)
        return _finish(options, total, results)


def _fingerprint(options: GenerateOptions, size: int, digest: str) -> str:
    deciding = [_deciding(options), size, options.samples, digest]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _sampling(options: GenerateOptions) -> dict[str, int | float]:
    return {"temperature": options.temperature, "top_p": options.top_p, "max_tokens": options.max_tokens}


def _deciding(options: GenerateOptions) -> dict[str, Any]:
    hashes = _template_hashes(read_prompts(options.prompts))
    return {"model": options.model, "seed": options.seed, "prompts": hashes} | _sampling(options)


def _template_hashes(prompts: dict[str, Prompts]) -> dict[str, str]:
    """By language/discipline."""
    return {f"{language}/{name}": found.template_hash(name) for language, found in prompts.items()
            for name in (*found.focus, "code")}  # fmt: skip


def _check_folder(options: GenerateOptions) -> None:
    path, deciding = options.out / "call.json", _deciding(options)
    if path.exists():
        try:
            before = json.loads(path.read_bytes())
            changed = [key for key in deciding if before.get(key) != deciding[key]]
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is not of syne synth generate ({error}); choose another --out") from error
        if changed:
            raise ConfigError(f"{options.out} holds answers with another {', '.join(changed)}; choose another --out")
    write_atomic(path, json.dumps(deciding, ensure_ascii=False, indent=1).encode())


def _seeds(options: GenerateOptions) -> Iterator[dict[str, Any]]:
    for task, document in documents_of(plan_tasks(find_inputs(options.seeds, option="--seeds")), text_key="text"):
        missing = [key for key in NEEDED if not isinstance(document.fields.get(key), str)]
        if missing:
            raise bad_line(task, BadRecord(document.line, f"no seed, {', '.join(missing)} missing"))
        yield document.fields


def _count(options: GenerateOptions, prompts: dict[str, Prompts]) -> tuple[int, str]:
    """(how many seeds there are, a digest of all in their order)."""
    seen: set[bytes] = set()
    whole = hashlib.sha256()
    number = 0
    for seed in _seeds(options):
        language, discipline = seed["language"], seed["discipline"]
        if language not in prompts or discipline not in (*prompts[language].focus, "code"):
            raise ConfigError(f"{options.prompts} has no prompt for {language}/{discipline} (seed {seed['seed_hash']})")
        seen.add(key(seed["seed_hash"], 0))
        whole.update(key(seed["seed_hash"], 0))
        number += 1
    if not number:
        raise DataError(f"there is no seed in {', '.join(options.seeds)}")
    if len(seen) < number:
        raise DataError(f"{number - len(seen)} seeds have the seed_hash of another; answers are kept by it")
    return number, whole.hexdigest()


def _task(options: GenerateOptions, size: int, rank: int, report: Report) -> dict[str, Any]:
    return _share(options, rank, size, report, report, lambda text: logger.info("%s", text))


def _share(
    options: GenerateOptions, rank: int, size: int, advance: Report, skip: Report, note: Callable[[str], None]
) -> dict[str, Any]:
    """Ask what of seeds rank, rank + size, ... is missing; numbers of requests for the report."""
    done: set[Key] = {
        key_of(line)
        for path in parts_of(options.out)
        for line in read_part(path)
        if not (options.retry_failed and "failed" in line)
    }
    share = _Share(options, done, rank, size, advance, note)
    skip(sum(1 for index, seed in enumerate(_seeds(options)) if index % size == rank
             for sample in range(options.samples) if key(seed["seed_hash"], sample) in done))  # fmt: skip
    if next(share.questions(), None) is None:
        return share.result(Requests())
    command = options.server_command
    serve = own_server(command, wait_seconds=options.server_wait_seconds) if command else None
    # By host too: on a node that was cut off an element may still write while its successor runs on another.
    path = options.out / "parts" / f"{rank:05d}-of-{size:05d}.{socket.gethostname()}.jsonl"
    try:
        with serve or nullcontext(None) as url, Part(path) as part:
            share.start(part)
            requests = asyncio.run(_run(options, share, (url,) if url else options.endpoints))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        logger.info("stopped: %s; the same command goes on", share.line())
        raise KeyboardInterrupt from error
    except DataError:
        logger.info("%s", share.line())
        raise
    return share.result(requests)


async def _run(options: GenerateOptions, share: "_Share", urls: tuple[str, ...]) -> Requests:
    this = asyncio.current_task()
    assert this is not None  # asyncio.run makes one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    local = options.local
    generator: TextGenerator = HttpGenerator(urls, options) if local is None else LocalGenerator(local)
    try:
        return await ask_all(share.questions(), generator, options, share.on_answer)
    finally:
        await generator.close()


class _Share:
    """One process's questions and its counts."""

    part: Part

    def __init__(
        self, options: GenerateOptions, done: set[Key], rank: int, size: int, advance: Report,
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._options, self._done, self._rank, self._size = options, done, rank, size
        self._advance, self._note = advance, note
        self._prompts = read_prompts(options.prompts)
        self._hashes = _template_hashes(self._prompts)
        self._open: dict[tuple[str, int], dict[str, Any]] = {}
        self._started = self._spoken = time.monotonic()
        self._accepted = self._answered = self._tokens = 0

    def start(self, part: Part) -> None:
        """From now on answers come into the part; what a server of one's own took to start is no part of the speed."""
        self.part = part
        self._started = self._spoken = time.monotonic()

    def questions(self) -> Iterator[Question]:
        for index, seed in enumerate(_seeds(self._options)):
            if index % self._size != self._rank:
                continue
            for sample in range(self._options.samples):
                if key(seed["seed_hash"], sample) in self._done:
                    continue
                asked = seed["seed_hash"], sample
                digest = hashlib.blake2b(f"{self._options.seed} {asked}".encode(), digest_size=4).digest()
                sampling = _sampling(self._options) | {"seed": int.from_bytes(digest, "little") >> 1}
                messages = self._prompts[seed["language"]].ask(seed["discipline"], seed["text"])
                self._open[asked] = seed
                yield Question(seed["seed_hash"], sample, messages, sampling)

    def on_answer(self, question: Question, answer: Completion | str) -> None:
        seed = self._open.pop((question.seed_hash, question.sample))
        self._answered += 1
        known: dict[str, Any] = {name: seed[name] for name in NEEDED if name != "text"} | {
            "sample": question.sample, "sampling": question.sampling,
            "prompt_hash": self._hashes[f"{seed['language']}/{seed['discipline']}"],
        }  # fmt: skip
        failed = known | {"model": self._options.model}
        if isinstance(answer, str):
            self.part.append(failed | {"failed": answer})
        else:
            self._tokens += answer.usage.get("completion_tokens", 0)
            said = {"usage": answer.usage, "finish_reason": answer.finish_reason}
            sections: Sections | str
            if answer.text.strip():
                sections = self._prompts[seed["language"]].sections(seed["discipline"], answer.text, seed["text"])
            else:  # all of max_tokens went into thought, or a filter took the text
                cure = "" if answer.finish_reason == "content_filter" else ": raise --max-tokens"
                sections = f"no text, finish_reason {answer.finish_reason}{cure}"
            if isinstance(sections, str):
                self.part.append(failed | said | {"failed": sections, "text": answer.text})
            else:
                self._accepted += 1
                pair = QaRecord(
                    **known, id=f"{question.seed_hash}-{question.sample}", question=sections.question,
                    answer=sections.answer, generator=self._options.model, usage=answer.usage,
                )  # fmt: skip
                examples = {"examples": sections.examples} if sections.examples else {}
                self.part.append(pair.to_json() | {"finish_reason": answer.finish_reason} | examples)
        self._advance(1)
        if time.monotonic() - self._spoken >= SECONDS_BETWEEN_NOTES:
            self._spoken = time.monotonic()
            self._note(self.line())

    def line(self) -> str:
        """How it goes since this call began."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        share = 100 * self._accepted / max(1, self._answered)
        return (
            f"{self._answered} answers, {self._answered / seconds:.2f} QA/s, {self._tokens / seconds:.0f} tokens/s, "
            f"{share:.0f} % accepted"
        )

    def result(self, requests: Requests) -> dict[str, Any]:
        return {"requests": requests.sent, "retried": requests.retried, "seconds": time.monotonic() - self._started}


def _finish(options: GenerateOptions, total: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    """All parts as one file of pairs and one of failures; refuses if one is missing or there twice."""
    wanted = {key(seed["seed_hash"], sample) for seed in _seeds(options) for sample in range(options.samples)}
    reasons: Counter[str] = Counter()
    accepted: dict[str, Counter[str]] = {}
    paid: Counter[str] = Counter()
    tokens = num_pairs = others = 0
    with DocumentWriter(options.out / PAIRS) as pairs, DocumentWriter(options.out / FAILED) as failures:
        for line, is_last in _pairs_first(options):
            usage = line.get("usage", {})
            paid.update({name: usage[name] for name in USAGE if isinstance(usage.get(name), int)})
            found = key_of(line)
            if not is_last or found not in wanted:  # of a seed or a sample that this call does not ask for, or twice
                others += 1
                continue
            wanted.remove(found)
            if "failed" in line:
                reasons[_kind(line["failed"])] += 1
                failures.write(line)
                continue
            num_pairs += 1
            tokens += usage.get("completion_tokens", 0)
            accepted.setdefault(line["language"], Counter())[line["discipline"]] += 1
            pairs.write(line)
        if wanted:
            raise DataError(f"{len(wanted)} of {total} answers are missing; run the same command again")
    seconds = sum(result["seconds"] for result in results)
    report = {
        "command": "synth generate",
        "inputs": [{"file": str(path)} for path in find_inputs(options.seeds, option="--seeds")],
        "asked": total, "pairs": num_pairs, "failed": dict(reasons.most_common()),
        "not_asked_for": others, "accepted_tokens": tokens, "usage": {name: paid[name] for name in USAGE},
        "pairs_by_discipline": {language: dict(sorted(counts.items())) for language, counts in accepted.items()},
        "last_call": {"requests": sum(r["requests"] for r in results), "retried": sum(r["retried"] for r in results),
                      "seconds": round(seconds, 3)},
    }  # fmt: skip
    write_atomic(options.out / REPORT, json.dumps(report, ensure_ascii=False, indent=1).encode())
    return report


def _pairs_first(options: GenerateOptions) -> Iterator[tuple[dict[str, Any], bool]]:
    """All lines of all parts, with whether it is the last of its question: a failure that was asked again is not, and
    does not stand in the way of the pair it became either."""
    failures: Counter[Key] = Counter()
    for line in chain.from_iterable(map(read_part, parts_of(options.out))):
        if "failed" in line:
            failures[key_of(line)] += 1
        else:
            yield line, True
    parts = sorted(parts_of(options.out), key=lambda path: path.stat().st_mtime_ns)  # an array may have another size
    for line in chain.from_iterable(map(read_part, parts)):
        if "failed" in line:
            failures[key_of(line)] -= 1
            yield line, not failures[key_of(line)]


def _kind(reason: str) -> str:
    """Without how often it was tried, and without the server's own words: "6 attempts: status 500: …" is status 500."""
    return re.sub(r"^\d+ attempts: ", "", reason).partition(": ")[0]
