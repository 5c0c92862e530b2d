"""The vLLM servers of one agent: which of them are there, who samples which turn, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from forkgym.agents.errors import AgentFailure
from forkgym.agents.loop_thread import LoopThread
from forkgym.agents.turn_book import LiveTurn
from forkgym.agents.vllm.server_checks import Wanted, why_unusable
from forkgym.agents.vllm.server_protocol import WRONG_STATE
from forkgym.agents.vllm.vllm_client import Piece, Score, ServerClient, ServerDescription, ServerProblem, ServerRefusal
from forkgym.agents.vllm.vllm_launch import LaunchedServers
from forkgym.agents.vllm.weight_transfer import Weights, WeightTransfer

T = TypeVar("T")

READY_PAUSE_S = 0.2
ANSWER_S = 10.0  # for what a server that is well answers at once
SPILL = 16  # turns that a server which knows a context may have more than the one with the fewest
END_S = 2.0  # for sessions, and for processes that have gone already
MAX_BREAKS = 3  # of a server's sessions under the same weights
NO_ROUTE = 404

HOW_TO_START = "start it with the line that scripts/serve_policy.py prints"

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Server:
    """A server and what it is doing.

    Attributes:
        client: Talks to it.
        description: What it was started with.
        session: The name of the open session; empty where it takes no turns.
        lost: Why it takes none, where it should.
        turns: That it samples, by name.
        unsent: Turns that it has not been told of.
        unwanted: Names of turns that it is to break off.
        following: The reading of the session.
        breaks: How often a session broke off under these weights.
    """

    client: ServerClient
    description: ServerDescription | None = None
    session: str = ""
    lost: str = ""
    turns: dict[str, LiveTurn] = field(default_factory=dict[str, LiveTurn])
    unsent: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    unwanted: list[str] = field(default_factory=list[str])
    following: Future[None] | None = None
    breaks: int = 0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came from the servers.

    Attributes:
        pieces: Of turns that run, in order.
        problems: Servers whose session broke off after that, and why.
    """

    pieces: Sequence[tuple[LiveTurn, Piece]]
    problems: Mapping[Server, ServerProblem]


Item = Piece | BaseException


class Fleet:
    """Servers that sample turns for one agent.

    A new turn goes to the server with the fewest, unless another has sampled from the same context, or the turn before:
    that one has the keys and values in its cache. Lost servers are asked again with the next weights.

    Args:
        clients: Of the servers, one or more.
        loop: Where the clients live.
        wanted: What each has to be started with.
        launched: Those of the servers that this process has started; None for none.
    """

    def __init__(
        self, clients: Sequence[ServerClient], loop: LoopThread, wanted: Wanted, launched: LaunchedServers | None = None
    ) -> None:
        self.servers = [Server(client) for client in clients]
        self._loop = loop
        self._wanted = wanted
        self._launched = launched
        self._weights = ""
        self._sessions = 0
        self._where: dict[int, Server] = {}  # by the serial of a turn that runs
        self._homes: dict[str, Server] = {}  # by the uid of a turn that may be continued
        self._contexts: dict[int, Server] = {}  # by the hash of a context
        self._arrived: queue.SimpleQueue[tuple[Server, str, Item]] = queue.SimpleQueue()

    @property
    def usable(self) -> list[Server]:
        """Those that take turns."""
        return [server for server in self.servers if server.session]

    @property
    def max_context(self) -> int:
        """Longest sequence that every server takes, tokens."""
        return min(one.description.max_context for one in self.servers if one.description is not None)

    @property
    def workers(self) -> dict[str, int]:
        """Processes of each server, by its address."""
        return {one.client.address: one.description.workers for one in self.servers if one.description is not None}

    def wait(self, timeout_s: float) -> None:
        """Wait until all servers are there, and check what each was started with.

        Raises:
            ValueError: One is not there in time, has died, or was started otherwise; says which and why.
        """
        deadline = time.monotonic() + timeout_s
        for server in self.servers:
            address = server.client.address
            try:
                while not self._loop.start(server.client.healthy()).result():
                    self._check_start(server, deadline)
                    time.sleep(READY_PAUSE_S)
                server.description = self._ask(server.client.describe())
            except ServerProblem as problem:
                raise ValueError(f"vLLM server {address}: {self._words(problem)}") from problem
            wrong = why_unusable(server.description, self._wanted)
            if wrong is not None:
                raise ValueError(f"vLLM server {address}: {wrong}; {HOW_TO_START}")

    def renew(self, weights: Weights, name: str, transfer: WeightTransfer) -> None:
        """Hand new weights to all servers, also to lost ones that are back.

        Raises:
            AgentFailure: A server can't use them, or none is left.
        """
        for server in self.servers:
            self._end_session(server)
            if server.lost:
                self._ask_again(server)
            server.breaks = 0
        self._homes.clear()  # nothing of the old weights is cached
        self._contexts.clear()
        self._weights = name
        there = [server for server in self.servers if not server.lost]
        for server, problem in zip(there, transfer.send(weights, name, [one.client for one in there]), strict=True):
            if isinstance(problem, ServerRefusal):
                raise AgentFailure(
                    f"vLLM server {server.client.address} can't take the weights: {problem}"
                ) from problem
            if problem is not None:
                self._lose(server, problem)
        self._need_one()

    def scores(self, prompt: Sequence[int], count: int) -> list[tuple[str, Score]]:
        """Let each server continue a prompt greedily; gives its address and what it sampled.

        Raises:
            AgentFailure: None is left.
        """
        there = [server for server in self.servers if not server.lost]
        works = [self._loop.start(server.client.score(prompt, count)) for server in there]
        found: list[tuple[str, Score]] = []
        for server, work in zip(there, works, strict=True):
            try:
                found.append((server.client.address, work.result()))
            except ServerProblem as problem:
                self._lose(server, problem)
        self._need_one()
        return found

    def open(self) -> None:
        """Open the sessions for the weights that the servers have now.

        Raises:
            AgentFailure: None is left.
        """
        for server in self.servers:
            if not server.lost:
                self._open_session(server)
        self._need_one()

    def begin(self, turn: LiveTurn, body: Mapping[str, Any]) -> None:
        """Give a turn to a server.

        Args:
            turn: It.
            body: What the server is told of it, under `turn_name`; see `vllm_routes.Turn`.

        Raises:
            AgentFailure: None is left.
        """
        server = self._choose(turn)
        name = turn_name(turn)
        server.turns[name] = turn
        server.unsent[name] = body
        self._where[turn.serial] = server
        self._homes[turn.request.uid] = server
        self._contexts[hash(turn.request.tokens)] = server

    def end(self, turn: LiveTurn, *, running: bool) -> None:
        """Forget a turn; where it is still ``running``, its server is told to break it off."""
        server, name = self._where.pop(turn.serial, None), turn_name(turn)
        if server is None:
            return  # it was stranded, and no server was left for it
        server.turns.pop(name, None)
        if server.unsent.pop(name, None) is None and running:
            server.unwanted.append(name)

    def forget(self, uid: str) -> None:
        """Forget where a finished turn was sampled, which nothing continues."""
        self._homes.pop(uid, None)

    def send(self) -> None:
        """Tell the servers what is new."""
        for server in self.usable:
            if server.unsent or server.unwanted:
                work = server.client.send(server.session, list(server.unsent.values()), server.unwanted)
                self._report(server, server.session, self._loop.start(work))
                server.unsent, server.unwanted = {}, []

    def receive(self, wait_s: float) -> Arrivals:
        """Wait a little for something to arrive, and return all that has."""
        pieces: list[tuple[LiveTurn, Piece]] = []
        problems: dict[Server, ServerProblem] = {}
        for server, session, item in drained(self._arrived, wait_s):
            if session != server.session:
                continue
            if isinstance(item, Piece):
                if item.turn in server.turns:
                    pieces.append((server.turns[item.turn], item))
            elif isinstance(item, ServerProblem):
                problems.setdefault(server, item)
            else:
                raise item
        return Arrivals(pieces, problems)

    def repair(self, problems: Mapping[Server, ServerProblem]) -> list[LiveTurn]:
        """Open other sessions in place of those that broke off; returns the turns that ran in them.

        Raises:
            AgentFailure: A server refuses a turn.
        """
        return [turn for server, problem in problems.items() for turn in self._repair(server, problem)]

    def close(self) -> None:
        """End the sessions."""
        for server in self.servers:
            self._end_session(server)
        for server in self.servers:
            if server.following is not None:
                wait([server.following], END_S)

    def _check_start(self, server: Server, deadline: float) -> None:
        """Raise ValueError where a server that is not there yet won't be any more."""
        address, launched = server.client.address, self._launched
        ended = self._ended(server)
        if launched is not None and ended is not None:
            raise ValueError(f"vLLM server {address}: {ended} and ends with:\n{launched.log_end(address)}")
        if time.monotonic() > deadline:
            log = "" if launched is None else f"; its log is {launched.kept_log(address)}"
            raise ValueError(f"vLLM server {address}: it did not answer in time{log}")

    def _choose(self, turn: LiveTurn) -> Server:
        self._need_one()
        request, usable = turn.request, self.usable
        least = min(usable, key=lambda server: len(server.turns))
        before = self._homes.pop(request.continues, None) if request.continues is not None else None
        if before is not None and before.session:
            return before
        alike = self._contexts.get(hash(request.tokens))
        if alike is not None and alike.session and len(alike.turns) <= len(least.turns) + SPILL:
            return alike
        return least

    def _repair(self, server: Server, problem: ServerProblem) -> list[LiveTurn]:
        if isinstance(problem, ServerRefusal) and problem.status != WRONG_STATE:
            raise AgentFailure(f"vLLM server {server.client.address}: {problem}") from problem
        turns = list(server.turns.values())
        for turn in turns:
            del self._where[turn.serial]
        self._end_session(server)
        server.breaks += 1
        if server.breaks < MAX_BREAKS:
            self._open_session(server)
        else:
            self._lose(server, problem)
        if server.session:
            logger.warning("vLLM server %s: %s; it is there again", server.client.address, problem)
        return turns

    def _open_session(self, server: Server) -> None:
        """Open a session; where that fails, the server is lost."""
        self._sessions += 1
        name = f"{self._weights}/{self._sessions}"
        opened: Future[None] = Future()
        server.following = self._loop.start(self._follow(server, name, opened))
        self._report(server, name, server.following)
        try:
            opened.result(ANSWER_S)
            server.session = name
        except TimeoutError:
            server.following.cancel()
            self._lose(server, ServerProblem(f"it opened no session within {ANSWER_S:g} s"))
        except ServerProblem as problem:
            self._lose(server, problem)

    async def _follow(self, server: Server, session: str, opened: Future[None]) -> None:
        """Read a session to its end; runs in the loop."""
        try:
            async with aclosing(server.client.session(session, self._weights)) as pieces:
                async for piece in pieces:
                    if not opened.done():
                        opened.set_result(None)
                    if piece is not None:
                        self._arrived.put((server, session, piece))
        except ServerProblem as problem:
            if opened.done():
                self._arrived.put((server, session, problem))
            else:
                opened.set_exception(problem)

    def _end_session(self, server: Server) -> None:
        """Forget a session; the server is told, and breaks off what runs in it."""
        if server.session and server.following is not None and not server.following.done():
            self._loop.start(self._end(server.client, server.session, server.following))
        server.session = ""
        server.turns.clear()
        server.unsent.clear()
        server.unwanted.clear()

    async def _end(self, client: ServerClient, session: str, following: Future[None]) -> None:
        """Let a server end a session, and stop reading it where there is no answer; runs in the loop."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await client.end(session)
        except ServerRefusal:
            pass  # new weights have ended it
        except (ServerProblem, TimeoutError):
            following.cancel()

    def _lose(self, server: Server, problem: ServerProblem) -> None:
        """Ask nothing of a server any more, until the next weights."""
        self._end_session(server)
        # That a process has ended is known a little later than that it does not answer any more.
        server.lost = self._ended(server, END_S) or self._words(problem)
        logger.warning("vLLM server %s is lost: %s", server.client.address, server.lost)

    def _ask_again(self, server: Server) -> None:
        """Take a lost server back where it is there again, started as it has to be."""
        try:
            server.description = self._ask(server.client.describe())
        except ServerProblem:
            return
        if why_unusable(server.description, self._wanted) is None:
            server.lost = ""
            logger.warning("vLLM server %s is there again", server.client.address)

    def _need_one(self) -> None:
        """Raise AgentFailure where no server is left."""
        if all(server.lost for server in self.servers):
            reasons = "; ".join(f"{server.client.address}: {server.lost}" for server in self.servers)
            raise AgentFailure(f"no vLLM server is left ({reasons})")

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what a server that is well answers at once.

        Raises:
            ServerProblem: As ``work``, or it took too long.
        """
        try:
            return self._loop.start(asyncio.wait_for(work, ANSWER_S)).result()
        except TimeoutError as error:
            raise ServerProblem(f"it did not answer within {ANSWER_S:g} s") from error

    def _report(self, server: Server, session: str, work: Future[None]) -> None:
        """Let what a piece of work raises arrive here."""

        def ended(work: Future[None]) -> None:
            error = None if work.cancelled() else work.exception()
            if error is not None:
                self._arrived.put((server, session, error))

        work.add_done_callback(ended)

    def _ended(self, server: Server, wait_s: float = 0.0) -> str | None:
        return None if self._launched is None else self._launched.ended(server.client.address, wait_s)

    def _words(self, problem: ServerProblem) -> str:
        if isinstance(problem, ServerRefusal) and problem.status == NO_ROUTE:
            return f"it was not started for training; {HOW_TO_START}"
        return str(problem)


def turn_name(turn: LiveTurn) -> str:
    """What servers call a turn."""
    return str(turn.serial)


def drained(items: queue.SimpleQueue[T], wait_s: float) -> list[T]:
    """Wait a little for an item, and return all that are there."""
    found: list[T] = []
    try:
        found.append(items.get(timeout=wait_s))
        while True:
            found.append(items.get_nowait())
    except queue.Empty:
        return found
