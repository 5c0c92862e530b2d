"""Sessions and servers: what happens when one of them ends, and when the process that trains does."""

import os
import subprocess
import sys
import time

import pytest

from forkgym.tools.base import ToolFailure, ToolSession
from forkgym.tools.python import PYTHON, python_tool
from forkgym.tools.sandbox import sessions
from forkgym.tools.sandbox.sessions import SERVERS, ServerSettings


def run(session: ToolSession, code: str) -> str:
    return session.call({"code": code})


def test_a_session_survives_the_end_of_its_server() -> None:
    session = PYTHON.new_session()
    run(session, "x = 1")
    SERVERS.get(ServerSettings()).process.kill()
    assert run(session, "x") == "1\n"


def test_a_sandbox_that_cannot_be_started_is_a_failure_of_the_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "RETRY_DELAYS_S", (0.0, 0.0))
    with pytest.raises(ToolFailure, match="failed 3 times: cannot start /no/such/program"):
        run(python_tool(command=["/no/such/program"]).new_session(), "1")
    with pytest.raises(ToolFailure, match="failed 3 times: the server has ended"):
        run(python_tool(command=[sys.executable, "-c", "raise SystemExit(7)"]).new_session(), "1")
    with pytest.raises(ToolFailure, match="no answer"):
        run(python_tool(command=["cat"]).new_session(), "1")


def test_a_package_that_is_not_there_is_a_failure_of_the_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "RETRY_DELAYS_S", ())
    with pytest.raises(ToolFailure, match="status 1"):
        run(python_tool(packages=["no_such_package"]).new_session(), "1")


def test_a_server_of_another_command_runs_the_same() -> None:
    launcher = ["env", "UNWANTED=1", sys.executable, "-m", "forkgym.tools.sandbox"]
    session = python_tool(command=launcher, packages=["numpy"]).new_session()
    assert run(session, "import os\nprint(sorted(os.environ)[:2])\n'UNWANTED' in os.environ").endswith("\nFalse\n")
    assert "ModuleNotFoundError" in run(session, "import sympy")


def test_where_something_is_not_stopped_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(server: object) -> dict[str, str]:
        return {"network": "held", "files": "read /etc/passwd"}

    monkeypatch.setattr(sessions, "run_probes", found)
    with pytest.raises(ToolFailure, match=r"DOES NOT STOP: files \(read /etc/passwd\)"):
        run(python_tool(packages=["math"]).new_session(), "1")
    assert run(python_tool(packages=["math"], unsafe=True).new_session(), "1") == "1\n"


FORKED = """
import os, sys
from forkgym.tools.python import PYTHON
session = PYTHON.new_session()
session.call({"code": "x = 1"})
pid = os.fork()
if pid == 0:
    ok = session.call({"code": "x + 1"}) == "2\\n" and PYTHON.new_session().call({"code": "3"}) == "3\\n"
    os._exit(0 if ok else 1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert status == 0, status
assert session.call({"code": "x"}) == "1\\n"
print("fine")
"""


def test_a_fork_of_the_process_gets_servers_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


ABANDONED = """
import os, sys
import psutil
from forkgym.tools.python import PYTHON
PYTHON.new_session().call({"code": "1"})
print(*[process.pid for process in psutil.Process().children(recursive=True)], flush=True)
os.kill(os.getpid(), 9)
"""


def test_no_process_outlives_a_trainer_that_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 3, done.stderr
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)
