"""Questions put to a generator, many at once: bounded queue, retries with jitter, rate limit, an end to waiting.

questions ─ bounded queue ─ `concurrency` workers ─> on_answer(question, Completion | reason)
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from data_mixers.errors import ConfigError, DataError, UserError
from tools.synthesis.options import GenerateOptions
from tools.synthesis.prompts import Messages
from tools.synthesis.text_generator import Completion, FaultyError, RefusedError, TextGenerator

logger = logging.getLogger(__name__)

ATTEMPTS = 6  # at one question; only those of a server that meanwhile answers others are counted
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Question:
    """One sample of one seed."""

    seed_hash: str
    sample: int
    messages: Messages
    sampling: dict[str, int | float]


@dataclass
class Requests:
    """What it took."""

    sent: int = 0
    retried: int = 0


async def ask_all(
    questions: Iterable[Question],
    generator: TextGenerator,
    options: GenerateOptions,
    on_answer: Callable[[Question, Completion | str], None],
) -> Requests:
    """Every question is answered or refused for a stated reason when this returns; on_answer is told in the order of
    arrival. At most 2 · concurrency questions are in memory.

    Errors: ConfigError if the server refuses the model's name or the key, or every question; DataError if it fails
    every request for options.give_up_seconds; what was told before stays told.
    """
    asker = _Asker(generator, options)
    waiting: asyncio.Queue[Question | None] = asyncio.Queue(options.concurrency)

    async def work() -> None:
        while (question := await waiting.get()) is not None:
            on_answer(question, await asker.ask(question))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(options.concurrency):
                group.create_task(work())
            for question in questions:
                await waiting.put(question)
            for _ in range(options.concurrency):
                await waiting.put(None)
    except* (UserError, OSError) as errors:  # OSError: on_answer could not write
        raise errors.exceptions[0] from None
    return asker.requests


class _Asker:
    def __init__(self, generator: TextGenerator, options: GenerateOptions) -> None:
        self._generator, self._options = generator, options
        self._failed_in_a_row = 0
        self._num_answers = 0
        self._failing_since: float | None = None
        self._probe = asyncio.Lock()
        self._next_slot = 0.0
        self.requests = Requests()

    async def ask(self, question: Question) -> Completion | str:
        """The answer, or why there is none."""
        attempts, answers_before, wait = 0, self._num_answers, FIRST_WAIT_SECONDS
        while True:
            try:
                completion = await self._careful(question)
            except RefusedError as error:
                if not error.blames_request or await self._answers_others(question, answers_before):
                    self._is_there()
                    return str(error)
                fault = FaultyError(str(error))
            except FaultyError as error:
                attempts += not error.blames_server
                if attempts >= ATTEMPTS and await self._answers_others(question, answers_before):
                    return f"{attempts} attempts: {error}"
                fault = error
            else:
                self._works()
                return completion
            self._fails(fault)
            self.requests.retried += 1
            await asyncio.sleep(max(fault.retry_after, wait * random.uniform(0.5, 1.0)))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _answers_others(self, question: Question, answers_before: int) -> bool:
        """Whether the server has answered any since, or answers a plain question now: without others that are answered
        (the last ones of a call), what it fails always would else be asked for ever.

        All but the plain one's last message is as in the question: a server can refuse a system message, a field or
        max_tokens, and then it refuses every question. Errors: ConfigError if it refuses this one too.
        """
        if self._num_answers > answers_before:
            return True
        messages = [*question.messages[:-1], {"role": "user", "content": "Say yes."}]
        try:
            await self._careful(Question("", 0, messages, question.sampling))
        except FaultyError:
            return False
        except RefusedError as error:
            if not error.blames_request:
                return True
            raise ConfigError(
                f"the server refuses every question, a plain one too ({error}); nothing is kept of what it refused: "
                "change the option, or the prompt, that it names, then run again"
            ) from None
        self._works()
        return True

    async def _careful(self, question: Question) -> Completion:
        """While everything fails, one request at a time probes the server; the others wait for it."""
        if self._is_down():
            async with self._probe:
                if self._is_down():
                    return await self._once(question)
        return await self._once(question)

    def _is_down(self) -> bool:
        return self._failed_in_a_row >= 2 * self._options.concurrency

    async def _once(self, question: Question) -> Completion:
        if self._options.per_second is not None:
            now = time.monotonic()
            self._next_slot = max(now, self._next_slot) + 1 / self._options.per_second
            await asyncio.sleep(self._next_slot - 1 / self._options.per_second - now)
        if self._is_down():
            pause = FIRST_WAIT_SECONDS * 2 ** min(10, self._failed_in_a_row - 2 * self._options.concurrency)
            await asyncio.sleep(min(pause, LONGEST_WAIT_SECONDS))
        self.requests.sent += 1
        return await self._generator.generate(question.messages, question.sampling)

    def _is_there(self) -> None:
        self._failed_in_a_row, self._failing_since = 0, None

    def _works(self) -> None:
        self._is_there()
        self._num_answers += 1  # a refusal is none: one would vouch for the next, and a refused call run to its end

    def _fails(self, error: FaultyError) -> None:
        self._failed_in_a_row += 1
        is_first = self._failed_in_a_row == 1 and not self._num_answers
        if is_first or self._failed_in_a_row == 2 * self._options.concurrency:
            logger.warning("no answer (%s); trying again for at most %g s", error, self._options.give_up_seconds)
        self._failing_since = self._failing_since or time.monotonic()
        failing = time.monotonic() - self._failing_since
        if failing >= self._options.give_up_seconds:
            raise DataError(
                f"the server has failed every request for {failing:.0f} s (last: {error}); what was answered is kept: "
                "run the same command again when it is back"
            )
