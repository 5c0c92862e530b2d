"""The other end of `verify_worker`: starts that program, asks it from any thread, and replaces it where it fails."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from functools import cache
from itertools import count
from pathlib import Path

from forkgym.envs.verification.verify_worker import Word
from forkgym.tools.base import ToolFailure
from forkgym.tools.os_fork import OwnedByProcess

PROGRAM = Path(__file__).with_name("verify_worker.py")
LIMIT_S = 2.0
GRACE_S = 0.8  # for an answer to come back once its time is over; a program that takes longer is replaced
START_LIMIT_S = 60.0
ATTEMPTS = 3
MAX_AT_ONCE = 16  # pairs; hostile ones take all the processor time that they are given
ANSWER_BYTES = 64


class WorkerLost(Exception):
    """The program ended, or does not answer."""


class Connection:
    """One running program, and the requests that wait for its answers."""

    def __init__(self) -> None:
        self.uids = count(1)
        self.lock = threading.Lock()
        self.waiting: dict[int, Future[str]] = {0: Future()}
        self.ready = self.waiting[0]
        self.lost = False
        # No variable of this process reaches it (keys, paths), nor does the terminal's interrupt.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={},
            cwd="/",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, name="verify-answers", daemon=True)
        self.reader.start()

    def ask(self, gold: str, prediction: str, limit_s: float) -> Word:
        """Have one pair compared.

        Raises:
            WorkerLost: See there.
        """
        answer: Future[str] = Future()
        uid = next(self.uids)
        request = {"uid": uid, "gold": gold, "prediction": prediction, "limit_s": limit_s}
        line = json.dumps(request).encode() + b"\n"
        try:
            self.ready.result(START_LIMIT_S)
            with self.lock:
                if self.lost:
                    raise WorkerLost("it has ended")
                self.waiting[uid] = answer
                self._write(line)
            return Word(answer.result(limit_s + GRACE_S))
        except NoAnswer as error:
            raise WorkerLost("it does not answer") from error
        except (OSError, ValueError) as error:
            raise WorkerLost(str(error)) from error

    def kill(self) -> None:
        """End the program at once; a child that is at work then ends by its own limit on processor time."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """End the program: it ends with its input, or is killed."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()

    def _write(self, line: bytes) -> None:
        # Without a buffer: a forked child that lets go of one has to wait for a lock that no thread of it holds.
        assert self.process.stdin is not None
        while line:
            line = line[self.process.stdin.write(line) :]

    def _read(self) -> None:
        """Hand out answers as they come; at their end, fail whoever still waits."""
        assert self.process.stdout is not None
        unread = b""
        while chunk := self.process.stdout.read(4_096):
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                uid, _, word = line[:ANSWER_BYTES].decode("ascii", errors="replace").partition(" ")
                with self.lock:
                    answer = self.waiting.pop(int(uid), None)
                if answer is not None:
                    answer.set_result(word)
        with self.lock:
            self.lost = True
            left = list(self.waiting.values())
            self.waiting.clear()
        for answer in left:
            answer.set_exception(WorkerLost("it has ended"))


class VerifyProcess(OwnedByProcess):
    """Compares expressions with math-verify in a process of its own, which is started when it is first needed.

    Safe to use from several threads; a forked process starts one of its own.

    Args:
        limit_s: Wall-clock time of one comparison, seconds.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        super().__init__()
        self.limit_s = limit_s
        self.start()

    def start(self) -> None:
        """Make what belongs to this process."""
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(MAX_AT_ONCE)
        self.connection: Connection | None = None

    def open(self) -> Connection:
        """The running program; one that is started now takes a second to answer, and nobody waits for it here."""
        with self.lock:
            if self.connection is None:
                self.connection = Connection()
            return self.connection

    def compare(self, gold: str, prediction: str) -> Word:
        """Compare two expressions in LaTeX; over after ``limit_s`` at the latest, once the program runs.

        At most ``MAX_AT_ONCE`` pairs are compared at a time; the time of a further one begins when it is its turn.

        Raises:
            ToolFailure: The program cannot be started, or fails over and over.
        """
        reason: Exception | None = None
        with self.slots:
            for _ in range(ATTEMPTS):
                try:
                    connection = self.open()
                except OSError as error:  # the system has no process or descriptor left
                    reason = error
                    continue
                try:
                    word = connection.ask(gold, prediction, self.limit_s)
                    if word is not Word.LOST:
                        return word
                    reason = WorkerLost("something else ended the comparison")
                except WorkerLost as error:
                    reason = error
                    self._replace(connection)
        raise ToolFailure(f"the program that compares answers failed {ATTEMPTS} times, at last: {reason}") from reason

    def close(self) -> None:
        """End the program; the next comparison starts one."""
        with self.lock:
            connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def _replace(self, failed: Connection) -> None:
        """Forget a program that failed, unless another thread has done so already."""
        with self.lock:
            if self.connection is not failed:
                return
            self.connection = None
        failed.kill()


@cache
def shared_process() -> VerifyProcess:
    """The one of this process; it ends with it."""
    process = VerifyProcess()
    atexit.register(process.close)
    return process
