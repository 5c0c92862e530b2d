"""The trainer's side against servers that read and answer when it is inconvenient."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from forkgym.tools.sandbox import client
from forkgym.tools.sandbox.client import SandboxServer, ServerDown
from forkgym.tools.sandbox.limits import CallResult, Outcome, SandboxLimits

LIMITS = SandboxLimits(timeout_s=60.0)
LARGE = "#" * 2_000_000  # many times what a pipe holds

BEGINNING = """
import os, time
from forkgym.tools.sandbox.frames import FrameBuffer, encode

frames = FrameBuffer()

def receive():
    return frames.feed(os.read(0, 65536))

def send(frame):
    while frame:
        frame = frame[os.write(1, frame):]

def answer(session, output):
    send(encode({"session": session, "outcome": "ok", "detail": ""}, output))

while not receive():
    pass
send(encode({"layers": {}}))
"""

ANSWERS_IN_THE_MIDDLE_OF_A_FRAME = """
small = []
while len(small) < 3:
    small += [header["session"] for header, _ in receive()]
assert not receive()  # the beginning of the large one
for session in small:
    answer(session, b"x" * 1_000_000)
while not (large := receive()):
    pass
answer(large[0][0]["session"], b"large")
"""

READS_NOTHING = "time.sleep(60)"


def call(server: SandboxServer, code: str) -> CallResult:
    return server.call(server.new_session(), code, LIMITS, timeout_s=LIMITS.timeout_s, new=True)


def test_large_answers_get_through_while_a_large_program_is_written() -> None:
    server = SandboxServer([sys.executable, "-c", BEGINNING + ANSWERS_IN_THE_MIDDLE_OF_A_FRAME], [])
    with ThreadPoolExecutor(4) as pool:
        try:
            small = [pool.submit(call, server, "1") for _ in range(3)]
            while len(server.answers) < 3:
                pass
            large = pool.submit(call, server, LARGE)
            assert [len(future.result(timeout=30).output) for future in small] == [1_000_000] * 3
            assert large.result(timeout=30) == CallResult(Outcome.OK, "large")
        finally:
            server.process.kill()


def test_a_server_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SandboxServer([sys.executable, "-c", BEGINNING + READS_NOTHING], [])
    monkeypatch.setattr(client, "GRACE_S", 0.2)
    with pytest.raises(ServerDown, match=r"the server has not read anything for 0\.2 s"):
        call(server, LARGE)
    assert server.process.wait(timeout=60) == -9


def test_a_session_is_closed_without_waiting_for_a_server_that_does_not_read() -> None:
    server = SandboxServer([sys.executable, "-c", BEGINNING + READS_NOTHING], [])
    for session in range(1, 5_001):
        server.close_session(session)  # more than the pipe holds
    assert 0 < len(server.closed) < 5_000
    server.stop()
