"""One request to a model behind OpenAI's interface; transient faults are waited out with growing, random waits."""

import random
import time
from typing import Any

import httpx

from data_mixers.errors import DataError

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 0.5  # doubled at every attempt, with a random part, at most LONGEST_WAIT_SECONDS
LONGEST_WAIT_SECONDS = 30.0
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


def post(client: httpx.Client, body: dict[str, Any], attempt: int) -> tuple[str | None, str]:
    """(the reply's text, "") of attempt 0 to ATTEMPTS - 1, or (None, the fault) after a wait if another may do better.

    Errors: DataError if the server refuses the request.
    """
    try:
        response = client.post("/chat/completions", json=body)
    except httpx.TransportError as error:
        _wait(attempt)
        return None, f"{type(error).__name__}: {error}"
    if response.status_code in TRANSIENT:
        _wait(attempt, response.headers.get("Retry-After"))
        return None, f"status {response.status_code}"
    if response.status_code != 200:
        raise DataError(f"{response.url} answers {response.status_code}: {response.text[:300]}")
    return _reply(response), ""


def _reply(response: httpx.Response) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""


def _wait(attempt: int, retry_after: str | None = None) -> None:
    if attempt + 1 < ATTEMPTS:
        wait = FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.5, 1.0)
        asked = float(retry_after) if retry_after is not None and retry_after.isdigit() else 0.0
        time.sleep(min(LONGEST_WAIT_SECONDS, max(wait, asked)))
