"""The tool ``python``: programs of the policy, run in a sandbox, with variables that last for an episode."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forkgym.tools.base import Tool, ToolSession
from forkgym.tools.sandbox.limits import CallResult, Outcome, SandboxLimits
from forkgym.tools.sandbox.sessions import SandboxSession, ServerSettings, Turn

DESCRIPTION = (
    "Run Python code and see what it prints; the value of a last line that is an expression is shown too. Variables "
    "are kept from call to call. There is the standard library{packages}, but no network, and no files but those that "
    "it writes."
)
MAX_CODE_CHARACTERS = 1_000_000
FENCE = "`"
LANGUAGES = ("", "python", "python3", "py")
FLOOD_CHARACTERS = 1_000  # shown of an output that broke the limit
# Characters that command a terminal or turn the direction of what follows: they are shown as escapes.
CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]")


class PythonArguments(BaseModel):
    """The arguments of a call."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(description="the program", max_length=MAX_CODE_CHARACTERS)


class PythonSession(ToolSession):
    """The tool's state in one episode; see `python_tool`."""

    def __init__(self, session: SandboxSession) -> None:
        self.session = session

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run ``arguments["code"]``.

        Raises:
            ToolFailure: The sandbox could not be started.
        """
        return shown(self.session.call(without_fence(arguments["code"])))

    def fork(self) -> PythonSession:
        """Return a copy; it runs the history again before its first call."""
        return PythonSession(self.session.fork())

    def snapshot(self) -> list[list[str]]:
        """Return the history: code, outcome and output of each call."""
        return [[turn.code, turn.outcome.value, turn.output] for turn in self.session.history]

    def restore(self, state: Any) -> None:
        """Take on a history; the next call runs it first."""
        self.session.close()
        self.session.history = [Turn(code, Outcome(outcome), output) for code, outcome, output in state]

    def close(self) -> None:
        """End the worker."""
        self.session.close()


def python_tool(
    limits: SandboxLimits | None = None,
    *,
    packages: Sequence[str] = ("numpy", "sympy"),
    command: Sequence[str] | None = None,
    unsafe: bool = False,
) -> Tool:
    """Make the tool ``python``.

    A session keeps its variables between calls and costs nothing before its first. The value of a last expression is
    shown as in a REPL, an exception as a short traceback: both are observations, neither is a `ToolError`. A call that
    breaks a limit ends its session, says so, and the next one starts afresh. Where no worker can be started, after
    retries, `ToolFailure` is raised: nothing that code does can raise it, other than by being different in each run.

    **What the sandbox stops.** Every call runs in a worker process that was forked from a fresh interpreter, never from
    the trainer, whose memory and environment it has never seen. Layers: an ordinary user, own user, process-id,
    network and mount namespaces, a root folder with nothing in it but libraries, Landlock, a seccomp list of the
    system calls that computing needs, resource limits. Together they stop the network, files outside ``/tmp`` (private,
    in memory, gone with the session), other programs and processes, memory, output and time beyond the limits.

    **What it does not stop.** A hole in the kernel; side channels of shared processors; slowing the machine down within
    the limits: each session may keep a core busy and its memory full. Code may also lie about its own result.

    **Levels.** The strongest layers that the machine offers are put on, and a self-test tries to get out when the
    server starts. One line of the log (``forkgym.tools.sandbox``) says which layers hold, which do not and why, and
    what they stop. Where anything of network, files, fork, kill, memory, output or time is not stopped, code is refused
    unless ``unsafe``.

    **A stronger or remote sandbox.** ``command`` starts the server elsewhere; it speaks over its standard input and
    output, and needs this package there: ``("ssh", HOST, "python", "-m", "forkgym.tools.sandbox")``, or ``("docker",
    "run", "-i", "--rm", "--runtime=runsc", "--network=none", IMAGE, "python", "-m", "forkgym.tools.sandbox")``.

    **Forks.** A fork copies the history of calls; its first call gets a worker and runs them again in it, under
    fixed hashes, clock (2025-01-01, moved by readings and by sleep) and randomness. Where output is different then,
    addresses apart, the call is not run and the copy starts afresh, as it says; threads that race can do that, and
    what a C library reads from the real clock. It is no `ToolFailure`, or code could choose not to be scored. The
    alternative was to fork the worker. With four short calls in the history, on two cores, fork and first call took
    6 to 8 ms by history (to 27 beside other work), nearly all of it the new worker, and 2 ms (to
    9) by a fork of a process without any isolation (``scripts/benchmarks/python_tool.py``). The process fork was
    left out all the same: the system call would have to be open to hostile code behind a fence of its own, one
    signal would no longer be a complete clean-up, threads do not survive it, every fork would hold memory whether
    it is called or not, and a snapshot has to run the history again in any case. The price of the choice: calls
    that took a second take it again in every fork that is used.

    Args:
        limits: Of a session and of its calls.
        packages: Imported before workers are forked; apart from the standard library, the only ones there are.
        command: Starts the server; None for one on this machine.
        unsafe: Run code even where the self-test found a way out.
    """
    settings = ServerSettings(tuple(command) if command is not None else None, tuple(packages), unsafe)
    own_limits = limits or SandboxLimits()
    return Tool(
        name="python",
        description=DESCRIPTION.format(packages="".join(f", {package}" for package in packages)),
        arguments_model=PythonArguments,
        new_session=lambda: PythonSession(SandboxSession(settings, own_limits)),
        timeout_s=own_limits.timeout_s,
        keeps_limit=True,
    )


def without_fence(code: str) -> str:
    """Take the code out of a Markdown fence around all of it, in time linear in its length."""
    opening, _, rest = code.strip().partition("\n")
    language = opening.lstrip(FENCE)
    fence = opening[: len(opening) - len(language)]
    body, newline, closing = rest.rpartition("\n")
    if len(fence) >= 3 and language.strip().lower() in LANGUAGES and closing.strip() == fence:
        return body + newline
    return code


def shown(result: CallResult) -> str:
    """What the model sees of a call."""
    output = result.output.replace("\r\n", "\n")
    if result.outcome is Outcome.OUTPUT_LIMIT:
        output = output[:FLOOD_CHARACTERS]  # the rest is more of the same
    output = CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), output)
    if not result.detail:
        return output
    separator = "\n" if output and not output.endswith("\n") else ""
    note = f"[{result.outcome}: {result.detail}. The session has ended and its variables are gone; the next call "
    return f"{output}{separator}{note}starts afresh.]"


PYTHON = python_tool()
