"""One request to a model behind OpenAI's interface; transient faults are waited out with growing, random waits."""

import os
import random
import re
import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from data_mixers.errors import ConfigError, DataError

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 0.5  # doubled at every attempt, with a random part, at most LONGEST_WAIT_SECONDS
LONGEST_WAIT_SECONDS = 30.0
LONGEST_ASKED_WAIT_SECONDS = 300.0  # of Retry-After
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LOOPBACK = ("localhost", "127.0.0.1", "::1")
KEY_VARIABLE = "OPENAI_API_KEY"
_KEY = f"set {KEY_VARIABLE} to a key that this server takes"
_PLACE = "the URL must go up to /v1, and the model's name be the server's own"
MISTAKEN = {
    401: _KEY,
    402: "the account has no credit left: pay, then run the same command again",
    403: _KEY,
    404: _PLACE,
    405: _PLACE,
}
"""Statuses that say nothing of the one request, and the cure: every other would be refused too."""


class RefusedError(DataError):
    """The server refuses this request, by a status that may be for what it holds (too long, a filter)."""


def host_of(url: str, *, option: str) -> str:
    """The name of a server's machine. Errors: ConfigError for a URL that is none."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # brackets that are not closed, a port that is none, a name with two dots in a row
        is_url = False
    if not is_url or parts.hostname is None:
        raise ConfigError(f"{option} {url!r} is no URL; write http://host:port/v1")
    return parts.hostname


def key_header() -> dict[str, str]:
    """With the key of the environment, if there is one.

    Errors: ConfigError for one that no header can hold; whoever sends it would quote it, key and all.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()  # a line end of a file that it was read from
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY_VARIABLE} holds characters that no key has, line ends or others (not shown); {_KEY}")
    return {"Authorization": f"Bearer {key}"} if key else {}


def open_client(url: str, *, timeout_seconds: float) -> httpx.Client:
    """With the key of the environment; this machine itself is reached without the proxy that the environment names."""
    direct = {f"all://[{host}]" if ":" in host else f"all://{host}": None for host in LOOPBACK}
    return httpx.Client(base_url=url.rstrip("/"), headers=key_header(), timeout=timeout_seconds, mounts=direct)


def post(client: httpx.Client, body: dict[str, Any], attempt: int, ended: threading.Event) -> tuple[str | None, str]:
    """(the reply's text, "") of attempt 0 to ATTEMPTS - 1, or (None, the fault) after a wait if another may do better.

    ended: set when the call is over, so that no thread of it waits on, or asks, for a Ctrl-C to come through.
    Errors: RefusedError; DataError if the server refuses every request, or the call is over.
    """
    if ended.is_set():
        raise DataError("the call is over")
    try:
        response = client.post("/chat/completions", json=body)
    except httpx.TransportError as error:
        _wait(attempt, ended)
        return None, f"{type(error).__name__}: {error}"
    status, choices = _status_and_choices(response)
    if status in TRANSIENT:
        _wait(attempt, ended, asked_wait_seconds(response.headers.get("Retry-After", "")))
        is_200 = response.status_code == 200
        return None, f"what is no model's answer: {response.text[:200]!r}" if is_200 else f"status {status}"
    if status != 200:
        cure = MISTAKEN.get(status)
        may_be_its_own = cure is None and 400 <= status < 500
        raise (RefusedError if may_be_its_own else DataError)(
            f"{response.url} answers {status}{f' ({cure})' if cure else ''}: {response.text[:300]}"
        )
    return _reply(choices), ""


def _status_and_choices(response: httpx.Response) -> tuple[int, Any]:
    """Of an error under status 200, as gateways send it, its own code; 502 if it has none, and of a web server's page.

    The error stands in place of the choices, beside them, or in the first.
    """
    if response.status_code != 200:
        return response.status_code, None
    try:
        content = response.json()
        choices = content.get("choices")
        error = content.get("error") or next((choice.get("error") for choice in choices[:1]), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 502, None
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        return code if isinstance(code, int) and 400 <= code < 500 else 502, None
    return 200, choices


def asked_wait_seconds(retry_after: str) -> float:
    """Of the header Retry-After: a number of seconds, or a date; 0 where it is neither."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", retry_after):
        seconds = float(retry_after)
    else:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_ASKED_WAIT_SECONDS)


def _reply(choices: Any) -> str:
    try:
        return said(choices[0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        return ""


def said(content: Any) -> str:
    """The text of a message's content, which may be a list of parts, without the thought of a reasoning model."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return without_thought(content) if isinstance(content, str) else ""


def without_thought(text: str) -> str:
    """What a reasoning model says behind its thought, where the server leaves that in the text.

    Its template may have written <think> itself. Empty if the thought has no end.
    """
    thought, mark, answer = text.partition("</think>")
    if not mark:
        return "" if text.lstrip().startswith("<think>") else text
    return answer.lstrip() if thought.lstrip().startswith("<think>") or "<think>" not in thought else text


def _wait(attempt: int, ended: threading.Event, asked_seconds: float = 0.0) -> None:
    if attempt + 1 < ATTEMPTS:
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.5, 1.0))
        ended.wait(max(wait, asked_seconds))
