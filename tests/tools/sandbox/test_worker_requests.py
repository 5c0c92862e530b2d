"""Which workers the server asks the forker for, and what it makes of a forker that cannot fork."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from forkgym.tools.sandbox import server as server_module
from forkgym.tools.sandbox.forker import MAX_MESSAGE_BYTES, Forker
from forkgym.tools.sandbox.frames import FrameBuffer
from forkgym.tools.sandbox.limits import SandboxLimits
from forkgym.tools.sandbox.server import Call, Server

SMALL, LARGE = SandboxLimits(open_files=10), SandboxLimits(open_files=20)


@pytest.fixture
def forker_end() -> Iterator[tuple[Server, socket.socket]]:
    """A server, and the other end of its socket to the forker."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Server(ours)
    theirs.setblocking(False)
    yield server, theirs
    server.selector.close()
    ours.close()
    theirs.close()


def take_calls(server: Server, limits: SandboxLimits, count: int) -> None:
    for session in range(count):
        server.take_call(Call(session, b"", 1.0, b""), limits, new=True)


def requests(theirs: socket.socket) -> list[int]:
    """The limits on open files of the workers that were asked for since the last look."""
    found: list[int] = []
    while True:
        try:
            found.append(json.loads(theirs.recv(MAX_MESSAGE_BYTES))["open_files"])
        except BlockingIOError:
            return found


def test_workers_that_start_with_other_limits_are_no_help(forker_end: tuple[Server, socket.socket]) -> None:
    server, theirs = forker_end
    take_calls(server, SMALL, 1)
    assert requests(theirs) == [10, 10, 10]  # one for the call, two spares
    take_calls(server, LARGE, 1)
    assert requests(theirs) == [20, 20, 20]


def test_a_fork_that_failed_answers_the_calls_that_waited_for_it_and_makes_room_for_others(
    forker_end: tuple[Server, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, theirs = forker_end
    written = bytearray()
    monkeypatch.setattr(server_module, "write_all", written.extend)
    take_calls(server, SMALL, 7)
    assert requests(theirs) == [10] * 8  # as many as may start at once
    take_calls(server, replace(LARGE), 1)
    assert requests(theirs) == []
    theirs.send(json.dumps({"failed": "too many processes"}).encode())
    assert server.read_forker()
    answers = [header for header, _ in FrameBuffer().feed(bytes(written))]
    assert [answer["session"] for answer in answers] == list(range(7))
    assert {answer["outcome"] for answer in answers} == {"infrastructure"}
    assert answers[0]["detail"] == "no worker could be forked: too many processes"
    assert requests(theirs) == [20]


def test_a_forker_that_cannot_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(forker: Forker, limits: SandboxLimits) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Forker, "fork", fail)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        forker = object.__new__(Forker)
        forker.server = theirs
        forker.serve_request(SMALL)
        assert json.loads(ours.recv(MAX_MESSAGE_BYTES)) == {"failed": "[Errno 11] Resource temporarily unavailable"}
