"""Where answers come from: servers with OpenAI's interface, or transformers in this process."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from data_mixers.errors import ConfigError
from tools.data.chat import LOOPBACK, MISTAKEN, asked_wait_seconds, host_of, key_header, said, without_thought
from tools.synthesis.options import GenerateOptions
from tools.synthesis.prompts import Messages
from tools.synthesis.record import CUT_OFF

BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
LONGEST_REST_SECONDS = 30.0
CONNECT_SECONDS = 10.0  # ours: a server that works accepts at once, however long its answers take


@dataclass(frozen=True)
class Completion:
    text: str
    """Empty only where finish_reason is one of CUT_OFF: the budget ended in thought, or a filter took the text."""
    finish_reason: str
    usage: dict[str, int]


class RefusedError(Exception):
    """There will be no answer to this question, however often it is asked.

    blames_request: by its status (4xx), which may be that of every question.
    """

    def __init__(self, reason: str, *, blames_request: bool = False) -> None:
        super().__init__(reason)
        self.blames_request = blames_request


class FaultyError(Exception):
    """This answer is none; another attempt may give one.

    blames_server: it says nothing of the question (no connection, too busy), so it is no attempt at it.
    """

    def __init__(self, reason: str, *, blames_server: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.blames_server, self.retry_after = blames_server, retry_after


class TextGenerator(Protocol):
    """Answers one conversation. Errors: RefusedError, FaultyError."""

    async def generate(self, messages: Messages, sampling: dict[str, int | float]) -> Completion: ...

    async def close(self) -> None: ...


@dataclass
class _Endpoint:
    url: str
    proxy: str | None
    num_open: int = 0
    rests_until: float = 0.0
    rest_seconds: float = 0.5


class HttpGenerator:
    """The endpoint with the fewest open requests is asked; one that cannot be reached rests for a while.

    To be made inside an event loop; sends the environment's key. Errors: ConfigError for a URL that is none.
    aiohttp rather than httpx: httpcore looks through all its connections several times a request, which at 64 cost
    most of 4 to 8 ms of CPU a request, so that the client could not keep a server of 200 requests a second busy.
    """

    def __init__(self, urls: tuple[str, ...], options: GenerateOptions) -> None:
        self._endpoints, self._options = [_endpoint(url) for url in urls], options
        self._client = aiohttp.ClientSession(
            headers={"Content-Type": "application/json"} | key_header(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(options.timeout_seconds, CONNECT_SECONDS)),
            connector=aiohttp.TCPConnector(limit=0),  # as many as there are workers
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def generate(self, messages: Messages, sampling: dict[str, int | float]) -> Completion:
        now = time.monotonic()
        endpoint = min(self._endpoints, key=lambda e: (max(0.0, e.rests_until - now), e.num_open))
        endpoint.num_open += 1
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                completion = await self._ask(endpoint, {"model": self._options.model, "messages": messages, **sampling})
            endpoint.rest_seconds = 0.5
            return completion
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            endpoint.rests_until = time.monotonic() + endpoint.rest_seconds
            endpoint.rest_seconds = min(2 * endpoint.rest_seconds, LONGEST_REST_SECONDS)
            raise FaultyError(f"{endpoint.url}: {type(error).__name__}", blames_server=True) from error
        except TimeoutError as error:
            raise FaultyError(f"no answer within {self._options.timeout_seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise FaultyError(type(error).__name__) from error
        finally:
            endpoint.num_open -= 1

    async def _ask(self, endpoint: _Endpoint, body: dict[str, Any]) -> Completion:
        asked = self._client.post(
            f"{endpoint.url}/chat/completions", data=orjson.dumps(body), proxy=endpoint.proxy, allow_redirects=False
        )
        async with asked as response:
            content = bytearray()
            async for piece in response.content.iter_any():
                content += piece
                if len(content) > self._options.max_answer_bytes:
                    raise RefusedError(f"answer over {self._options.max_answer_bytes} bytes")
        status = response.status
        if status in BUSY or status >= 500:
            retry_after = asked_wait_seconds(response.headers.get("Retry-After", ""))
            raise FaultyError(f"status {status}", blames_server=status in BUSY, retry_after=retry_after)
        if status in MISTAKEN or 300 <= status < 400:
            cure = MISTAKEN.get(status, "name the URL that it points to")
            raise ConfigError(f"{endpoint.url} answers {status} ({cure}): {_start(content)}")
        if status != 200:
            raise RefusedError(f"status {status}: {_start(content)}", blames_request=True)
        return _completion(bytes(content))

    async def close(self) -> None:
        await self._client.close()


def _endpoint(url: str) -> _Endpoint:
    """With the proxy that the environment names for it; this machine itself is reached without one."""
    host = host_of(url, option="--endpoint")
    direct = host in LOOPBACK or proxy_bypass(host)
    return _Endpoint(url.rstrip("/"), None if direct else getproxies().get(urlsplit(url).scheme))


def _start(content: bytearray) -> str:
    return content[:300].decode(errors="replace")


def _completion(content: bytes) -> Completion:
    try:
        found = orjson.loads(content)
        choice, usage = found["choices"][0], found.get("usage") or {}
        text = said(choice["message"]["content"])
        counts = {key: int(usage[key]) for key in ("prompt_tokens", "completion_tokens") if usage.get(key) is not None}
        reason = str(choice.get("finish_reason") or "")
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FaultyError("the answer is not what OpenAI's interface says") from error
    return _with_text(Completion(text, reason, counts))


def _with_text(completion: Completion) -> Completion:
    """The same. Errors: FaultyError for an empty answer that was not cut off."""
    if not completion.text.strip() and completion.finish_reason not in CUT_OFF:
        raise FaultyError("empty answer")
    return completion


class LocalGenerator:
    """A Hugging Face folder in this process, one question at a time.

    Errors: ConfigError for a folder without a model that can be read, or whose tokenizer has no chat template.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():  # else transformers would take the name for one of a hub's
            raise ConfigError(f"--local {folder}: no Hugging Face folder, it has no config.json")
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from megatron_synE.runtime.device import select

        self._torch = torch
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise ConfigError(f"--local {folder}: {str(error).strip().splitlines()[0]}") from error
        if self._tokenizer.chat_template is None:
            raise ConfigError(f"--local {folder}: its tokenizer has no chat template; take a model tuned for chat")
        self._model = model.to(select("auto", local_rank=0).torch_device).eval()
        self._one = asyncio.Lock()

    async def generate(self, messages: Messages, sampling: dict[str, int | float]) -> Completion:
        async with self._one:
            return await asyncio.to_thread(self.answer, messages, sampling)

    def answer(self, messages: Messages, sampling: dict[str, int | float]) -> Completion:
        """The same at once, for callers without an event loop.

        Errors: FaultyError for an empty answer, RefusedError if the chat template takes no such conversation.
        """
        from jinja2 import TemplateError

        torch = self._torch
        try:
            asked = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
        except TemplateError as error:  # Gemma's: no system message
            raise RefusedError(f"its chat template says: {error}", blames_request=True) from error
        torch.manual_seed(int(sampling["seed"]))
        warm = float(sampling["temperature"]) > 0
        chances = {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": 0} if warm else {}
        with torch.inference_mode():
            tokens = self._model.generate(
                **asked, max_new_tokens=int(sampling["max_tokens"]), do_sample=warm, **chances,
                pad_token_id=self._tokenizer.eos_token_id,
            )  # fmt: skip
        num_prompt = asked["input_ids"].shape[1]
        new = tokens[0, num_prompt:]
        text = without_thought(self._tokenizer.decode(new, skip_special_tokens=True))
        reason = "length" if len(new) >= int(sampling["max_tokens"]) else "stop"
        return _with_text(Completion(text, reason, {"prompt_tokens": num_prompt, "completion_tokens": len(new)}))

    async def close(self) -> None:
        pass
