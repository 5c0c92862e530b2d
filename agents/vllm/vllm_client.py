"""The client of one vLLM server that was started with our routes (`vllm_routes`); used in one event loop."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from forkgym.agents.chat_endpoint import printable, words_of
from forkgym.agents.vllm.server_protocol import PREFIX

UNIX = "unix:"  # before the path of a socket, in an address
KEEP_ALIVE_S = 3.0  # below the server's 5, so that no request meets a connection that is being closed
CONNECT_S = 10.0
HEALTH_S = 5.0

Ending = Literal["stop", "length"]


class ServerProblem(Exception):
    """A server gave no usable reply; says why. It may be gone."""


class ServerRefusal(ServerProblem):
    """A server runs and says no.

    Attributes:
        status: Of the reply; 409 where it has other weights.
    """

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


class ServerDescription(BaseModel):
    """What a server was started with, as `vllm_routes.description` gives it.

    Attributes:
        model: The fields of the model's config.
        tokenizer: See `vocabulary.vocabulary_hash`; None where it was started without one.
        weights: Names those that it has taken over last.
    """

    protocol: int
    vllm: str
    forkgym: str
    worker_extension: str | None
    workers: int
    device: str
    dtype: str
    logprobs_mode: str
    max_logprobs: int
    max_context: int
    chunked_prefill: bool
    prefix_caching: bool
    logits_processors: list[str]
    model: dict[str, Any]
    tokenizer: str | None
    weight_transfer: str | None
    weights: str


class Score(BaseModel):
    """A prompt that was continued greedily, and the log-prob of each token but the first, nats."""

    tokens: list[int]
    logprobs: list[float]


class TurnError(BaseModel):
    """What went wrong, with a turn or else with the whole session."""

    error: str
    turn: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What was sampled of a turn since the last piece.

    Attributes:
        turn: Its name.
        tokens: In order.
        logprobs: Of each, nats.
        low: Lower bound of the entropy before each, nats.
        high: Upper bound.
        end: Why the server ended the turn; None where it goes on.
    """

    turn: str
    tokens: list[int]
    logprobs: list[float]
    low: list[float]
    high: list[float]
    end: Ending | None


Line = tuple[str, list[int], list[float], list[float], list[float], Ending | None]
LINE: TypeAdapter[Line] = TypeAdapter(Line)


class ServerClient:
    """Talks to one server over pooled connections.

    Args:
        address: Such as ``http://127.0.0.1:8001``, or ``unix:`` and the path of a socket.
        timeout_s: Longest silence of the server, in seconds, after which it counts as gone.
        key: That the server asks for; empty for none.
        transport: In place of the network, for tests.
    """

    def __init__(
        self, address: str, *, timeout_s: float, key: str = "", transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.address = address
        unix = address.startswith(UNIX)
        if transport is None:
            limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)
            transport = httpx.AsyncHTTPTransport(
                uds=address.removeprefix(UNIX) if unix else None, limits=limits, trust_env=False
            )
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._client = httpx.AsyncClient(
            base_url="http://server" if unix else address,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S, pool=None),
            transport=transport,
            trust_env=False,
        )

    async def healthy(self) -> bool:
        """Whether the server answers soon, and says that all is well."""
        try:
            return (await self._client.get("/health", timeout=HEALTH_S)).is_success
        except httpx.TransportError:
            return False

    async def describe(self) -> ServerDescription:
        """Ask what the server was started with.

        Raises:
            ServerRefusal: It is not one that was started with our routes.
            ServerProblem: There is no reply.
        """
        body = await self._ask("GET", "server")
        try:
            return ServerDescription.model_validate_json(body)
        except ValidationError as error:
            raise ServerRefusal("it describes itself otherwise than this version of forkgym knows", 200) from error

    async def take_weights(self, path: str, name: str) -> None:
        """Let the server take weights from a safetensors file.

        Raises:
            ServerRefusal: It can't use them.
            ServerProblem: There is no reply.
        """
        await self._ask("POST", "weights", {"path": path, "weights": name})

    async def transfer(self, step: str, arguments: Mapping[str, Any], name: str) -> None:
        """Let the server take a step of vLLM's weight transfer; the last one names the weights.

        Raises:
            ServerRefusal: It can't.
            ServerProblem: There is no reply.
        """
        await self._ask("POST", "transfer", {"step": step, "arguments": arguments, "weights": name})

    async def score(self, tokens: Sequence[int], count: int) -> Score:
        """Continue a prompt greedily by ``count`` tokens.

        Raises:
            ServerRefusal: The server won't.
            ServerProblem: There is no usable reply.
        """
        body = await self._ask("POST", "score", {"tokens": list(tokens), "count": count})
        try:
            return Score.model_validate_json(body)
        except ValidationError as error:
            raise ServerProblem("it sent no score") from error

    async def session(self, name: str, weights: str) -> AsyncGenerator[Piece | None]:
        """Open a session for certain weights; gives what is sampled in it, and None for a sign of life.

        The first sign of life comes when it is open.

        Raises:
            ServerRefusal: The server has other weights, or refuses a turn.
            ServerProblem: The session broke off, or the server was silent for too long.
        """
        body = encoded({"session": name, "weights": weights})
        try:
            async with self._client.stream("POST", f"{PREFIX}session", content=body) as response:
                if not response.is_success:
                    raise refused(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    yield read_line(line) if line else None
        except httpx.TransportError as error:
            raise ServerProblem(words_for(error)) from error
        raise ServerProblem("its session ended")

    async def send(self, session: str, turns: Sequence[Mapping[str, Any]], abort: Sequence[str]) -> None:
        """Begin turns in a session (see `vllm_routes.Turn` for what each holds), and break off others.

        Raises:
            ServerRefusal: There is no such session.
            ServerProblem: There is no reply.
        """
        await self._ask("POST", "turns", {"session": session, "turns": list(turns), "abort": list(abort)})

    async def end(self, session: str) -> None:
        """End a session; its turns are broken off.

        Raises:
            ServerRefusal: There is no such session.
            ServerProblem: There is no reply.
        """
        await self._ask("POST", "end", {"session": session})

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, route: str, body: Mapping[str, Any] | None = None) -> bytes:
        content = None if body is None else encoded(body)
        try:
            response = await self._client.request(method, f"{PREFIX}{route}", content=content)
        except httpx.TransportError as error:
            raise ServerProblem(words_for(error)) from error
        if response.is_success:
            return response.content
        raise refused(response.status_code, response.content)


def encoded(body: Mapping[str, Any]) -> bytes:
    """The body as JSON."""
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def refused(status: int, body: bytes) -> ServerProblem:
    """What a reply of another status than 2xx says."""
    words = f"status {status}: {words_of(body)}"
    return ServerProblem(words) if status >= 500 else ServerRefusal(words, status)


def read_line(line: str) -> Piece:
    """Read a line of a session.

    Raises:
        ServerRefusal: It says that a turn is refused.
        ServerProblem: It says that the session is over, or it is nothing that we know.
    """
    try:
        if line.startswith("{"):
            found = TurnError.model_validate_json(line)
            words = printable(found.error)
            raise ServerProblem(words) if found.turn is None else ServerRefusal(words, 400)
        piece = Piece(*LINE.validate_json(line))
    except ValidationError as error:
        raise ServerProblem("it sent a line that is no part of a turn") from error
    if not len(piece.tokens) == len(piece.logprobs) == len(piece.low) == len(piece.high):
        raise ServerProblem("it sent tokens without a log-prob each")
    return piece


def words_for(error: httpx.TransportError) -> str:
    """Say why there is no connection any more."""
    if isinstance(error, httpx.TimeoutException):
        return "it was silent for too long"
    return f"no connection, or a broken one ({printable(str(error)) or type(error).__name__})"
