"""The vLLM servers of one agent: which of them are there, who samples which turn, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from forkgym.agents.errors import AgentFailure
from forkgym.agents.loop_thread import LoopThread
from forkgym.agents.turn_book import LiveTurn
from forkgym.agents.vllm.server_checks import Wanted, why_unusable
from forkgym.agents.vllm.server_protocol import WRONG_STATE
from forkgym.agents.vllm.server_sessions import ANSWER_S, Arrivals, Inbox, ServerSession, arrivals
from forkgym.agents.vllm.vllm_client import Score, ServerClient, ServerDescription, ServerProblem, ServerRefusal
from forkgym.agents.vllm.vllm_launch import LaunchedServers
from forkgym.agents.vllm.weight_transfer import Weights, WeightTransfer

T = TypeVar("T")

READY_PAUSE_S = 0.2
SPILL = 16  # turns that a server which knows a context may have more than the one with the fewest
GONE_S = 2.0  # for a process that has gone already
MAX_BREAKS = 3  # of a server's sessions under the same weights
NO_ROUTE = 404

HOW_TO_START = "start it with the line that scripts/serve_policy.py prints"

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Server:
    """A server and how it is.

    Attributes:
        client: Talks to it.
        session: With the turns that it samples.
        description: What it was started with.
        lost: Why it takes no turns, where it should.
        breaks: How often a session broke off under these weights.
    """

    client: ServerClient
    session: ServerSession
    description: ServerDescription | None = None
    lost: str = ""
    breaks: int = 0


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
        self._inbox: Inbox = queue.SimpleQueue()
        self.servers = [Server(client, ServerSession(client, loop, self._inbox)) for client in clients]
        self._loop = loop
        self._wanted = wanted
        self._launched = launched
        self._weights = ""
        self._where: dict[int, Server] = {}  # by the serial of a turn that runs
        self._homes: dict[str, Server] = {}  # by the uid of a turn that may be continued
        self._contexts: dict[int, Server] = {}  # by the hash of a context

    @property
    def usable(self) -> list[Server]:
        """Those that take turns."""
        return [server for server in self.servers if server.session.is_open]

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
            server.session.end()
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
                self._open(server)
        self._need_one()

    def begin(self, turn: LiveTurn, body: Mapping[str, Any]) -> None:
        """Give a turn to a server.

        Args:
            turn: It.
            body: What the server is told of it, under `server_sessions.turn_name`; see `vllm_routes.Turn`.

        Raises:
            AgentFailure: None is left.
        """
        server = self._choose(turn)
        server.session.begin(turn, body)
        self._where[turn.serial] = server
        self._homes[turn.request.uid] = server
        self._contexts[hash(turn.request.tokens)] = server

    def end(self, turn: LiveTurn, *, running: bool) -> None:
        """Forget a turn; where it is still ``running``, its server is told to break it off."""
        server = self._where.pop(turn.serial, None)
        if server is not None:  # else it was stranded, and no server was left for it
            server.session.forget(turn, running=running)

    def forget(self, uid: str) -> None:
        """Forget where a finished turn was sampled, which nothing continues."""
        self._homes.pop(uid, None)

    def send(self) -> None:
        """Tell the servers what is new."""
        for server in self.servers:
            server.session.send()

    def receive(self, wait_s: float) -> Arrivals:
        """Wait a little for something to arrive, and return all that has."""
        return arrivals(self._inbox, wait_s)

    def repair(self, problems: Mapping[ServerSession, ServerProblem]) -> list[LiveTurn]:
        """Open other sessions in place of those that broke off; returns the turns that ran in them.

        Raises:
            AgentFailure: A server refuses a turn.
        """
        broken = [server for server in self.servers if server.session in problems]
        return [turn for server in broken for turn in self._repair(server, problems[server.session])]

    def close(self) -> None:
        """End the sessions."""
        for server in self.servers:
            server.session.end()
        for server in self.servers:
            server.session.wait()

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
        least = min(usable, key=lambda server: len(server.session.turns))
        before = self._homes.pop(request.continues, None) if request.continues is not None else None
        if before is not None and before.session.is_open:
            return before
        alike = self._contexts.get(hash(request.tokens))
        if alike is None or not alike.session.is_open:
            return least
        return alike if len(alike.session.turns) <= len(least.session.turns) + SPILL else least

    def _repair(self, server: Server, problem: ServerProblem) -> list[LiveTurn]:
        if isinstance(problem, ServerRefusal) and problem.status != WRONG_STATE:
            raise AgentFailure(f"vLLM server {server.client.address}: {problem}") from problem
        turns = list(server.session.turns.values())
        for turn in turns:
            del self._where[turn.serial]
        server.session.end()
        server.breaks += 1
        if server.breaks < MAX_BREAKS:
            self._open(server)
        else:
            self._lose(server, problem)
        if server.session.is_open:
            logger.warning("vLLM server %s: %s; it is there again", server.client.address, problem)
        return turns

    def _open(self, server: Server) -> None:
        """Open a session; where that fails, the server is lost."""
        try:
            server.session.open(self._weights)
        except ServerProblem as problem:
            self._lose(server, problem)

    def _lose(self, server: Server, problem: ServerProblem) -> None:
        """Ask nothing of a server any more, until the next weights."""
        server.session.end()
        # That a process has ended is known a little later than that it does not answer any more.
        server.lost = self._ended(server, GONE_S) or self._words(problem)
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

    def _ended(self, server: Server, wait_s: float = 0.0) -> str | None:
        return None if self._launched is None else self._launched.ended(server.client.address, wait_s)

    def _words(self, problem: ServerProblem) -> str:
        if isinstance(problem, ServerRefusal) and problem.status == NO_ROUTE:
            return f"it was not started for training; {HOW_TO_START}"
        return str(problem)
