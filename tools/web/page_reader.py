"""Reads web pages in programs beside this process, which are started when they are needed and replaced where they fail.

See `page_program` for the other end, and for why.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO

from forkgym.tools.base import ToolFailure
from forkgym.tools.os_fork import OwnedByProcess
from forkgym.tools.web.page_program import MAX_TEXT_BYTES, REPLY, Outcome, Page

PROGRAM = Path(__file__).with_name("page_program.py")
MAX_PROGRAMS = 4
START_LIMIT_S = 60.0
TURN_LIMIT_S = 30.0  # of a page that waits for a program
GRACE_S = 1.0  # for the reply of a page whose time is over; a program that takes longer is replaced
ATTEMPTS = 2


class ProgramLost(Exception):
    """The program ended, does not answer, or does not keep to the protocol."""


class Program:
    """One running program; it reads one page at a time."""

    def __init__(self) -> None:
        # No variable of this process reaches it, nor does the terminal's interrupt.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # the children have none: only a program that cannot start says something
            bufsize=0,
            env={},
            cwd="/",
            start_new_session=True,
        )
        self.is_ready = False

    def read(self, page: Page, body: bytes) -> tuple[Outcome, str]:
        """Have one page read.

        Raises:
            ProgramLost: See there.
        """
        try:
            if not self.is_ready:
                self._reply(time.monotonic() + START_LIMIT_S)
                self.is_ready = True
            header = json.dumps({**asdict(page), "bytes": len(body)}).encode() + b"\n"
            self._write(header + body)
            return self._reply(time.monotonic() + page.limit_s + GRACE_S)
        except OSError as error:
            raise ProgramLost(str(error)) from error

    def close(self) -> None:
        """End it, and the child that it may have."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in self._pipes():
            pipe.close()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        return self.process.stdin, self.process.stdout, self.process.stderr

    def _last_words(self) -> str:
        """What a program that has ended complained about, such as a library that is missing."""
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return ""
        lines = self._pipes()[2].read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def _write(self, data: bytes) -> None:
        """Write all of it; the program reads whatever it is sent while no page is at work."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipes()[0].write(rest) :]

    def _reply(self, deadline_s: float) -> tuple[Outcome, str]:
        outcome, size = REPLY.unpack(self._take(REPLY.size, deadline_s))
        if size > MAX_TEXT_BYTES or outcome not in list(Outcome):
            raise ProgramLost("it does not keep to the protocol")
        return Outcome(outcome), self._take(size, deadline_s).decode("utf-8", "replace")

    def _take(self, size: int, deadline_s: float) -> bytes:
        """Read so many bytes until a deadline."""
        output = self._pipes()[1]
        taken = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while len(taken) < size:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    raise ProgramLost("it does not answer")
                piece = output.read(size - len(taken))
                if not piece:
                    raise ProgramLost(f"it ended{self._last_words()}")
                taken += piece
        return bytes(taken)


class PageReader(OwnedByProcess):
    """Reads pages, several at a time; safe to use from several threads. A forked process starts its own programs."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None:
        """Make what belongs to this process."""
        self.lock = threading.Lock()
        self.idle: list[Program] = []
        self.slots = threading.BoundedSemaphore(min(MAX_PROGRAMS, os.cpu_count() or 1))

    def read(self, page: Page, body: bytes) -> tuple[Outcome, str]:
        """Read one page, once it is its turn.

        Returns:
            What came of it, and its title, a new line and its text.

        Raises:
            ToolFailure: No program can be started, they fail over and over, or too many pages wait.
        """
        if not self.slots.acquire(timeout=TURN_LIMIT_S):
            raise ToolFailure(f"a page waited {TURN_LIMIT_S:g} s to be read")
        try:
            return self._read(page, body)
        finally:
            self.slots.release()

    def _read(self, page: Page, body: bytes) -> tuple[Outcome, str]:
        reason: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                program = self._take_program()
            except OSError as error:  # the system has no process or descriptor left
                reason = error
                continue
            try:
                result = program.read(page, body)
            except ProgramLost as error:
                reason = error
                program.close()
                continue
            with self.lock:
                self.idle.append(program)
            return result
        raise ToolFailure(f"the program that reads pages failed {ATTEMPTS} times, at last: {reason}") from reason

    def _take_program(self) -> Program:
        with self.lock:
            return self.idle.pop() if self.idle else Program()

    def close(self) -> None:
        """End the programs; the next page starts one."""
        with self.lock:
            programs, self.idle = self.idle, []
        for program in programs:
            program.close()


@cache
def shared_reader() -> PageReader:
    """The one of this process; it ends with it."""
    reader = PageReader()
    atexit.register(reader.close)
    return reader
