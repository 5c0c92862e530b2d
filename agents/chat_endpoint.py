"""A client of one chat endpoint: bounded in time and size, and patient with a server that is busy."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Mapping
from typing import Any, cast

import httpx
from pydantic import BaseModel, Field, ValidationError

from forkgym.agents.config import OpenAIConfig
from forkgym.agents.errors import AgentFailure

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_BYTES = 16 << 20
MAX_WORDS = 300  # characters of a server's own words in a message of ours
RETRIED_STATUSES = frozenset({408, 425, 429})  # and all from 500 on
REFUSALS = frozenset({400, 413, 422})  # with which servers refuse a context that is too long
TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum context|prompt is too long|too many tokens", re.IGNORECASE
)
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
MAX_RETRY_AFTER_S = 120.0
HINTS = {401: f"is {KEY_VARIABLE} right?", 403: f"may {KEY_VARIABLE} use it?", 404: "is agent.model one of its models?"}


class ContextTooLong(Exception):
    """The endpoint says that the conversation and what it may write are longer than its model's context."""


class WrittenFunction(BaseModel):
    """The function of a call. Some servers give the arguments as an object, not as its JSON."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class WrittenCall(BaseModel):
    """A call beside a message's text."""

    function: WrittenFunction
    id: str | None = None


class Message(BaseModel):
    """What the model wrote; the text may be missing beside calls, or where reasoning took all the tokens."""

    content: str | None = None
    tool_calls: list[WrittenCall] | None = None


class Choice(BaseModel):
    """A completion. ``stop_reason`` is vLLM's: the stop string that ended it."""

    message: Message
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Answer(BaseModel):
    """The body of a reply, of which the rest is ignored."""

    choices: list[Choice] = Field(min_length=1)


class TryAgain(Exception):
    """A try failed in a way that may pass; says how, and how long the server asked to wait, seconds."""

    def __init__(self, words: str, retry_after_s: float = 0.0) -> None:
        super().__init__(words)
        self.retry_after_s = retry_after_s


class ChatEndpoint:
    """Posts conversations to ``BASE_URL/chat/completions``; used in one event loop.

    - A try has one deadline from the name lookup to the last byte, and its reply a limit in size.
    - A lost connection, a timeout, the statuses 408, 425, 429 and from 500 on, and a reply that is no completion are
      tried again with growing random pauses, not before the server's ``Retry-After``.
    - No redirects, proxies of the environment or cookies; the key goes to this address only and is never shown.

    Args:
        config: Where it is, and how patient to be.
        connections: Requests at once, 1 or more.

    Raises:
        ValueError: The environment's key cannot be sent in a header.
    """

    def __init__(self, config: OpenAIConfig, connections: int) -> None:
        self._config = config
        self._url = f"{config.base_url.rstrip('/')}/chat/completions"
        self._client = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", **authorization(os.environ.get(KEY_VARIABLE, ""))},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            timeout=None,  # of each operation; `_try` has one for them all
            trust_env=False,
        )
        self._turnstile = asyncio.Semaphore(connections)

    async def ask(self, body: Mapping[str, Any]) -> Choice:
        """Send a request and return its completion.

        Raises:
            ContextTooLong: The endpoint refuses the length of the context.
            AgentFailure: There is no completion, after all tries; says why.
        """
        content = json.dumps(body, separators=(",", ":")).encode("ascii")
        async with self._turnstile:
            for number in range(self._config.retries + 1):
                try:
                    return await self._try(content)
                except TryAgain as problem:
                    if number == self._config.retries:
                        raise AgentFailure(f"{self._url} failed {number + 1} times, the last: {problem}") from problem
                    pause_s = min(FIRST_PAUSE_S * 2**number, MAX_PAUSE_S) * random.uniform(0.5, 1.5)
                    await asyncio.sleep(max(pause_s, problem.retry_after_s))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _try(self, content: bytes) -> Choice:
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self._config.timeout_s),
                self._client.stream("POST", self._url, content=content, headers=headers) as response,
            ):
                body = await read(response)
        except TimeoutError as error:
            raise TryAgain(f"no reply within {self._config.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise TryAgain(
                f"no connection, or a broken one ({printable(str(error)) or type(error).__name__})"
            ) from error
        status = response.status_code
        if response.is_success:
            return read_answer(body)
        words = words_of(body)
        if status in RETRIED_STATUSES or status >= 500:
            raise TryAgain(f"status {status}: {words}", retry_after_s(response))
        if status in REFUSALS and TOO_LONG.search(words):
            raise ContextTooLong(words)
        hint = f" ({HINTS[status]})" if status in HINTS else ""
        raise AgentFailure(f"{self._url} answered with status {status}{hint}: {words}")


def authorization(key: str) -> dict[str, str]:
    """The header that carries a key; nothing for an empty one, since servers of one's own need none.

    Raises:
        ValueError: It cannot be sent; the message does not show it.
    """
    if not key:
        return {}
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"{KEY_VARIABLE} holds blanks or characters that no key has, expected a key and nothing else")
    return {"Authorization": f"Bearer {key}"}


async def read(response: httpx.Response) -> bytes:
    """Read a body up to the limit; it is as it was sent, since a packed one could be a thousand times its size.

    Raises:
        TryAgain: It is larger, or packed although that was not asked for.
    """
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise TryAgain("a reply with an encoding that was not asked for")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_BYTES:
            raise TryAgain(f"a reply of more than {MAX_BYTES} bytes")
    return bytes(body)


def read_answer(body: bytes) -> Choice:
    """Read the completion in a reply.

    Raises:
        TryAgain: There is none.
    """
    try:
        # Python's reader takes half a surrogate pair, which a policy can write; encoding then makes "?" of it.
        parsed = json.loads(body.decode("utf-8", errors="replace"))
        return Answer.model_validate_json(json.dumps(parsed, ensure_ascii=False).encode("utf-8", "replace")).choices[0]
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise TryAgain(f"a reply that is no chat completion (its {place or 'JSON'} is wrong)") from error
    except (ValueError, RecursionError) as error:
        raise TryAgain("a reply that is not JSON") from error


def words_of(body: bytes) -> str:
    """What a server says of an error, short and printable: it goes to a terminal."""
    text = body.decode("utf-8", errors="replace")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = text
    for name in ("error", "detail", "message"):
        if isinstance(found, dict):
            fields = cast(dict[str, Any], found)
            found = fields.get(name, fields)
    return printable(found if isinstance(found, str) else str(found)) or "no words"


def printable(text: str) -> str:
    """One line of at most ``MAX_WORDS`` characters."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= MAX_WORDS else f"{line[:MAX_WORDS]}..."


def retry_after_s(response: httpx.Response) -> float:
    """How long a server asks to wait, seconds; the header's other form, a date, needs two clocks that agree."""
    after = response.headers.get("retry-after", "").strip()
    return min(float(after), MAX_RETRY_AFTER_S) if after.isascii() and after.isdecimal() else 0.0
