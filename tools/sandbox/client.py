"""The trainer's side of a server: start it, notice its end, and call sessions in it from any number of threads."""

from __future__ import annotations

import itertools
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from forkgym.tools.sandbox.frames import FrameBuffer, FrameError, encode
from forkgym.tools.sandbox.limits import CallResult, Outcome, SandboxLimits

READ_BYTES = 65_536
START_TIMEOUT_S = 30.0
GRACE_S = 30.0  # beyond a call's own limit: a worker has to be forked first, on a machine that may be busy
HELLO = 0  # the session's number under which the answer to the first frame is kept


class ServerDown(Exception):
    """The server has ended or does not answer; what its sessions held is gone, and another server has to be started."""


class SandboxServer:
    """A running server.

    Attributes:
        layers: What became of each layer: empty where it holds, or why it does not.

    Args:
        command: Starts a server that speaks frames on its standard input and output; None for one on this machine.
        packages: What the server imports before it forks; apart from the standard library, the only packages there are.

    Raises:
        ServerDown: It could not be started.
    """

    def __init__(self, command: Sequence[str] | None, packages: Sequence[str]) -> None:
        self.command = list(command or (sys.executable, "-I", "-m", "forkgym.tools.sandbox"))
        # A launcher such as ssh or docker needs its environment; the server gives itself a fixed one in any case.
        self.environment = None if command else dict[str, str]()
        self.numbers = itertools.count(HELLO + 1)
        self.writing = threading.Lock()  # the thread that reads never waits for it: the server may wait for that one
        # Who waits for an answer; shared without a lock, since it is only ever changed by one operation at a time.
        self.answers: dict[int, queue.SimpleQueue[tuple[dict[str, Any], bytes] | None]] = {}
        self.down = ""  # why it is, once it is
        self.heard_s = time.monotonic()  # when it last answered anybody
        self.closed: deque[int] = deque()  # sessions that the server has not been told about
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
        # The server ends with the thread that started it (PR_SET_PDEATHSIG), so that one has to stay for as long.
        threading.Thread(target=self.supervise, args=(started,), name="sandbox-server", daemon=True).start()
        process = started.get()
        if isinstance(process, OSError):
            raise ServerDown(f"cannot start {self.command[0]}: {process}")
        first = {"packages": list(packages), "limits": asdict(SandboxLimits())}
        header, _ = self.exchange(HELLO, encode(first), START_TIMEOUT_S)
        self.layers: dict[str, str] = header["layers"]
        if "error" in self.layers:
            self.stop(f"no worker could lock itself in: {self.layers['error']}")
            raise ServerDown(self.down)

    def new_session(self) -> int:
        """Return the number of a new session; it costs nothing before its first call."""
        return next(self.numbers)

    def call(self, session: int, code: str, limits: SandboxLimits, *, timeout_s: float, new: bool) -> CallResult:
        """Run code in a session and wait for what comes of it.

        Args:
            session: One call at a time in each.
            code: The program.
            limits: The session's; the same in each of its calls.
            timeout_s: Of this call, in place of the limits' own.
            new: This is its first call. Any later one needs the worker of the one before.

        Raises:
            ServerDown: The server ended, or does not answer.
        """
        request = {"op": "call", "session": session, "limits": asdict(limits), "timeout_s": timeout_s, "new": new}
        frame = encode(request, code.encode("utf-8", errors="replace"))
        header, output = self.exchange(session, frame, timeout_s + GRACE_S)
        return CallResult(Outcome(header["outcome"]), output.decode("utf-8", errors="replace"), header["detail"])

    def close_session(self, session: int) -> None:
        """End a session, now or with the next call of another one.

        The collector of garbage may call this in the middle of any line, of one that holds the lock or writes a frame
        too, so it neither waits for the lock nor writes without it.
        """
        self.closed.append(session)
        if self.writing.acquire(blocking=False):
            try:
                self.tell_closed()
            except ServerDown:
                pass  # and its sessions with it
            finally:
                self.writing.release()

    def tell_closed(self) -> None:
        """Tell the server which sessions have ended, without waiting for it; the caller holds the lock."""
        while self.closed and (self.down or self.has_room(0)):
            self.write(encode({"op": "close", "session": self.closed.popleft()}))

    def stop(self, why: str = "the server was stopped") -> None:
        """End the server with all its sessions; whoever waits for an answer is told."""
        self.down = self.down or why
        self.process.kill()
        for answer in list(self.answers.values()):  # whoever comes later finds it down
            answer.put(None)

    def abandon(self) -> None:
        """In a fork of the process that started it: let go of the server, which stays the parent's."""
        self.writing = threading.Lock()  # another thread of the parent may have held it
        self.down = "the server belongs to the parent of this process"
        self.process.returncode = 0  # there is nothing for this process to wait for
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()  # the server ends when nobody can write to it any more, so not before this process else

    def exchange(self, session: int, frame: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Send a frame and wait for the answer."""
        answer: queue.SimpleQueue[tuple[dict[str, Any], bytes] | None] = queue.SimpleQueue()
        self.answers[session] = answer
        with self.writing:
            self.tell_closed()
            self.write(frame)
        begun_s = time.monotonic()
        found = None
        while found is None and not self.down:
            # As long as it answers others, it is busy and not dead: many new sessions at once wait for their workers.
            patience_s = max(begun_s, self.heard_s) + timeout_s - time.monotonic()
            if patience_s <= 0:
                self.stop(f"the server has not answered for {timeout_s:g} s")
                break
            try:
                found = answer.get(timeout=patience_s)
            except queue.Empty:
                continue
        if found is None:
            raise ServerDown(self.down)
        return found

    def write(self, frame: bytes) -> None:
        """Write to the server, which soon reads again where its pipe is full; the caller holds the lock."""
        if self.down:
            raise ServerDown(self.down)
        assert self.process.stdin is not None
        descriptor = self.process.stdin.fileno()
        try:
            rest = memoryview(frame)
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:
                    if not self.has_room(GRACE_S):
                        self.stop(f"the server has not read anything for {GRACE_S:g} s")
                        raise ServerDown(self.down) from None
        except OSError as error:
            raise ServerDown(self.down or f"the server has ended: {error}") from error

    def has_room(self, timeout_s: float) -> bool:
        """Wait until the server's pipe takes a small frame at once, or the server has ended."""
        assert self.process.stdin is not None
        poll = select.poll()
        poll.register(self.process.stdin.fileno(), select.POLLOUT)
        return bool(poll.poll(timeout_s * 1000))

    def supervise(self, started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError]) -> None:
        """Start the server and hand out what it answers, until it ends."""
        try:
            process = subprocess.Popen(
                self.command,
                env=self.environment,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the trainer, which has a checkpoint to write
            )
        except OSError as error:
            started.put(error)
            return
        with process:
            assert process.stdin is not None and process.stdout is not None
            os.set_blocking(process.stdin.fileno(), False)  # a server that hangs must not hold those who write to it
            self.process = process
            started.put(process)
            frames = FrameBuffer()
            why = ""
            try:
                while data := os.read(process.stdout.fileno(), READ_BYTES):
                    for header, body in frames.feed(data):
                        self.take(header, body)
            except (FrameError, KeyError) as error:
                why = f"the server wrote something that is no answer: {error!r}"
            process.kill()
            self.stop(why or f"the server has ended with status {process.wait()}")
            with self.writing:  # whoever is still writing would write into the next file that gets the descriptor
                process.stdin.close()

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """Hand an answer to the thread that waits for it; nobody does where the session was closed meanwhile."""
        self.heard_s = time.monotonic()
        answer = self.answers.pop(HELLO if "layers" in header else header["session"], None)
        if answer is not None:
            answer.put((header, body))
