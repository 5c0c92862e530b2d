"""A server called directly: every way a call can end, many sessions at once, and processes that go when they should."""

import gc
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from forkgym.tools.sandbox import client
from forkgym.tools.sandbox.client import SandboxServer, ServerDown
from forkgym.tools.sandbox.limits import CallResult, Outcome, SandboxLimits
from forkgym.tools.sandbox.selftest import HELD, describe, run_probes
from forkgym.tools.sandbox.server import cause_of_end
from tests.tools.sandbox.processes import wait_until, workers

LIMITS = SandboxLimits(timeout_s=30.0)


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    running = SandboxServer(None, ["numpy"])
    yield running
    running.stop()


def call(
    server: SandboxServer, session: int, code: str, limits: SandboxLimits = LIMITS, new: bool = False
) -> CallResult:
    return server.call(session, code, limits, timeout_s=limits.timeout_s, new=new)


def first(server: SandboxServer, code: str, limits: SandboxLimits = LIMITS) -> CallResult:
    """Run code in a session of its own."""
    session = server.new_session()
    try:
        return call(server, session, code, limits, new=True)
    finally:
        server.close_session(session)


def stopped(server: SandboxServer) -> list[psutil.Process]:
    return workers(server, psutil.STATUS_STOPPED)


def test_the_self_test_finds_no_way_out(server: SandboxServer) -> None:
    probes = run_probes(server)
    assert probes == dict.fromkeys(("network", "files", "fork", "kill", "memory", "output", "time"), HELD)


def test_the_line_of_the_self_test() -> None:
    assert describe({"seccomp": "", "Landlock": "no such call"}, {"fork": HELD, "files": "read /etc/passwd"}) == (
        "Python sandbox | layers: seccomp | missing: Landlock (no such call) | stops: fork | "
        "DOES NOT STOP: files (read /etc/passwd)"
    )
    assert describe({}, {}) == "Python sandbox | layers: none | stops: nothing"


@pytest.mark.parametrize(
    ("status", "cpu_s", "outcome", "detail"),
    [
        (0, 1.0, Outcome.ERROR, "the code ended its own process with status 0"),
        (3, 1.0, Outcome.ERROR, "the code ended its own process with status 3"),
        (-signal.SIGSEGV, 1.0, Outcome.CRASH, "the process crashed with SIGSEGV"),
        (-signal.SIGKILL, 1.0, Outcome.MEMORY, "the system ran out of memory"),
        (-signal.SIGKILL, 119.9, Outcome.TIMEOUT, "the session used more than 120 s of CPU time"),
        (-signal.SIGKILL, 100.0, Outcome.TIMEOUT, "the session used more than 120 s of CPU time"),
    ],
)
def test_the_cause_of_an_end_is_what_the_kernel_says(status: int, cpu_s: float, outcome: Outcome, detail: str) -> None:
    assert cause_of_end(status, cpu_s, LIMITS) == (outcome, detail)


def test_cpu_time_is_limited_for_the_whole_session(server: SandboxServer) -> None:
    limits = replace(LIMITS, cpu_s=1)
    result = first(server, "while True: pass", limits)
    assert result == CallResult(Outcome.TIMEOUT, "", "the session used more than 1 s of CPU time")


def test_a_worker_that_the_system_kills_in_a_call_ran_out_of_memory(server: SandboxServer) -> None:
    def busy() -> list[psutil.Process]:
        return workers(server, psutil.STATUS_RUNNING)

    def kill_the_busy_one() -> None:
        wait_until(lambda: bool(busy()))
        busy()[0].kill()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(kill_the_busy_one)
        result = first(server, "print('begun', flush=True)\nwhile True: pass")
    assert result == CallResult(Outcome.MEMORY, "begun\n", "the system ran out of memory")


def test_a_worker_that_ends_between_two_calls_is_lost(server: SandboxServer) -> None:
    session = server.new_session()
    assert call(server, session, "x = 1", new=True).outcome is Outcome.OK
    wait_until(lambda: len(stopped(server)) == 1)
    (worker,) = stopped(server)
    worker.kill()
    worker.wait(timeout=60)
    assert call(server, session, "x").outcome is Outcome.LOST


def test_a_session_that_is_closed_ends_its_worker(server: SandboxServer) -> None:
    session = server.new_session()
    call(server, session, "x = 1", new=True)
    wait_until(lambda: len(stopped(server)) == 1)
    server.close_session(session)
    wait_until(lambda: not stopped(server))
    assert call(server, session, "x").outcome is Outcome.LOST


def test_a_session_can_be_closed_while_a_frame_is_written(server: SandboxServer) -> None:
    session = server.new_session()
    call(server, session, "x = 1", new=True)
    with server.writing:  # as when the collector of garbage comes upon the session in the middle of a call
        server.close_session(session)
    assert first(server, "1").outcome is Outcome.OK  # the next call of any session tells the server
    wait_until(lambda: not stopped(server))


def test_a_large_program_and_a_large_output_get_through(server: SandboxServer) -> None:
    limits = replace(LIMITS, output_bytes=3_000_000)
    program = "x = '" + "y" * 2_000_000 + "'\nprint(x)"
    assert first(server, program, limits) == CallResult(Outcome.OK, "y" * 2_000_000 + "\n")


def test_code_that_writes_to_every_descriptor_forges_nothing(server: SandboxServer) -> None:
    forgery = "import os\nfor fd in range(256):\n    try: os.write(fd, b'k' * 40)\n    except OSError: pass\n1 / 0"
    result = first(server, forgery)
    assert result.outcome is Outcome.ERROR
    assert result.output.startswith("k" * 80 + "Traceback")


def test_code_that_finds_the_number_of_its_call_forges_its_own_outcome_only(server: SandboxServer) -> None:
    forgery = (
        "import os, sys\nframe = sys._getframe()\nwhile 'number' not in frame.f_locals: frame = frame.f_back\n"
        "os.write(1, b'forged' + frame.f_locals['number'] + b'k')\nwhile True: pass"
    )
    session = server.new_session()
    assert call(server, session, forgery, new=True) == CallResult(Outcome.OK, "forged")
    # It is still in the first call when the second one comes.
    result = call(server, session, "1", replace(LIMITS, timeout_s=0.5))
    assert result.outcome is Outcome.TIMEOUT
    assert first(server, forgery.replace("b'k'", "b'?'")).outcome is Outcome.CRASH
    assert first(server, "1").output == "1\n"


def test_code_that_closes_its_descriptors_ends_only_its_own_session(server: SandboxServer) -> None:
    assert first(server, "import os\nos.closerange(0, 256)").detail == "the code ended its own process with status 70"
    limits = replace(LIMITS, timeout_s=0.5)
    assert first(server, "import os\nos.closerange(0, 256)\nwhile True: pass", limits).outcome is Outcome.TIMEOUT
    assert first(server, "1").output == "1\n"


FORGE_THE_END = (
    "import os, sys\nframe = sys._getframe()\nwhile 'number' not in frame.f_locals: frame = frame.f_back\n"
    "number = frame.f_locals['number']\nos.write(1, number + b'k')\n"
)


def test_code_that_closes_its_descriptors_after_its_call_ends_only_its_own_session(server: SandboxServer) -> None:
    session = server.new_session()
    close = "os.closerange(0, 256)\nwhile True: pass"
    assert call(server, session, FORGE_THE_END + close, new=True).outcome is Outcome.OK
    assert call(server, session, "1", replace(LIMITS, timeout_s=0.5)).outcome is Outcome.TIMEOUT
    assert first(server, "1").output == "1\n"


def test_an_end_of_the_codes_own_making_between_two_calls_is_no_lost_worker(server: SandboxServer) -> None:
    session = server.new_session()
    assert call(server, session, FORGE_THE_END + "os._exit(3)", new=True).outcome is Outcome.OK
    # Whether its process gets that far before it is stopped or when it goes on, the answer is the same.
    result = call(server, session, "1")
    assert result == CallResult(Outcome.ERROR, "", "the code ended its own process with status 3")
    assert call(server, session, "1").outcome is Outcome.LOST


def test_an_alarm_that_was_left_behind_does_not_end_the_session(server: SandboxServer) -> None:
    session = server.new_session()
    call(server, session, "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.05)", new=True)
    time.sleep(0.2)
    assert call(server, session, "1").output == "1\n"
    server.close_session(session)


def test_the_private_folder_is_limited_and_gone_with_the_session(server: SandboxServer) -> None:
    limits = replace(LIMITS, file_bytes=2**20)
    fill = "for n in range(5):\n    open(f'{n}', 'wb').write(bytes(300_000))"
    assert "No space left on device" in first(server, fill, limits).output
    assert first(server, "import os\nos.listdir('.')", limits).output == "[]\n"
    large = "with open('a', 'wb') as file:\n    file.write(bytes(2**20 + 1))"
    assert "File too large" in first(server, large, limits).output


def test_many_sessions_at_once(server: SandboxServer) -> None:
    def episode(number: int) -> list[str]:
        session = server.new_session()
        outputs = [call(server, session, f"x = {number}", new=True).output]
        outputs += [call(server, session, "x += 1\nx").output for _ in range(3)]
        server.close_session(session)
        return outputs

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(episode, range(40)))
    assert found == [["", f"{n + 1}\n", f"{n + 2}\n", f"{n + 3}\n"] for n in range(40)]


def test_a_worker_that_cannot_lock_itself_in_is_no_outcome_of_the_code(server: SandboxServer) -> None:
    result = first(server, "1", replace(LIMITS, memory_bytes=1))
    assert result.outcome is Outcome.INFRASTRUCTURE
    assert first(server, "1").outcome is Outcome.OK


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = SandboxServer(None, [])
    monkeypatch.setattr(client, "GRACE_S", 0.2)
    hung.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ServerDown, match="the server has not answered for 0.3 s"):
        hung.call(hung.new_session(), "1", LIMITS, timeout_s=0.1, new=True)
    hung.process.wait(timeout=60)


def test_a_worker_does_not_inherit_those_of_others(server: SandboxServer) -> None:
    # The forker has a descriptor of every worker: more of them than one worker may have open are no hindrance.
    sessions = [server.new_session() for _ in range(12)]
    limits = replace(LIMITS, open_files=10)
    assert [call(server, session, "1", limits, new=True).output for session in sessions] == ["1\n"] * 12
    for session in sessions:
        server.close_session(session)


def test_a_server_that_was_stopped_says_so() -> None:
    stopped_server = SandboxServer(None, [])
    stopped_server.stop()
    with pytest.raises(ServerDown, match="the server was stopped"):
        first(stopped_server, "1")
    stopped_server.process.wait(timeout=60)
    gc.collect()  # a pipe or process that was left behind would warn here


@pytest.mark.parametrize("name", ["timeout_s", "cpu_s", "memory_bytes", "output_bytes", "file_bytes", "threads"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, expected a positive number"):
        SandboxLimits(**{name: 0})
