"""Episodes on a Model Context Protocol server: sessions that share a connection, and sessions that have their own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkgym.tools.base import ToolError, ToolFailure, ToolSession
from forkgym.tools.mcp_client.mcp_connection import Connection, ConnectionLost, Endpoint
from forkgym.tools.web.plain_text import printable, shortened

if TYPE_CHECKING:
    from mcp.types import CallToolResult, ContentBlock

BACK_OFF_S = 0.5
MAX_RESULT_CHARACTERS = 20_000
NO_TEXT = "(no text)"

ReadCall = Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]]  # to the tool's name there, and its arguments


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered to a call: a result, or the model's mistake in words."""

    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class PastCall:
    """A call of an episode, and the SHA-256 of its reply, by which it is known again."""

    tool: str
    arguments: Mapping[str, Any]
    digest: str


class SharedSession(ToolSession):
    """Calls one tool over a connection that all episodes share; a fork is the session itself."""

    def __init__(self, connection: Connection, read_call: ReadCall, timeout_s: float) -> None:
        self.connection = connection
        self.read_call = read_call
        self.timeout_s = timeout_s

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Call the server's tool, at most twice."""
        name, own = self.read_call(arguments)
        try:
            try:
                reply = ask(self.connection, name, own, self.timeout_s)
            except ConnectionLost:
                time.sleep(BACK_OFF_S)
                reply = ask(self.connection, name, own, self.timeout_s)
        except ConnectionLost as error:
            raise failure(self.connection.endpoint, error) from error
        except TimeoutError as error:
            raise ToolError(f"{name} took longer than {self.timeout_s:g} s") from error
        return text_or_mistake(reply)

    def fork(self) -> SharedSession:
        """Return this session."""
        return self


class EpisodeSession(ToolSession):
    """Calls a server's tools over a connection of its own; a copy of its state is its calls, made again."""

    def __init__(self, endpoint: Endpoint, read_call: ReadCall, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.read_call = read_call
        self.timeout_s = timeout_s
        self.history: list[PastCall] = []
        self.connection: Connection | None = None

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Call one of the server's tools; where the server is lost, on another one that has made the same calls."""
        name, own = self.read_call(arguments)
        try:
            try:
                reply = ask(self._connected(), name, own, self.timeout_s)
            except ConnectionLost:
                self.close()
                time.sleep(BACK_OFF_S)
                reply = ask(self._connected(), name, own, self.timeout_s)
        except ConnectionLost as error:
            self.close()
            raise failure(self.endpoint, error) from error
        except TimeoutError as error:
            self.close()
            self.history = []
            raise ToolError(f"{name} took longer than {self.timeout_s:g} s; its session starts afresh") from error
        self.history.append(PastCall(name, own, digest(reply)))
        return text_or_mistake(reply)

    def fork(self) -> EpisodeSession:
        """Return a session with the same history, which connects at its first call."""
        twin = EpisodeSession(self.endpoint, self.read_call, self.timeout_s)
        twin.history = list(self.history)
        return twin

    def snapshot(self) -> Any:
        """The calls so far."""
        return [[past.tool, past.arguments, past.digest] for past in self.history]

    def restore(self, state: Any) -> None:
        """Take on a history; its calls are made again at the next call."""
        self.close()
        self.history = [PastCall(*past) for past in state]

    def close(self) -> None:
        """End the connection, and the server where it was started for it."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def _connected(self) -> Connection:
        """The episode's connection, or another one on which its calls were made again."""
        if self.connection is None:
            connection = Connection(self.endpoint, reopens=False)
            for past in self.history:
                try:
                    reply = ask(connection, past.tool, past.arguments, self.timeout_s)
                except TimeoutError as error:
                    raise ConnectionLost(f"{past.tool} took longer than before") from error
                if digest(reply) != past.digest:
                    connection.close()
                    reason = f"{past.tool} answered otherwise than before, so the episode's state cannot be copied"
                    raise ToolFailure(f"mcp server {self.endpoint.server!r}: {reason}")
            self.connection = connection
        return self.connection


def failure(endpoint: Endpoint, error: ConnectionLost) -> ToolFailure:
    """The failure of the infrastructure that a lost connection is after its second chance."""
    return ToolFailure(f"mcp server {endpoint.server!r}: {error}")


def ask(connection: Connection, name: str, arguments: Mapping[str, Any], timeout_s: float) -> Reply:
    """Call a tool once; see `Connection.call` for what is raised."""
    from mcp import MCPError

    try:
        result = connection.call(name, arguments, timeout_s)
    except MCPError as error:
        return Reply(shortened(printable(str(error)), MAX_RESULT_CHARACTERS), is_error=True)
    return Reply(text_of(result), result.is_error)


def digest(reply: Reply) -> str:
    """A fingerprint of a reply."""
    return hashlib.sha256(f"{reply.is_error} {reply.text}".encode()).hexdigest()


def text_or_mistake(reply: Reply) -> str:
    """The text of a result; ToolError where the server calls it an error."""
    if reply.is_error:
        raise ToolError(reply.text)
    return reply.text


def text_of(result: CallToolResult) -> str:
    """A result as text: its texts, a line for each thing that is none, or its structure where it has nothing else."""
    parts = [line_for(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return shortened(printable("\n".join(parts)), MAX_RESULT_CHARACTERS) or NO_TEXT


def line_for(block: ContentBlock) -> str:
    """One block of a result as text."""
    if block.type == "text":
        return block.text
    if block.type == "resource_link":
        return f"[resource: {block.uri}]"
    if block.type == "resource":
        own = getattr(block.resource, "text", None)
        return own if isinstance(own, str) else f"[resource, not shown: {block.resource.uri}]"
    return f"[{block.type}, not shown: {block.mime_type}]"
