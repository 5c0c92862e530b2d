"""Sessions that outlive their worker: every one is its history, and a worker is where that history was run last."""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from forkgym.tools.base import ToolFailure
from forkgym.tools.sandbox.client import SandboxServer, ServerDown
from forkgym.tools.sandbox.limits import CallResult, Outcome, SandboxLimits
from forkgym.tools.sandbox.selftest import HELD, describe, run_probes

LOGGER = logging.getLogger("forkgym.tools.sandbox")
RETRY_DELAYS_S = (0.1, 0.5, 2.0)
REPLAY_TIMES = 4.0  # a call that is run again may take so many times the limit of the first run, on a busier machine
UNREPEATABLE = "this copy of the session ran the earlier calls again, and their output was different"
ADDRESS = re.compile(r"0x[0-9a-f]{6,16}")  # where an object lies in memory, in its default text


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What makes one server different from another.

    Attributes:
        command: Starts a server that speaks frames on its standard input and output; None for one on this machine.
        packages: Imported before workers are forked; apart from the standard library, the only packages there are.
        unsafe: Run code although the self-test found a way out.
    """

    command: tuple[str, ...] | None = None
    packages: tuple[str, ...] = ("numpy", "sympy")
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of a session's history, and what came of it."""

    code: str
    outcome: Outcome
    output: str


class ServerPool:
    """The servers of this process, one for each settings, each started when it is first needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.servers: dict[ServerSettings, SandboxServer] = {}

    def get(self, settings: ServerSettings) -> SandboxServer:
        """Return a server that runs.

        Raises:
            ServerDown: None could be started.
            ToolFailure: It holds too little, and ``settings`` do not say ``unsafe``.
        """
        with self.lock:
            server = self.servers.get(settings)
            if server is None or server.down:
                server = start(settings)
                self.servers[settings] = server
            return server

    def stop(self) -> None:
        """End all of them."""
        for server in self.servers.values():
            server.stop()

    def forget(self) -> None:
        """In a fork of this process: leave the servers to the parent, and start new ones where they are needed."""
        self.lock = threading.Lock()  # another thread of the parent may have held it
        for server in self.servers.values():
            server.abandon()
        self.servers = {}


def start(settings: ServerSettings) -> SandboxServer:
    """Start a server, test it and log what holds."""
    server = SandboxServer(settings.command, settings.packages)
    probes = run_probes(server)
    line = describe(server.layers, probes)
    ways_out = any(found != HELD for found in probes.values())
    LOGGER.log(logging.WARNING if ways_out or any(server.layers.values()) else logging.INFO, line)
    if ways_out and not settings.unsafe:
        server.stop()
        raise ToolFailure(f"{line}. Code is not run in it: use a stronger sandbox, or say unsafe=True and mean it.")
    return server


SERVERS = ServerPool()
atexit.register(SERVERS.stop)
os.register_at_fork(after_in_child=SERVERS.forget)


class Worker:
    """A session's place on a server: its number there, given back when nobody refers to it any more."""

    def __init__(self, server: SandboxServer) -> None:
        self.server = server
        self.session = server.new_session()
        self.used = False
        self.close = weakref.finalize(self, server.close_session, self.session)

    def call(self, code: str, limits: SandboxLimits, timeout_s: float) -> CallResult:
        """Run code; see `SandboxServer.call`."""
        new, self.used = not self.used, True
        return self.server.call(self.session, code, limits, timeout_s=timeout_s, new=new)


class SandboxSession:
    """Code that runs call by call, each with the variables of those before.

    Nothing is started before the first call. A fork shares the history so far and nothing else: its first call gets a
    worker of its own and runs the history in it first. So does a session whose worker or server is gone through no
    fault of its code. A session that its own code ended begins anew, with an empty history; and so does a copy whose
    history does not give again what it gave before: that is the code's doing as well, and says so.
    """

    def __init__(self, settings: ServerSettings, limits: SandboxLimits, history: Sequence[Turn] = ()) -> None:
        self.settings = settings
        self.limits = limits
        self.history = list(history)
        self.worker: Worker | None = None

    def call(self, code: str) -> CallResult:
        """Run code and write it into the history.

        Raises:
            ToolFailure: No server or worker could be started.
        """
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                result = self.try_call(code)
            except ServerDown as error:
                self.close()
                if delay_s is None:
                    raise ToolFailure(f"the Python sandbox failed {len(RETRY_DELAYS_S) + 1} times: {error}") from error
                LOGGER.warning("the Python sandbox failed, trying again in %g s: %s", delay_s, error)
                time.sleep(delay_s)
                continue
            if result.detail:
                self.close()
                self.history = []
            else:
                self.history.append(Turn(code, result.outcome, result.output))
            return result
        raise AssertionError("the last delay is None")

    def try_call(self, code: str) -> CallResult:
        """Run code once, after the history where the worker has not run it yet.

        Raises:
            ServerDown: It can be tried again.
        """
        server = SERVERS.get(self.settings)
        if self.worker is None or self.worker.server is not server:
            self.close()
            self.worker = Worker(server)
            for turn in self.history:
                if not self.repeats(self.worker, turn):
                    return CallResult(Outcome.UNREPEATABLE, detail=UNREPEATABLE)
        result = self.worker.call(code, self.limits, self.limits.timeout_s)
        if result.outcome in (Outcome.LOST, Outcome.INFRASTRUCTURE):
            raise ServerDown(result.detail)
        return result

    def repeats(self, worker: Worker, turn: Turn) -> bool:
        """Run a call of the history again, and say whether it gave the same."""
        result = worker.call(turn.code, self.limits, REPLAY_TIMES * self.limits.timeout_s)
        if result.outcome in (Outcome.LOST, Outcome.INFRASTRUCTURE):
            raise ServerDown(result.detail)
        return result.outcome is turn.outcome and masked(result.output) == masked(turn.output)

    def fork(self) -> SandboxSession:
        """Return a copy, which shares no variable with this session."""
        return SandboxSession(self.settings, self.limits, self.history)

    def close(self) -> None:
        """Give the worker back. The history stays, so a later call goes on where the last one ended."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def masked(output: str) -> str:
    """Output without the addresses in it, which differ from worker to worker."""
    return ADDRESS.sub("0x", output)
