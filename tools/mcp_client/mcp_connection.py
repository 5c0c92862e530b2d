"""A connection to a Model Context Protocol server, for callers that have no event loop.

The official client is asynchronous. One event loop, in one daemon thread, serves all connections of a process; a caller
hands it a coroutine and waits for its own limit at most, so that a server that is slow, or that keeps the loop busy,
holds nobody up for longer.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shlex
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from forkgym.tools.base import ToolFailure
from forkgym.tools.os_fork import OwnedByProcess
from forkgym.tools.web.plain_text import printable

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as ServerTool

START_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
MAX_PAGES = 100  # of a server's list of tools
MAX_ANSWER_BYTES = 4_000_000
RELAY = Path(__file__).with_name("mcp_relay.py")
LOG_TAIL_BYTES = 1_000
Result = TypeVar("Result")


class ConnectionLost(Exception):
    """The server cannot be started or reached, or the connection to it ended; the message says which."""


@dataclass(frozen=True, slots=True)
class EventLoop:
    """The event loop of one process's connections.

    Attributes:
        loop: It runs in a daemon thread.
        stops: What ends each open connection, by the task that keeps it open; touched in the loop's thread only.
    """

    loop: asyncio.AbstractEventLoop
    stops: dict[asyncio.Task[None], asyncio.Event] = field(default_factory=dict[asyncio.Task[None], asyncio.Event])

    def run(self, coroutine: Coroutine[Any, Any, Result], limit_s: float) -> Result:
        """Run a coroutine in the loop and wait for it; it is cancelled at the limit.

        Raises:
            TimeoutError: It took longer than ``limit_s`` seconds.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(limit_s)
        except TimeoutError:
            future.cancel()
            raise

    def close(self) -> None:
        """End every connection, and with it the servers that were started for one; in ``CLOSE_LIMIT_S`` seconds."""
        self.run(self.close_all(), 2 * CLOSE_LIMIT_S)

    async def close_all(self) -> None:
        """Ask every connection to end, and wait for it."""
        for stop in self.stops.values():
            stop.set()
        if self.stops:
            await asyncio.wait(set(self.stops), timeout=CLOSE_LIMIT_S)


class EventLoops(OwnedByProcess):
    """The event loop of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.of_parents: list[EventLoop] = []
        self.own: EventLoop | None = None
        self.start()

    def start(self) -> None:
        """Have no loop, as the thread of a parent's does not run here.

        A parent's loop is kept: if its pipes were collected in a child, that would end the parent's servers.
        """
        self.lock = threading.Lock()
        if self.own is not None:
            self.of_parents.append(self.own)
        self.own = None

    def current(self) -> EventLoop:
        """The loop of this process, started at first use."""
        with self.lock:
            if self.own is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="mcp-connections", daemon=True).start()
                self.own = EventLoop(loop)
                atexit.register(self.own.close)
            return self.own


LOOPS = EventLoops()


@dataclass(frozen=True, slots=True)
class Opened:
    """An open connection.

    Attributes:
        events: The loop that it runs in.
        client: The official client, connected.
        keeper: The task that entered the client's context and will leave it, as the library demands.
        stop: Tells the keeper to leave.
    """

    events: EventLoop
    client: Client
    keeper: asyncio.Task[None]
    stop: asyncio.Event

    @property
    def alive(self) -> bool:
        """Whether it can be used, as far as is known."""
        return not self.keeper.done()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is.

    Attributes:
        server: A command line, which is started without a shell and spoken to over its input and output, or the
            ``http(s)://`` URL of a server of streamable HTTP.
        environment: Variables that a started server gets beside ``PATH``, ``HOME`` and a few more; it gets nothing else
            of this process's environment.
    """

    server: str
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        """Check that a command line can be split into words."""
        try:
            words = shlex.split(self.server)
        except ValueError as error:
            raise ValueError(f"mcp server {self.server!r}: {error}") from error
        if not words:
            raise ValueError(f"mcp server {self.server!r}: expected a command line or an http(s):// URL")

    @property
    def command(self) -> list[str]:
        """The words of the command line; empty for a URL."""
        return [] if self.server.startswith(("http://", "https://")) else shlex.split(self.server)


class Connection(OwnedByProcess):
    """A connection to one server, opened at first use; in a forked child it is another one.

    Threads and environments may share it.

    Args:
        endpoint: The server.
        reopens: Whether it is opened again where it was lost; not where the server keeps state for it.
    """

    def __init__(self, endpoint: Endpoint, *, reopens: bool = True) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.reopens = reopens
        self._was_open = False
        self._failed_s = float("-inf")
        self._failure = ""
        self.start()

    def start(self) -> None:
        """Have no open connection."""
        self._lock = threading.Lock()
        self._opened: Opened | None = None

    def list_tools(self) -> tuple[str, list[ServerTool]]:
        """What the server calls itself, empty where it does not say, and all its tools.

        Raises:
            ConnectionLost: It cannot be reached, or does not answer in time.
        """
        from mcp import MCPError

        opened = self._open()
        try:
            return opened.events.run(list_tools(opened.client), START_LIMIT_S)
        except TimeoutError as error:
            raise ConnectionLost(f"it did not list its tools within {START_LIMIT_S:g} s") from error
        except MCPError as error:
            raise ConnectionLost(f"it does not list its tools: {error}") from error

    def call(self, name: str, arguments: Mapping[str, Any], timeout_s: float) -> CallToolResult:
        """Call a tool once.

        Raises:
            ConnectionLost: The server cannot be reached, the connection ended before it answered, or it answered with
                an error that is not about the arguments.
            TimeoutError: It was reached, but took longer than ``timeout_s`` seconds; it is told that nobody waits.
            mcp.MCPError: It refused the arguments.
            ToolFailure: Its answer breaks the protocol or its own schema.
        """
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, INVALID_PARAMS, INVALID_REQUEST
        from pydantic import ValidationError

        opened = self._open()
        try:
            return opened.events.run(opened.client.call_tool(name, dict(arguments)), timeout_s)
        except MCPError as error:
            if error.code == INVALID_PARAMS:
                raise
            # The second is what a server that was started again says to a session that it does not know.
            if error.code in (CONNECTION_CLOSED, INVALID_REQUEST):
                self._drop(opened)
            raise ConnectionLost(str(error)) from error
        except (RuntimeError, ValidationError) as error:
            if not opened.alive:
                raise ConnectionLost("the connection ended") from error
            raise ToolFailure(f"mcp server {self.endpoint.server!r}: wrong answer of {name!r}: {error}") from error

    def close(self) -> None:
        """End the connection, and the server where it was started for it; the next use opens another one."""
        if self._opened is not None:
            self._drop(self._opened)

    def _open(self) -> Opened:
        """The connection, opened where it is not.

        Callers that wait while one of them fails to open it share that failure, instead of failing one by one.
        """
        arrived_s = time.monotonic()
        with self._lock:
            if self._opened is not None and self._opened.alive:
                return self._opened
            if self._was_open and not self.reopens:
                raise ConnectionLost("the connection ended")
            if self._failed_s >= arrived_s:
                raise ConnectionLost(self._failure)
            events = LOOPS.current()
            log = LogTail()
            try:
                opened = events.run(open_connection(self.endpoint, events, log), START_LIMIT_S)
            except (ConnectionLost, TimeoutError) as error:
                reason = str(error) or f"it was not ready within {START_LIMIT_S:g} s"
                self._failed_s, self._failure = time.monotonic(), f"{reason}{log.quoted()}"
                raise ConnectionLost(self._failure) from error
            weakref.finalize(self, events.loop.call_soon_threadsafe, opened.stop.set)
            self._opened, self._was_open = opened, True
            return opened

    def _drop(self, opened: Opened) -> None:
        """Give up an open connection; another one that was opened since then stays."""
        with self._lock:
            if self._opened is opened:
                self._opened = None
        opened.events.loop.call_soon_threadsafe(opened.stop.set)


class LogTail(asyncio.Protocol):
    """The end of what a server writes to its log: it explains why a server did not start."""

    def __init__(self) -> None:
        self.tail = b""

    def data_received(self, data: bytes) -> None:
        """Keep the end."""
        self.tail = (self.tail + data)[-LOG_TAIL_BYTES:]

    def quoted(self) -> str:
        """The last lines, for the end of a message; empty where there are none."""
        text = printable(self.tail.decode(errors="replace")).strip()
        return f"; its log ends with: {text}" if text else ""


async def open_connection(endpoint: Endpoint, events: EventLoop, log: LogTail) -> Opened:
    """Start a task that keeps a connection open, and wait until it is."""
    ready: asyncio.Future[Client] = events.loop.create_future()
    stop = asyncio.Event()
    keeper = asyncio.create_task(keep_open(endpoint, log, ready, stop))
    events.stops[keeper] = stop
    keeper.add_done_callback(lambda task: forget(events, task))
    try:
        both: set[asyncio.Future[Any]] = {ready, keeper}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        keeper.cancel()
        raise
    if not ready.done():
        raise ConnectionLost(words_of(keeper.exception()))
    return Opened(events, ready.result(), keeper, stop)


def forget(events: EventLoop, keeper: asyncio.Task[None]) -> None:
    """Let go of a connection that ended; whoever waited for it has its error, and the next call meets it anyway."""
    del events.stops[keeper]
    if not keeper.cancelled():
        keeper.exception()


async def keep_open(endpoint: Endpoint, log: LogTail, ready: asyncio.Future[Client], stop: asyncio.Event) -> None:
    """Hold a connection open until ``stop``; it does not know the `Connection`, which may be collected meanwhile."""
    from mcp import Client

    if not endpoint.command:
        from mcp.client.streamable_http import streamable_http_client

        from forkgym.tools.mcp_client.mcp_http import bounded_client

        async with bounded_client(MAX_ANSWER_BYTES) as http_client:
            http = streamable_http_client(endpoint.server, http_client=http_client, max_sse_event_size=MAX_ANSWER_BYTES)
            async with Client(http) as client:
                ready.set_result(client)
                await stop.wait()
        return
    from mcp import StdioServerParameters, stdio_client

    if shutil.which(endpoint.command[0]) is None:
        raise ConnectionLost("there is no such command")
    relayed = ["-I", "-S", "-B", str(RELAY), str(MAX_ANSWER_BYTES), *endpoint.command]
    parameters = StdioServerParameters(command=sys.executable, args=relayed, env=dict(endpoint.environment))
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "w", encoding="utf-8") as log_file:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: log, pipe)
        try:
            async with Client(stdio_client(parameters, errlog=log_file)) as client:
                log_file.close()  # the server has its own copy; the log ends where that is closed
                ready.set_result(client)
                await stop.wait()
        finally:
            transport.close()


def words_of(error: BaseException | None) -> str:
    """Why a connection could not be opened; the library wraps the reason in groups of one."""
    reason = error
    while isinstance(reason, BaseExceptionGroup):
        reason = cast("BaseExceptionGroup[BaseException]", reason).exceptions[0]
    return str(reason) or type(reason).__name__


async def list_tools(client: Client) -> tuple[str, list[ServerTool]]:
    """Read the list page by page."""
    tools: list[ServerTool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return client.server_info.name if client.server_info is not None else "", tools
