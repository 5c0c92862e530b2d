"""The server: gives sessions their workers, and keeps the limits that a worker cannot be trusted with.

It reads frames (see ``frames.py``) from its standard input and answers on its standard output, so it runs wherever a
program can be started: beside the trainer, over ssh, in a container or a virtual machine. It has one thread and never
waits for a worker: deadlines and the cap on output hold for every session whatever another one does.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import resource
import secrets
import selectors
import signal
import socket
import sys
import time
from collections import defaultdict, deque
from dataclasses import asdict, dataclass, field, replace

from forkgym.tools.sandbox import forker, linux
from forkgym.tools.sandbox.frames import FrameBuffer, encode
from forkgym.tools.sandbox.limits import Outcome, SandboxLimits
from forkgym.tools.sandbox.worker import ERROR, HEADER, OK

READ_BYTES = 65_536
NUMBER_BYTES = 16
SPARES = 2  # workers that are ready before they are asked for
MAX_STARTING = 8
OUTCOMES = {OK: Outcome.OK, ERROR: Outcome.ERROR}
CPU_SHARE = 0.8  # the kernel holds a count of ticks against the limit, from which the time that it reports differs
LOST = (Outcome.LOST, "the session's worker is gone")


@dataclass(eq=False, slots=True)
class Call:
    """A call on its way.

    Attributes:
        session: Of the trainer's side.
        code: What to run.
        timeout_s: From the moment at which a worker gets it, seconds.
        number: What ends its output; nobody but the worker's own loop knows it.
    """

    session: int
    code: bytes
    timeout_s: float
    number: bytes


@dataclass(eq=False, slots=True)
class Worker:
    """A worker as the server sees it.

    Attributes:
        pid: In the forker's numbering.
        channel: Its socket; closed once it is given up.
        process: A descriptor of the process, to signal it by.
        limits: What it was locked in with.
        ready: It said that it has locked itself in.
        session: Whose it is; None for a spare.
        call: What it is running.
        output: What came through the channel since the call began.
        unsent: What the channel has not taken yet of a call; a view, which is cut without copying.
    """

    pid: int
    channel: socket.socket
    process: int
    limits: SandboxLimits
    ready: bool = False
    session: int | None = None
    call: Call | None = None
    output: bytearray = field(default_factory=bytearray)
    unsent: memoryview = memoryview(b"")


class Server:
    """The sessions, their workers, and the loop around them."""

    def __init__(self, forker_socket: socket.socket) -> None:
        self.forker = forker_socket
        self.selector = selectors.DefaultSelector()
        self.requests = FrameBuffer()
        self.workers: dict[int, Worker] = {}
        self.sessions: dict[int, Worker] = {}
        self.ends: dict[int, tuple[Outcome, str]] = {}  # of workers between two calls, by session
        self.spares: defaultdict[SandboxLimits, list[Worker]] = defaultdict(list)
        self.waiting: defaultdict[SandboxLimits, deque[Call]] = defaultdict(deque)
        self.requested: deque[SandboxLimits] = deque()  # forks that the forker has not answered, in order
        self.deadlines: list[tuple[float, int, Worker, Call]] = []
        self.order = itertools.count()
        self.layers: dict[str, str] | None = None

    # The loop.

    def serve(self) -> None:
        """Serve until the trainer's side closes its end, or the forker ends."""
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self.read_requests)
        self.selector.register(self.forker, selectors.EVENT_READ, self.read_forker)
        while True:
            timeout_s = self.deadlines[0][0] - time.monotonic() if self.deadlines else None
            for key, events in self.selector.select(timeout_s):
                if isinstance(key.data, Worker):
                    self.serve_channel(key.data, events)
                elif not key.data():
                    return
            self.enforce_deadlines()

    def read_requests(self) -> bool:
        """Take what the trainer's side sent; False where it is gone."""
        data = os.read(sys.stdin.fileno(), READ_BYTES)
        for header, body in self.requests.feed(data):
            if header["op"] == "close":
                self.close(header["session"])
            else:
                # A worker does not know its calls' time limit, so one serves for any.
                limits = replace(SandboxLimits(**header["limits"]), timeout_s=SandboxLimits().timeout_s)
                call = Call(header["session"], body, header["timeout_s"], secrets.token_bytes(NUMBER_BYTES))
                self.take_call(call, limits, new=header["new"])
        return bool(data)

    def read_forker(self) -> bool:
        """Take what the forker sent: a new worker, or the end of one; False where the forker is gone."""
        message, descriptors, _, _ = socket.recv_fds(self.forker, forker.MAX_MESSAGE_BYTES, 2)
        if not message:
            return False
        content = json.loads(message)
        if "failed" in content:
            limits = self.requested.popleft()
            self.fail_waiting(limits, f"no worker could be forked: {content['failed']}")
            self.request_for_waiting()
        elif "forked" in content:
            channel = socket.socket(fileno=descriptors[0])
            channel.setblocking(False)
            worker = Worker(content["forked"], channel, descriptors[1], self.requested.popleft())
            self.workers[worker.pid] = worker
            self.selector.register(channel, selectors.EVENT_READ, worker)
        else:
            self.ended(self.workers.pop(content["ended"]), content["status"], content["cpu_s"])
        return True

    def enforce_deadlines(self) -> None:
        """End the calls whose time is up."""
        now = time.monotonic()
        while self.deadlines and (self.deadlines[0][0] <= now or self.deadlines[0][2].call is not self.deadlines[0][3]):
            _, _, worker, call = heapq.heappop(self.deadlines)
            if worker.call is call:
                self.finish(worker, Outcome.TIMEOUT, f"took longer than {call.timeout_s:g} s")

    def reply(self, session: int, outcome: Outcome, detail: str = "", output: bytes = b"") -> None:
        """Answer a call."""
        write_all(encode({"session": session, "outcome": outcome, "detail": detail}, output))

    # Sessions.

    def take_call(self, call: Call, limits: SandboxLimits, *, new: bool) -> None:
        """Begin a call, in the session's worker or in a new one."""
        worker = self.sessions.get(call.session)
        if worker is not None:
            self.begin(worker, call)
        elif not new:
            self.reply(call.session, *self.ends.pop(call.session, LOST))
        elif self.spares[limits]:
            self.begin(self.spares[limits].pop(), call)
            self.request_workers(limits)
        else:
            self.waiting[limits].append(call)
            self.request_workers(limits)

    def close(self, session: int) -> None:
        """End a session, which has no call on its way."""
        self.ends.pop(session, None)
        worker = self.sessions.pop(session, None)
        if worker is not None:
            self.discard(worker)

    def request_workers(self, limits: SandboxLimits) -> None:
        """Ask the forker for as many workers with these limits as are wanted now."""
        starting = [worker.limits for worker in self.workers.values() if not worker.ready] + list(self.requested)
        wanted = len(self.waiting[limits]) + SPARES - len(self.spares[limits]) - starting.count(limits)
        for _ in range(min(wanted, MAX_STARTING - len(starting))):
            self.forker.send(json.dumps(asdict(limits)).encode())
            self.requested.append(limits)

    def request_for_waiting(self) -> None:
        """Ask for the workers that calls wait for, whatever their limits: too many others were starting before."""
        for limits in [limits for limits, calls in self.waiting.items() if calls]:
            self.request_workers(limits)

    # Workers.

    def begin(self, worker: Worker, call: Call) -> None:
        """Give a call to a worker; its time runs from here."""
        self.sessions[call.session] = worker
        worker.session, worker.call = call.session, call
        worker.output.clear()
        deadline = time.monotonic() + call.timeout_s
        heapq.heappush(self.deadlines, (deadline, next(self.order), worker, call))
        send_signal(worker, signal.SIGCONT)
        worker.unsent = memoryview(HEADER.pack(len(call.code), call.number) + call.code)
        self.send(worker)

    def send(self, worker: Worker) -> None:
        """Send as much of the code as the channel takes."""
        if worker.channel.fileno() < 0:
            return  # the code closed its descriptors after its last call: now its time runs out
        events = selectors.EVENT_READ | selectors.EVENT_WRITE
        try:
            worker.unsent = worker.unsent[worker.channel.send(worker.unsent) :]
        except BlockingIOError:
            pass  # the rest goes when the channel takes more
        except OSError:
            events = selectors.EVENT_READ  # it is dead, which the forker reports
        self.selector.modify(worker.channel, events if worker.unsent else selectors.EVENT_READ, worker)

    def serve_channel(self, worker: Worker, events: int) -> None:
        """Go on with what a worker's channel is ready for."""
        if worker.channel.fileno() < 0:
            return  # given up by another event of the same round
        if events & selectors.EVENT_WRITE:
            self.send(worker)
        if events & selectors.EVENT_READ:
            self.receive(worker)

    def receive(self, worker: Worker) -> None:
        """Take what a worker wrote."""
        try:
            data = worker.channel.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            # It has ended, which the forker reports, or closed its descriptors, and then its time runs out.
            self.selector.unregister(worker.channel)
            worker.channel.close()
        elif not worker.ready:
            worker.output += data
            if data.endswith(b"\n"):
                self.locked_in(worker, json.loads(worker.output))
        elif worker.call is not None:
            self.take_output(worker, worker.call, data)
        # What a thread of the code writes between two calls, before it is stopped, belongs to neither.

    def take_output(self, worker: Worker, call: Call, data: bytes) -> None:
        """Collect output until the call's number ends it, or there is too much."""
        searched = max(0, len(worker.output) - NUMBER_BYTES)
        worker.output += data
        end = worker.output.find(call.number, searched)
        cap = worker.limits.output_bytes
        if end > cap or (end < 0 and len(worker.output) > cap + NUMBER_BYTES):
            self.finish(worker, Outcome.OUTPUT_LIMIT, f"wrote more than {cap} bytes")
        elif end >= 0 and len(worker.output) > end + NUMBER_BYTES:
            outcome = OUTCOMES.get(bytes(worker.output[end + NUMBER_BYTES : end + NUMBER_BYTES + 1]))
            del worker.output[end:]
            if outcome is None:
                self.finish(worker, Outcome.CRASH, "the code wrote into the worker's own channel")
            else:
                self.finish(worker, outcome, "")

    def finish(self, worker: Worker, outcome: Outcome, detail: str) -> None:
        """Answer the worker's call; stop the worker until the next one, or end it where ``detail`` says why."""
        call = worker.call
        assert call is not None, f"worker {worker.pid} runs no call"
        worker.call = None
        if not detail:
            send_signal(worker, signal.SIGSTOP)  # threads that the code left behind do not run on between calls
        else:
            self.sessions.pop(call.session, None)
            self.discard(worker)
        self.reply(call.session, outcome, detail, bytes(worker.output[: worker.limits.output_bytes]))
        worker.output.clear()

    def locked_in(self, worker: Worker, report: dict[str, str]) -> None:
        """Take a worker that says that it has locked itself in, if every layer holds that held at the start."""
        worker.ready = True
        worker.output.clear()
        if self.layers is None:
            self.layers = report
            write_all(encode({"layers": report}))
        missing = [f"{layer}: {why}" for layer, why in report.items() if why and not self.layers.get(layer, "error")]
        if missing or "error" in report:
            self.discard(worker)
            self.fail_waiting(worker.limits, "; ".join(missing) or report["error"])
        elif self.waiting[worker.limits]:
            self.begin(worker, self.waiting[worker.limits].popleft())
        else:
            self.spares[worker.limits].append(worker)
        self.request_for_waiting()
        self.request_workers(worker.limits)

    def fail_waiting(self, limits: SandboxLimits, why: str) -> None:
        """Answer the calls that wait for a worker: there is none to be had."""
        for call in self.waiting.pop(limits, ()):
            self.reply(call.session, Outcome.INFRASTRUCTURE, why)

    def discard(self, worker: Worker) -> None:
        """Kill a worker; the forker reports its end."""
        send_signal(worker, signal.SIGKILL)
        if worker.channel.fileno() >= 0:
            self.selector.unregister(worker.channel)
            worker.channel.close()

    def ended(self, worker: Worker, status: int, cpu_s: float) -> None:
        """Answer the call of a worker that has ended, with what the kernel says about its end.

        Args:
            worker: The worker.
            status: Its exit status, or minus the signal that ended it.
            cpu_s: The CPU time that it used, seconds.
        """
        while worker.call is not None and worker.channel.fileno() >= 0:
            self.receive(worker)  # what it wrote before
        cause = cause_of_end(status, cpu_s, worker.limits)
        if cause[0] is Outcome.MEMORY and (worker.call is None or worker.unsent):
            cause = LOST  # killed by the system while it ran nothing
        if worker.call is not None:
            self.finish(worker, *cause)
        elif worker.session is not None and self.sessions.get(worker.session) is worker:
            # What the code did itself is an observation: were it run again, code could choose never to be scored.
            self.ends[worker.session] = cause
            del self.sessions[worker.session]
        elif worker in self.spares[worker.limits]:
            self.spares[worker.limits].remove(worker)
        if not worker.ready:
            self.fail_waiting(worker.limits, f"a worker ended with status {status} before it was ready")
            self.request_for_waiting()
        self.discard(worker)
        os.close(worker.process)


def cause_of_end(status: int, cpu_s: float, limits: SandboxLimits) -> tuple[Outcome, str]:
    """Say why a worker ended that was not killed by this server."""
    if status >= 0:
        return Outcome.ERROR, f"the code ended its own process with status {status}"
    if status != -signal.SIGKILL:
        return Outcome.CRASH, f"the process crashed with {signal.Signals(-status).name}"
    if cpu_s >= CPU_SHARE * limits.cpu_s:
        return Outcome.TIMEOUT, f"the session used more than {limits.cpu_s} s of CPU time"
    return Outcome.MEMORY, "the system ran out of memory"


def send_signal(worker: Worker, number: signal.Signals) -> None:
    """Signal a worker, unless it has ended already."""
    try:
        signal.pidfd_send_signal(worker.process, number)
    except ProcessLookupError:
        pass  # the forker reports it


def write_all(data: bytes) -> None:
    """Write to the trainer's side, which always reads."""
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def main() -> None:
    """Read the first frame, start the forker and serve."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a session takes two descriptors here, one in the forker
    first = FrameBuffer()
    while not (frames := first.feed(data := os.read(sys.stdin.fileno(), READ_BYTES))):
        if not data:
            return
    ((header, _),) = frames
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        forker.main(theirs, header["packages"])
    theirs.close()
    server = Server(ours)
    server.request_workers(SandboxLimits(**header["limits"]))
    server.serve()
