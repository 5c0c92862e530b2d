"""What runs in a worker: the session's namespace, and one call after the other.

The worker is forked from a process that knows nothing of any session. Its descriptors are 0, an empty input, and 1 and
2, one socket: code comes in through it and all output goes out, so no descriptor is there that a program does not
expect. With each piece of code comes a number that nobody can guess; output followed by that number and a letter means
that the call is over. Code that finds the number in its own memory can end its call early and name the outcome, which
is what it could do by an ``except`` as well. It cannot forge anything else.
"""

from __future__ import annotations

import ast
import io
import json
import mmap
import os
import signal
import socket
import struct
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

from forkgym.tools.sandbox import linux
from forkgym.tools.sandbox.determinism import seed_generators
from forkgym.tools.sandbox.layers import Layer, LayerReport, lock_down
from forkgym.tools.sandbox.limits import SandboxLimits

HEADER = struct.Struct("!I16s")  # length of the code, the call's number
OK, ERROR = b"k", b"e"
CHANNEL = 1
HIGHEST_DESCRIPTOR = 2**20
MAX_FRAMES = 8
MAX_ERROR_CHARACTERS = 4_000  # of a traceback; an exception can hold a text of any length
RESERVE_BYTES = 4 * 2**20  # of addresses, given up when memory runs out, so that there are some to say so with


def run(
    channel: socket.socket, limits: SandboxLimits, readable: Sequence[str], proc: int | None, report: LayerReport
) -> None:
    """Lock this process in, say so, and serve calls until the other side closes the channel.

    Args:
        channel: Code in, output out.
        limits: The session's.
        readable: Files and folders that the code may read.
        proc: A descriptor of ``/proc`` where that is out of sight.
        report: What became of the layers that the forker put on.
    """
    keep_only(channel.fileno(), *([] if proc is None else [proc]))
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # matters where no process-id namespace takes care of it
    shared_network = not report[Layer.NAMESPACES]
    report = report | lock_down(limits, readable, proc=proc, own_folder=True, own_network=not shared_network)
    seed_generators()
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((channel.fileno(), 1), (channel.fileno(), 2), (empty, 0)):
        os.dup2(source, target)
    keep_only()
    channel.detach()
    session = open_session()
    send(json.dumps(report).encode() + b"\n")
    serve(session)


def keep_only(*descriptors: int) -> None:
    """Close every descriptor but the first three and some more."""
    below = 2
    for descriptor in (*sorted(descriptors), HIGHEST_DESCRIPTOR):
        os.closerange(below + 1, descriptor)
        below = descriptor


def send(data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    """Write all of it to the channel. Functions of modules are bound before the code can replace them."""
    while data:
        data = data[write(CHANNEL, data) :]


def receive(size: int, read: Callable[[int, int], bytes] = os.read) -> bytes:
    """Read exactly so many bytes from the channel; fewer mean that it is closed."""
    parts: list[bytes] = []
    while size > 0 and (part := read(CHANNEL, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def open_session() -> Session:
    """Give programs the streams and the module that they expect."""
    raw = io.FileIO(CHANNEL, "w", closefd=False)
    streams = text_stream(raw), text_stream(raw)
    system: Any = sys
    system.stdout, system.stderr = system.__stdout__, system.__stderr__ = streams
    system.stdin = system.__stdin__ = open(0, encoding="utf-8", closefd=False)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    return Session(main.__dict__, streams)


def serve(session: Session) -> None:
    """Run calls, one after the other, until the channel is closed."""
    set_timer = signal.setitimer
    while len(header := receive(HEADER.size)) == HEADER.size:
        length, number = HEADER.unpack(header)
        outcome = session.call(receive(length))
        set_timer(signal.ITIMER_REAL, 0)  # an alarm that the code left behind would go off in the middle of `receive`
        send(number + outcome)


def text_stream(raw: io.FileIO) -> io.TextIOWrapper:
    """A stream of text as a program expects it in ``sys``.

    Each line leaves at once: what a call wrote before its time was up is shown, and output and errors keep their order.
    """
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Session:
    """The namespace of a session's calls.

    Args:
        namespace: The variables.
        streams: Output and errors; the code may replace those of ``sys``.
    """

    def __init__(self, namespace: dict[str, Any], streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
        self.namespace = namespace
        self.streams = streams
        self.calls = 0
        self.reserve = mmap.mmap(-1, RESERVE_BYTES)

    def call(self, code: bytes) -> bytes:
        """Run one call and write what it shows. Nothing that it raises gets out of here."""
        self.calls += 1
        try:
            self.execute(code.decode("utf-8-sig", errors="replace"), f"<call {self.calls}>")
        except SystemExit as stop:
            if stop.code not in (None, 0):
                return self.show(stop)
            self.flush()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the code's, and the model is shown it
            return self.show(error)
        return OK

    def flush(self) -> None:
        """Send what is buffered."""
        for stream in self.streams:
            stream.flush()

    def execute(self, code: str, name: str) -> None:
        """Run statements; the value of a last one that is an expression is shown as in a REPL."""
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), self.namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), self.namespace)
            sys.__displayhook__(value)
        self.flush()

    def show(self, error: BaseException) -> bytes:
        """Write a short traceback: the last lines of the code's own by number, none of a library's or of this file."""
        if isinstance(error, MemoryError):
            self.reserve.close()
            traceback.clear_frames(error.__traceback__)
        try:
            self.flush()
            summary = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
            own = [frame for frame in summary.stack if frame.filename.startswith("<call ")]
            summary.stack = traceback.StackSummary.from_list(own[-MAX_FRAMES:])
            summary.__cause__ = summary.__context__ = None
            self.streams[1].write(shortened("".join(summary.format())))
            self.flush()
        except BaseException:  # noqa: BLE001 - the exception's own text can raise, and memory can run out again
            send(type(error).__name__.encode() + b"\n")
        return ERROR


def shortened(text: str) -> str:
    """The beginning and the end of a text that is too long, which for a traceback are the place and the reason."""
    half = MAX_ERROR_CHARACTERS // 2
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:half]} ... {text[-half:]}"
