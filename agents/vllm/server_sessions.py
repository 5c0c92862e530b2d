"""The session of a vLLM server: turns go out, and what is sampled comes in."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from forkgym.agents.loop_thread import LoopThread
from forkgym.agents.turn_book import LiveTurn
from forkgym.agents.vllm.vllm_client import Piece, ServerClient, ServerProblem, ServerRefusal

ANSWER_S = 10.0  # for what a server that is well answers at once
END_S = 2.0  # for the reading of a session that is over


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came from the servers.

    Attributes:
        pieces: Of turns that run, in order.
        problems: Sessions that broke off after that, and why.
    """

    pieces: Sequence[tuple[LiveTurn, Piece]]
    problems: Mapping[ServerSession, ServerProblem]


class ServerSession:
    """The session of one server, or none; another one can be opened when it is over.

    Args:
        client: Talks to the server.
        loop: Where the client lives, and the session is read.
        inbox: Where what comes is put; several sessions may share it.

    Attributes:
        turns: That the server samples, by name.
    """

    def __init__(self, client: ServerClient, loop: LoopThread, inbox: Inbox) -> None:
        self.turns: dict[str, LiveTurn] = {}
        self._client = client
        self._loop = loop
        self._inbox = inbox
        self._name = ""  # empty where none is open
        self._opened = 0
        self._unsent: dict[str, Mapping[str, Any]] = {}  # of turns that the server has not been told of
        self._unwanted: list[str] = []  # names of turns that it is to break off
        self._following: Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the server takes turns."""
        return bool(self._name)

    def open(self, weights: str) -> None:
        """Open one, with a server that has these weights.

        Raises:
            ServerProblem: It could not be opened.
        """
        self._opened += 1
        name = f"{weights}/{self._opened}"
        opened: Future[None] = Future()
        self._following = self._loop.start(self._follow(name, weights, opened))
        self._report(name, self._following)
        try:
            opened.result(ANSWER_S)
        except TimeoutError as error:
            self._following.cancel()
            raise ServerProblem(f"it opened no session within {ANSWER_S:g} s") from error
        self._name = name

    def begin(self, turn: LiveTurn, body: Mapping[str, Any]) -> None:
        """Let a turn be sampled, of which the server is told with the next `send`."""
        name = turn_name(turn)
        self.turns[name] = turn
        self._unsent[name] = body

    def forget(self, turn: LiveTurn, *, running: bool) -> None:
        """Forget a turn; where it is still ``running``, the server is told to break it off."""
        name = turn_name(turn)
        self.turns.pop(name, None)
        if self._unsent.pop(name, None) is None and running:
            self._unwanted.append(name)

    def send(self) -> None:
        """Tell the server what is new."""
        if self.is_open and (self._unsent or self._unwanted):
            work = self._client.send(self._name, list(self._unsent.values()), self._unwanted)
            self._report(self._name, self._loop.start(work))
            self._unsent, self._unwanted = {}, []

    def end(self) -> None:
        """Forget the session with its turns; the server is told, and breaks off what runs in it."""
        if self.is_open and self._following is not None and not self._following.done():
            self._loop.start(self._end(self._name, self._following))
        self._name = ""
        self.turns.clear()
        self._unsent.clear()
        self._unwanted.clear()

    def wait(self) -> None:
        """Wait until nothing is read any more, but not for long."""
        if self._following is not None:
            wait([self._following], END_S)

    def has(self, name: str) -> bool:
        """Whether this is the session that is open now."""
        return name == self._name

    async def _follow(self, name: str, weights: str, opened: Future[None]) -> None:
        """Read a session to its end; runs in the loop."""
        try:
            async with aclosing(self._client.session(name, weights)) as pieces:
                async for piece in pieces:
                    if not opened.done():
                        opened.set_result(None)
                    if piece is not None:
                        self._inbox.put((self, name, piece))
        except ServerProblem as problem:
            if opened.done():
                self._inbox.put((self, name, problem))
            else:
                opened.set_exception(problem)

    async def _end(self, name: str, following: Future[None]) -> None:
        """Let the server end a session, and stop reading it where there is no answer; runs in the loop."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._client.end(name)
        except ServerRefusal:
            pass  # new weights have ended it
        except (ServerProblem, TimeoutError):
            following.cancel()

    def _report(self, name: str, work: Future[None]) -> None:
        """Let what a piece of work raises arrive in the inbox."""

        def ended(work: Future[None]) -> None:
            error = None if work.cancelled() else work.exception()
            if error is not None:
                self._inbox.put((self, name, error))

        work.add_done_callback(ended)


Item: TypeAlias = tuple[ServerSession, str, Piece | BaseException]  # the session's name in the middle
Inbox: TypeAlias = queue.SimpleQueue[Item]


def turn_name(turn: LiveTurn) -> str:
    """What servers call a turn."""
    return str(turn.serial)


def arrivals(inbox: Inbox, wait_s: float) -> Arrivals:
    """Wait a little for something to arrive, and return all that has; what is of sessions that are over is dropped."""
    pieces: list[tuple[LiveTurn, Piece]] = []
    problems: dict[ServerSession, ServerProblem] = {}
    for session, name, item in drained(inbox, wait_s):
        if not session.has(name):
            continue
        if isinstance(item, Piece):
            if item.turn in session.turns:
                pieces.append((session.turns[item.turn], item))
        elif isinstance(item, ServerProblem):
            problems.setdefault(session, item)
        else:
            raise item
    return Arrivals(pieces, problems)


def drained(inbox: Inbox, wait_s: float) -> list[Item]:
    """Wait a little for an item, and return all that are there."""
    found: list[Item] = []
    try:
        found.append(inbox.get(timeout=wait_s))
        while True:
            found.append(inbox.get_nowait())
    except queue.Empty:
        return found
