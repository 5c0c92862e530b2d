"""The Python tool: calls in a kept session, new sessions, forks, and how well a time limit is kept.

Run ``python scripts/benchmarks/python_tool.py``. It prints the line of the self-test, then wall-clock figures beside
the project's limits for two cores that have nothing else to do, and the CPU time of a new session, which a busy machine
changes less. The last two rows compare the two ways to fork a session: to run its history again, which is what the tool
does, and to fork its process, here in a prototype without any isolation, so the least that this could cost.
"""

from __future__ import annotations

import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
from rich.console import Console
from rich.table import Table

from forkgym.tools.base import Tool
from forkgym.tools.python import python_tool
from forkgym.tools.sandbox.limits import SandboxLimits
from forkgym.tools.sandbox.sessions import SERVERS, ServerSettings

CALLS = 2_000
SESSIONS = 200
CLIENTS = 4
FORKS = 30
LIMIT_S = 2.0
OVERRUNS = 3
SYMPY = "import sympy\nx = sympy.Symbol('x')\nprint(sympy.solve(x**2 - 5*x + 6, x))"
HISTORY = ["import numpy as np\na = np.arange(1000.0)", "b = float(a.sum())", "def f(n):\n    return n * b", "f(2)"]

# Forks its own process, which holds what the history left, and waits for one expression's value from the copy.
PROCESS_FORK = """
import gc, os, statistics, sys, time
import numpy, sympy
x = sympy.Symbol("x")
sympy.solve(x**2 - 5 * x + 6, x)
for code in {history!r}:
    exec(code, globals())
gc.collect()
gc.freeze()
times = []
for _ in range({forks}):
    begin = time.perf_counter()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, repr(eval("b + 1")).encode())
        os._exit(0)
    os.read(read, 100)
    times.append(time.perf_counter() - begin)
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
print(1e3 * statistics.median(times))
"""


def main() -> None:
    """Measure and print."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("forkgym.tools.sandbox").setLevel(logging.INFO)
    tool = python_tool(SandboxLimits(timeout_s=LIMIT_S))
    begin = time.perf_counter()
    tool.new_session().call({"code": "1"})
    table = Table("what", "measured", "limit")
    table.add_row("first call of all: start, warm-up and self-test", f"{time.perf_counter() - begin:.1f} s", "")
    table.add_row("calls in a kept session", f"{calls_per_second(tool):,.0f} a second", "at least 1,000")
    for name, code, limit in (("", "x = 1", "at least 150"), (" that use sympy", SYMPY, "at least 80")):
        rate, cpu_ms = new_sessions(tool, code)
        table.add_row(f"new sessions{name}, {CLIENTS} clients", f"{rate:.0f} a second", limit)
        table.add_row(f"CPU time of a new session{name}", f"{cpu_ms:.1f} ms", "")
    overrun_ms = median_ms(OVERRUNS, lambda: tool.new_session().call({"code": "while True: pass"})) - 1e3 * LIMIT_S
    table.add_row(f"a call without end, beyond its limit of {LIMIT_S:g} s", f"{overrun_ms:.0f} ms", "at most 300 ms")
    table.add_row("fork and first call: history run again (the tool)", f"{fork_ms(tool):.1f} ms", "at most 20 ms")
    table.add_row("fork and first call: process forked (prototype)", f"{process_fork_ms():.1f} ms", "")
    Console().print(table)


def median_ms(repeats: int, action: Callable[[], object]) -> float:
    """The median wall-clock time of an action, milliseconds."""
    times_s: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times_s.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times_s)


def calls_per_second(tool: Tool) -> float:
    """Call one session over and over; from the median time of a call."""
    session = tool.new_session()
    session.call({"code": "x = 1"})
    rate = 1e3 / median_ms(CALLS, lambda: session.call({"code": "x + 1"}))
    session.close()
    return rate


def new_sessions(tool: Tool, code: str) -> tuple[float, float]:
    """Open, call once and close many sessions: how many a second, and the CPU time of each, milliseconds."""

    def one(_: int) -> None:
        session = tool.new_session()
        session.call({"code": code})
        session.close()

    cpu_before_s, begin = server_cpu_s(), time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(SESSIONS)))
    wall_s = time.perf_counter() - begin
    return SESSIONS / wall_s, 1e3 * (server_cpu_s() - cpu_before_s) / SESSIONS


def server_cpu_s() -> float:
    """CPU time of the server, of the process that forks, and of all workers that have ended, seconds."""
    server = psutil.Process(SERVERS.get(ServerSettings()).process.pid)
    (parent,) = server.children()
    (forker,) = parent.children()
    total_s = 0.0
    for process in (server, forker):
        times = process.cpu_times()
        total_s += times.user + times.system + times.children_user + times.children_system
    return total_s


def fork_ms(tool: Tool) -> float:
    """Fork a session with a short history, call the copy and close it."""
    session = tool.new_session()
    for code in HISTORY:
        session.call({"code": code})

    def fork_and_call() -> None:
        twin = session.fork()
        twin.call({"code": "b + 1"})
        twin.close()

    return median_ms(FORKS, fork_and_call)


def process_fork_ms() -> float:
    """Fork a process with the same variables, and get one value from the copy."""
    code = PROCESS_FORK.format(history=HISTORY, forks=FORKS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
