"""Tools of any Model Context Protocol server, by the official client library (the extra ``mcp``).

On a command line a server is written ``mcp:COMMAND`` or ``mcp:http://HOST:PORT/mcp``, and some of its tools
``mcp:COMMAND#TOOL,TOOL=NAME``, where ``NAME`` is what the policy calls the tool. By default all episodes of a process
share one connection, and a fork shares it too, which is right for servers without state. ``mcp-episode:...`` gives
each episode a connection of its own.

A server is the user's choice and is trusted as far as that: it runs with the user's rights, outside every sandbox, and
its descriptions are shown to the model. What it returns is cleaned of control characters and cut to a limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from forkgym.tools.base import DEFAULT_TIMEOUT_S, Tool, ToolSession
from forkgym.tools.mcp_client.json_schema import ObjectArguments, arguments_model
from forkgym.tools.mcp_client.mcp_connection import Connection, ConnectionLost, Endpoint
from forkgym.tools.mcp_client.mcp_sessions import EpisodeSession, ReadCall, SharedSession
from forkgym.tools.registry import MCP_PREFIXES
from forkgym.tools.web.plain_text import printable, shortened

if TYPE_CHECKING:
    from mcp.types import Tool as ServerTool

SHARED, PER_EPISODE = MCP_PREFIXES
SELECTION = re.compile(r"(?P<server>.*)#(?P<tools>[\w.=-]*(?:,[\w.=-]+)*)", re.DOTALL)
MAX_TOOLS = 128
MAX_NAME_CHARACTERS = 64
MAX_DESCRIPTION_CHARACTERS = 4_000


@lru_cache(maxsize=64)
def tools_from_reference(source: str) -> tuple[Tool, ...]:
    """The tools that ``mcp:SERVER``, ``mcp:SERVER#TOOL,TOOL=NAME`` or ``mcp-episode:SERVER...`` means.

    The same reference gives the same tools, so that every environment of a process shares one connection. Where a
    command line itself contains a ``#`` that could be read as a choice of tools, one more ``#`` at its end, which
    chooses all, says that it is none.

    Raises:
        ValueError: It is no such reference, or see `mcp_tools`.
    """
    prefix = next((prefix for prefix in MCP_PREFIXES if source.startswith(prefix)), None)
    if prefix is None:
        raise ValueError(f"tool {source!r}: expected {SHARED}SERVER or {PER_EPISODE}SERVER")
    server, only = source.removeprefix(prefix), None
    chosen = SELECTION.fullmatch(server)
    if chosen is not None:
        server = chosen["server"]
        only = chosen["tools"].split(",") if chosen["tools"] else None
    return mcp_tools(server, only=only, session_per_episode=prefix == PER_EPISODE)


def mcp_tools(
    server: str,
    *,
    only: Sequence[str] | None = None,
    session_per_episode: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
) -> tuple[Tool, ...]:
    """Make tools of a server's tools.

    A call over its limit is given up, and the server is told so. A connection that is lost is opened again, or the
    server started again, once after half a second; where that fails, the call is a `ToolFailure`. So a call may be
    made twice.

    With ``session_per_episode`` an episode has a connection, and over a command line a server process, of its own. As
    the state belongs to the connection and not to one tool, several tools then become one, which is named after the
    server and takes ``{"tool": NAME, "arguments": {...}}``. A fork opens a connection of its own at its first call
    and makes the calls of its history again, as does a restored snapshot and an episode whose server was lost. The
    replies have to be the same as before; a server that answers the same calls differently cannot be forked, which
    shows as a `ToolFailure`. After a call over its limit the session starts afresh.

    Args:
        server: A command line, started without a shell, or the URL of a server of streamable HTTP.
        only: Names of the tools to use, as the server spells them, each with ``=NAME`` after it where the policy
            shall know it by another name; all by default. A name is otherwise the server's own with every character
            that is no letter, digit or underscore replaced by an underscore.
        session_per_episode: See above.
        timeout_s: Wall-clock limit of one call, seconds.
        environment: Variables for a server that is started, such as its key; it gets few of this process's own.

    Returns:
        The tools, in the server's order.

    Raises:
        ValueError: The library is missing; the server cannot be started or reached within 30 s, or has no tools; a
            chosen tool is not there, or one has no usable schema or name.
    """
    try:
        import_module("mcp.types")
    except ImportError as error:
        raise ValueError(f"mcp server {server!r} needs the extra mcp: pip install 'forkgym[mcp]'") from error
    endpoint = Endpoint(server, environment or {})
    connection = Connection(endpoint)
    try:
        server_name, listed = connection.list_tools()
    except ConnectionLost as error:
        raise ValueError(f"mcp server {server!r} cannot be used: {error}") from error
    tools = described_tools(server, listed, only)
    if not session_per_episode:
        return tuple(make_tool(server, tool, shared_sessions(connection, timeout_s), timeout_s) for tool in tools)
    connection.close()
    tool = tools[0] if len(tools) == 1 else combined(tool_name(server_name) or "server", tools)
    return (make_tool(server, tool, sessions_of_their_own(endpoint, timeout_s), timeout_s),)


@dataclass(frozen=True, slots=True)
class DescribedTool:
    """One of a server's tools.

    Attributes:
        spelled: Its name as the server spells it.
        name: What the policy calls it.
        description: Shown to the model.
        schema: Of its arguments.
        parts: Where it stands for several tools: their names as the server spells them, by what the policy calls them.
    """

    spelled: str
    name: str
    description: str
    schema: Mapping[str, Any]
    parts: Mapping[str, str] = field(default_factory=dict[str, str])


def described_tools(server: str, listed: Sequence[ServerTool], only: Sequence[str] | None) -> list[DescribedTool]:
    """Choose among a server's tools, and name and describe them for the policy."""
    if not listed:
        raise ValueError(f"mcp server {server!r} has no tools")
    by_name = {tool.name: tool for tool in listed}
    names = [tool.name for tool in listed] if only is None else list(only)
    if len(names) > MAX_TOOLS:
        raise ValueError(f"mcp server {server!r} has {len(names)} tools, at most {MAX_TOOLS} can be used; choose some")
    described: list[DescribedTool] = []
    for choice in names:
        spelled, _, given = (choice, "", "") if choice in by_name else choice.partition("=")
        if spelled not in by_name:
            raise ValueError(f"mcp server {server!r} has no tool {spelled!r}; expected some of {', '.join(by_name)}")
        name = given or tool_name(spelled)
        if any(other.name == name for other in described):
            raise ValueError(f"mcp server {server!r}: two of its tools would be called {name!r}; give one '=NAME'")
        tool = by_name[spelled]
        description = printable(tool.description or tool.title or spelled).strip()
        described.append(
            DescribedTool(spelled, name, shortened(description, MAX_DESCRIPTION_CHARACTERS), tool.input_schema)
        )
    return described


def tool_name(spelled: str) -> str:
    """A name that a tool of ours can have, for one that a server's tool has."""
    name = re.sub(r"\W", "_", spelled, flags=re.ASCII)[:MAX_NAME_CHARACTERS]
    return f"_{name}" if name[:1].isdigit() else name


def combined(name: str, tools: Sequence[DescribedTool]) -> DescribedTool:
    """Describe several tools as one, whose argument ``tool`` names one of them."""
    lines = [f"- {tool.name}({', '.join(tool.schema.get('properties', {}))}): {tool.description}" for tool in tools]
    names = [tool.name for tool in tools]
    rules: list[dict[str, Any]] = [
        {
            "if": {"properties": {"tool": {"const": tool.name}}},
            # With an id of its own, a reference inside a tool's schema is looked up in that schema.
            "then": {"properties": {"arguments": {**tool.schema, "$id": f"urn:tool:{tool.name}"}}},
        }
        for tool in tools
    ]
    needy = [tool.name for tool in tools if tool.schema.get("required")]
    if needy:  # the rules above check arguments that are there
        rules.append({"if": {"properties": {"tool": {"enum": needy}}}, "then": {"required": ["arguments"]}})
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"tool": {"type": "string", "enum": names}, "arguments": {"type": "object"}},
        "required": ["tool"],
        "additionalProperties": False,
        "allOf": rules,
    }
    description = "\n".join(["One of these tools, with its arguments:", *lines])
    parts = {tool.name: tool.spelled for tool in tools}
    return DescribedTool("", name, shortened(description, MAX_DESCRIPTION_CHARACTERS), schema, parts)


def make_tool(
    server: str, tool: DescribedTool, sessions: Callable[[ReadCall], Callable[[], ToolSession]], timeout_s: float
) -> Tool:
    """Make the `Tool`; ``sessions`` makes its ``new_session`` of what reads a call."""
    try:
        model = arguments_model(tool.name, tool.schema)
    except ValueError as error:
        raise ValueError(
            f"mcp server {server!r}, tool {tool.spelled or tool.name!r}: {error}; choose others"
        ) from error
    is_object = issubclass(model, ObjectArguments)

    def read_call(arguments: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        own: Mapping[str, Any] = arguments["root"] if is_object else arguments
        return (tool.parts[own["tool"]], own.get("arguments", {})) if tool.parts else (tool.spelled, own)

    return Tool(tool.name, tool.description, model, sessions(read_call), timeout_s=timeout_s, keeps_limit=True)


def shared_sessions(connection: Connection, timeout_s: float) -> Callable[[ReadCall], Callable[[], ToolSession]]:
    """Sessions over one connection."""

    def sessions(read_call: ReadCall) -> Callable[[], ToolSession]:
        session = SharedSession(connection, read_call, timeout_s)
        return lambda: session

    return sessions


def sessions_of_their_own(endpoint: Endpoint, timeout_s: float) -> Callable[[ReadCall], Callable[[], ToolSession]]:
    """Sessions that each have a connection."""
    return lambda read_call: lambda: EpisodeSession(endpoint, read_call, timeout_s)
