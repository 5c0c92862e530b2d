"""The process that workers are forked from: numpy and sympy are loaded, no session's code or output ever gets here.

It takes requests from the server over a socket (a session's limits, as JSON), forks, hands the server the other end of
the new worker's channel and a descriptor of its process, and reports the end of each worker as the kernel tells it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from forkgym.tools.sandbox import determinism, jail, linux, seccomp, worker
from forkgym.tools.sandbox.layers import (
    Layer,
    LayerReport,
    attempt,
    become_ordinary,
    enter_namespaces,
    interpreter_trees,
)
from forkgym.tools.sandbox.limits import SandboxLimits

MAX_MESSAGE_BYTES = 65_536
FAILED = 70  # exit status of a worker that does not end by the code's own doing
NAMESPACES = linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS

# What short programs use most: the time that these take to import is not taken from each call's.
WARM_MODULES = (
    "bisect calendar cmath collections contextlib copy ctypes dataclasses datetime decimal enum fractions functools "
    "heapq io itertools json math numbers operator pathlib pprint queue random re secrets statistics string tempfile "
    "textwrap threading time typing unittest uuid zoneinfo"
).split()


def main(server: socket.socket, packages: Sequence[str]) -> NoReturn:
    """Load, lock in, and serve until the server goes. Called in a process of its own; ends it."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # the server's own: what a package prints while it is imported is no frame
        os.dup2(nothing, descriptor)
    os.close(nothing)
    warm_up(packages)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    report: LayerReport = {}
    isolate(report, proc)
    # The first process of a process-id namespace: when it ends, the kernel ends every other one in it.
    child = os.fork()
    if child:
        os.close(server.detach())
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        Forker(server, proc, report).serve()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has gone, with messages unread
    os._exit(0)


def warm_up(packages: Sequence[str]) -> None:
    """Import what sessions use, and make every later fork see the same clock and randomness."""
    for name in (*WARM_MODULES, *packages):
        importlib.import_module(name)
    if "numpy" in packages:
        importlib.import_module("numpy.random")  # numpy loads it when it is first used
    if "sympy" in packages:
        sympy: Any = sys.modules["sympy"]
        x = sympy.Symbol("x")
        sympy.solve(x**2 - 5 * x + 6, x)  # loads the parts that sympy loads when they are first used
        sympy.simplify(sympy.integrate(sympy.sin(x) * x, x))
        sympy.sympify("1/3 + x")
    if linux.MACHINE in seccomp.AUDIT_ARCHITECTURES:
        seccomp.build(linux.MACHINE)
    determinism.make_deterministic()
    gc.collect()
    gc.freeze()  # a collection in a worker would write to, and so copy, every page of what is shared


def isolate(report: LayerReport, proc: int) -> None:
    """Give up root, and enter namespaces and a root folder that all workers share."""
    trees = interpreter_trees()
    if os.geteuid() == 0:  # root's own folders are in reach for the last time
        attempt(report, Layer.OWN_ROOT, enter_root_of_trees, trees)
    become_ordinary()
    attempt(report, Layer.NAMESPACES, enter_namespaces, NAMESPACES, proc)
    if report.get(Layer.OWN_ROOT) != "":
        attempt(report, Layer.OWN_ROOT, jail.enter, trees)


def enter_root_of_trees(trees: Sequence[str]) -> None:
    """Build the root folder in a mount namespace of its own."""
    linux.unshare(linux.CLONE_NEWNS)
    jail.enter(trees)


class Forker:
    """Forks workers on request and reports their ends."""

    def __init__(self, server: socket.socket, proc: int, report: LayerReport) -> None:
        self.server = server
        self.proc = proc
        self.report = report
        self.readable = interpreter_trees()
        self.selector = selectors.DefaultSelector()
        self.selector.register(server, selectors.EVENT_READ, None)
        self.own_namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
        attempt(self.report, Layer.PROCESS_NAMESPACE, self.renew_process_namespace)

    def serve(self) -> None:
        """Take requests until the server closes its end."""
        while True:
            for key, _ in self.selector.select():
                if key.data is not None:
                    self.reap(key.data, key.fd)
                elif request := self.server.recv(MAX_MESSAGE_BYTES):
                    self.serve_request(SandboxLimits(**json.loads(request)))
                else:
                    return

    def serve_request(self, limits: SandboxLimits) -> None:
        """Fork a worker, or say why there is none: a machine that is full for a moment ends no session that runs."""
        try:
            self.fork(limits)
        except OSError as error:
            self.server.send(json.dumps({"failed": str(error)}).encode())

    def renew_process_namespace(self) -> None:
        """Make the next child the first process of a namespace of its own; only one can be asked for at a time."""
        linux.setns(self.own_namespace, linux.CLONE_NEWPID)
        linux.unshare(linux.CLONE_NEWPID)

    def fork(self, limits: SandboxLimits) -> None:
        """Fork a worker and hand it to the server."""
        if not self.report[Layer.PROCESS_NAMESPACE]:
            self.renew_process_namespace()
        ours, channel = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self.become_worker(channel, limits)
        channel.close()
        process = os.pidfd_open(pid)
        socket.send_fds(self.server, [json.dumps({"forked": pid}).encode()], [ours.fileno(), process])
        ours.close()
        self.selector.register(process, selectors.EVENT_READ, pid)

    def become_worker(self, channel: socket.socket, limits: SandboxLimits) -> NoReturn:
        """Run as a worker until the end of the process, which whatever happens does not get out of here."""
        try:
            worker.run(channel, limits, self.readable, self.proc, self.report)
        except BaseException as error:  # noqa: BLE001 - a process has no caller: the server is told
            if channel.fileno() >= 0:  # not locked in yet, so it is no error of the code's
                os.write(channel.fileno(), json.dumps({"error": repr(error)}).encode() + b"\n")
        finally:
            os._exit(FAILED)

    def reap(self, pid: int, process: int) -> None:
        """Report how a worker ended; the kernel says it, nothing that the worker wrote."""
        _, status, usage = os.wait4(pid, 0)
        self.selector.unregister(process)
        os.close(process)
        cpu_s = usage.ru_utime + usage.ru_stime
        end = {"ended": pid, "status": os.waitstatus_to_exitcode(status), "cpu_s": cpu_s}
        self.server.send(json.dumps(end).encode())
