"""The program in which math-verify compares answers: a process of its own, and a forked child for each pair.

`verify_process` starts it with an empty environment. It imports the library once, which takes most of a second, and
then forks for each request: a child that computes for ever is killed at its deadline and takes nothing with it. A
process, because nothing less can end such a computation; started by exec, because a process with threads or a GPU
cannot fork safely; not `multiprocessing`'s fork server, because that one hands on the environment, runs the main
program again in each child and unpickles what comes back.

A request is a line of JSON with ``uid``, ``gold``, ``prediction`` and ``limit_s``. An answer is a line with the uid and
one `Word`; the line ``0 ready`` comes first. The program ends when its input does.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import selectors
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from forkgym.tools.sandbox.layers import interpreter_trees, lock_down
from forkgym.tools.sandbox.limits import SandboxLimits

READ_BYTES = 65_536
CPU_GRACE_S = 1
MEMORY_BYTES = 2**29  # of addresses, beyond what the libraries take
OPEN_FILES = 16
WARM_UP = (  # one pair for each part of the libraries that is imported when it is first needed: once, not per child
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"(x+1)^2", r"x^2+2x+1"),
    (r"[0,1)", r"0 \le x < 1"),
    (r"0 \le x < 1", r"[0,1)"),
    (r"\{1,2\}", r"2,1"),
    (r"A", r"A \text{ or } B"),
    (r"(-\infty,0)\cup(1,2)", r"x<0 \text{ or } 1<x<2"),
    (r"\int x dx", r"\frac{x^2}{2}"),
    (r"\sum_{k=1}^{5} k", r"15"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    (r"\prod_{k=1}^{n} k", r"n!"),
    (r"(-2,2)", r"x^2<4"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"\pi", r"3.14159265"),
    (r"x=2", r"2x=4"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
)


class Word(StrEnum):
    """What the program says about a pair."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"
    TIMEOUT = "timeout"
    LOST = "lost"  # something else ended the child, such as a machine that runs out of memory


@dataclass(frozen=True, slots=True)
class Job:
    """A child at work.

    Attributes:
        uid: Of its request.
        pid: Of the child.
        pipe: The descriptor that it writes its word to.
        deadline_s: When it is killed, by the monotonic clock.
    """

    uid: int
    pid: int
    pipe: int
    deadline_s: float


def parsed(expression: str) -> list[Any]:
    """Read one expression in LaTeX; none where it is none.

    Only as LaTeX, by a grammar: the library's other reader, for plain expressions, evaluates Python.
    """
    import math_verify

    library: Any = math_verify
    # Units are gone by now. What the library takes for one may be a variable: to it, ``k + 2m`` is k + 2.
    config = library.LatexExtractionConfig(boxed_match_priority=-1)
    config = replace(config, normalization_config=replace(config.normalization_config, units=False))
    found: list[Any] = library.parse(
        f"${expression}$",
        [config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,  # no signals: whoever started the child keeps the time
    )
    return found


def says_nothing(expression: Any) -> bool:
    """Whether an expression is a truth that holds for anything (``x = x``), or no value (0/0)."""
    import sympy

    algebra: Any = sympy
    if expression in (algebra.true, algebra.false):
        return True
    if isinstance(expression, algebra.Eq):
        return bool(expression.lhs == expression.rhs)
    return isinstance(expression, algebra.Basic) and bool(expression.has(algebra.nan, algebra.zoo))


def compare(gold: str, prediction: str) -> Word:
    """Compare two expressions, without a limit on time.

    The library's ``verify`` is not symmetric: the gold comes first.
    """
    import math_verify

    library: Any = math_verify
    gold_found, found = parsed(gold), parsed(prediction)
    if not found or not gold_found:
        return Word.UNREADABLE
    if any(map(says_nothing, found)):
        return Word.DIFFERENT
    # ``1 < x < 2`` may stand for (1, 2), and the other way round.
    equal = library.verify(gold_found, found, allow_set_relation_comp=True, timeout_seconds=0)
    return Word.EQUAL if equal else Word.DIFFERENT


def start_child(request: dict[str, Any], readable: Sequence[str]) -> Job:
    """Fork a child that compares one pair."""
    reader, writer = os.pipe()
    limit_s = float(request["limit_s"])
    deadline_s = time.monotonic() + limit_s
    pid = os.fork()
    if pid == 0:
        try:
            confine(writer, limit_s, readable)
            os.write(1, compare(request["gold"], request["prediction"]).value.encode())
        finally:  # whatever happened: no child may go on as the program
            os._exit(0)
    os.close(writer)
    return Job(request["uid"], pid, reader, deadline_s)


def confine(writer: int, limit_s: float, readable: Sequence[str]) -> None:
    """Give up, in a child, what a comparison does not need; its output goes to ``writer``.

    Whichever layers the machine offers hold: an answer is text for a grammar, no code, and they are there for the case
    that the libraries can be made to take it for code. The interpreter's own files stay readable, for late imports.
    """
    os.dup2(writer, 1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    limits = SandboxLimits(
        timeout_s=limit_s,
        cpu_s=math.ceil(limit_s) + CPU_GRACE_S,  # where the program is killed before it can kill
        memory_bytes=MEMORY_BYTES,
        file_bytes=1,
        open_files=OPEN_FILES,
        threads=1,
    )
    lock_down(limits, readable)


def finish(job: Job) -> Word:
    """Take the word of a child that has written it or ended, or whose time is over; it is gone then."""
    late = time.monotonic() >= job.deadline_s
    written = b"" if late else os.read(job.pipe, READ_BYTES)
    os.close(job.pipe)
    os.kill(job.pid, signal.SIGKILL)  # it is ours until waitpid, so the pid cannot be another's
    _, status = os.waitpid(job.pid, 0)
    if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Word.TIMEOUT
    if not written and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Word.LOST  # a child that is about to end keeps its own status, whatever is sent to it
    try:
        return Word(written.decode("ascii", errors="replace"))
    except ValueError:  # it ran out of memory or stack before it knew
        return Word.UNREADABLE


def serve() -> None:
    """Answer requests, each in a child of its own and all at the same time, until the input ends."""
    jobs: dict[int, Job] = {}
    unread = b""
    readable = interpreter_trees()
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while True:
            now_s = time.monotonic()
            next_s = min((job.deadline_s - now_s for job in jobs.values()), default=None)
            ready = {key.fd for key, _ in selector.select(None if next_s is None else max(next_s, 0.0))}
            if 0 in ready:
                chunk = os.read(0, READ_BYTES)
                if not chunk:
                    break
                *lines, unread = (unread + chunk).split(b"\n")
                for line in lines:
                    job = start_child(json.loads(line), readable)
                    jobs[job.pipe] = job
                    selector.register(job.pipe, selectors.EVENT_READ)
            now_s = time.monotonic()
            for pipe in [pipe for pipe, job in jobs.items() if pipe in ready or job.deadline_s <= now_s]:
                selector.unregister(pipe)
                job = jobs.pop(pipe)
                os.write(1, f"{job.uid} {finish(job).value}\n".encode())
    for job in jobs.values():
        os.kill(job.pid, signal.SIGKILL)


def main() -> None:
    """Import and warm up, say so, and serve."""
    logging.disable(logging.CRITICAL)  # the library warns that nobody keeps the time
    for gold, prediction in WARM_UP:
        compare(gold, prediction)
    gc.freeze()  # children share these pages for as long as nobody writes to them
    os.write(1, b"0 ready\n")
    serve()


if __name__ == "__main__":
    main()
