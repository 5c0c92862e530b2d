"""The layers on a process of the test's own, and what is left of them where the machine offers less."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from forkgym.tools.sandbox import landlock
from forkgym.tools.sandbox.layers import Layer, interpreter_trees
from tests.tools.sandbox.containment import run_contained, skip_without_containment

LOCKED = """
import json, os, resource, socket, sys
import fractions
from forkgym.tools.sandbox.layers import interpreter_trees, lock_down
from forkgym.tools.sandbox.limits import SandboxLimits
readable = interpreter_trees()
report = lock_down(SandboxLimits(memory_bytes=32 * 2**20, threads=4), readable, own_folder={own_folder})
def attempt(name, function, *arguments):
    try:
        function(*arguments)
        results[name] = ""
    except (OSError, MemoryError, ValueError) as error:
        results[name] = type(error).__name__
results = {{}}
import decimal, statistics  # not imported yet, but in reach
attempt("read", open, "/etc/passwd")
attempt("list", os.listdir, "/")
attempt("write", open, "forkgym-test", "w")  # where it was put: in the private folder, if it has one
attempt("write elsewhere", open, "/dev/shm/forkgym-test", "w")
attempt("fork", os.fork)
attempt("run", os.execv, "/bin/true", ["true"])
attempt("socket", socket.socket)
attempt("signal", os.kill, os.getppid(), 0)
attempt("memory", bytearray, 64 * 2**20)
attempt("little memory", bytearray, 2**20)
attempt("limit", resource.setrlimit, resource.RLIMIT_AS, (-1, -1))
attempt("mode", os.chmod, ".", 0o777)
results["root"] = os.getuid() == 0
print(json.dumps([report, results]))
"""

HELD = {
    "read": "PermissionError",
    "list": "PermissionError",
    "write elsewhere": "PermissionError",
    "fork": "PermissionError",
    "run": "PermissionError",
    "socket": "PermissionError",
    "signal": "PermissionError",
    "memory": "MemoryError",
    "little memory": "",
    "limit": "ValueError",  # Python's word for a limit that may not be raised
    "mode": "PermissionError",
    "root": False,
}


def read_report(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, str], dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    report, results = json.loads(done.stdout)
    return report, results


# Ends the capabilities that the containment has, and with them every way to new namespaces.
FORBID = """
echo 0 > /proc/sys/user/max_user_namespaces
exec setpriv --inh-caps=-all --ambient-caps=-all "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def full_machine() -> None:
    """Skip where the kernel offers less than every layer."""
    if landlock.version() == 0:
        pytest.skip("needs Landlock")
    skip_without_containment()


def without_namespaces(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where nobody can make a namespace, as in many containers."""
    return run_contained("sh", "-c", FORBID, "sh", sys.executable, "-c", code, timeout_s=100)


@pytest.mark.parametrize("own_folder", [False, True])
def test_a_process_locks_itself_in(own_folder: bool) -> None:
    report, results = read_report(run_contained(sys.executable, "-c", LOCKED.format(own_folder=own_folder)))
    write = results.pop("write")
    assert write == ("" if own_folder else "PermissionError")
    assert results == HELD
    expected = (
        set(Layer) - {Layer.PROCESS_NAMESPACE, Layer.OWN_ROOT} - (set() if own_folder else {Layer.PRIVATE_FOLDER})
    )
    assert report == {layer.value: "" for layer in expected}


def test_without_namespaces_the_other_layers_stop_the_same() -> None:
    report, results = read_report(without_namespaces(LOCKED.format(own_folder=True)))
    assert results == HELD | {"write": "PermissionError"}
    missing = {layer for layer, why in report.items() if why}
    assert missing == {Layer.NAMESPACES, Layer.PRIVATE_FOLDER}
    assert "unshare" in report[Layer.NAMESPACES]


WITHOUT_NAMESPACES = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
from forkgym.tools.python import PYTHON
session = PYTHON.new_session()
session.call({"code": "x = 20"})
print(session.fork().call({"code": "x + 1"}), end="")
"""


def test_the_tool_goes_on_without_namespaces_and_says_so() -> None:
    done = without_namespaces(WITHOUT_NAMESPACES)
    line, value = done.stdout.splitlines()
    assert value == "21", done.stderr
    assert line.startswith(
        "WARNING Python sandbox | layers: ordinary user, resource limits, no new privileges, Landlock"
    )
    assert "missing: user and network namespaces" in line
    assert line.endswith("| stops: network, files, fork, kill, memory, output, time")


def test_only_what_is_imported_can_be_read() -> None:
    code = (
        "import json, numpy; from forkgym.tools.sandbox.layers import interpreter_trees; "
        "print(json.dumps(interpreter_trees()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    trees = json.loads(done.stdout)
    assert os.path.dirname(os.__file__) in trees
    assert any(tree.endswith("/numpy") for tree in trees)
    assert not any(tree.endswith(("/site-packages", "/torch", "/sympy", "/forkgym")) for tree in trees)
    assert all(os.path.exists(tree) for tree in interpreter_trees())
