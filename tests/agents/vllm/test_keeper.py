"""The keeper ends what it keeps, with all that the command has started: when told to, and when its parent dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

DEADLINE_S = 60.0
# Starts a process of its own, writes the ids of both, and waits.
COMMAND = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
# Starts a keeper and is killed.
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "forkgym.agents.vllm.keeper", str(os.getpid()), *sys.argv[1:]])
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def keeper(*command: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "forkgym.agents.vllm.keeper"]
    return subprocess.Popen([*program, str(os.getpid()), "no-folder", *command])


def started(path: Path) -> list[psutil.Process]:
    wait_for(path.exists)
    return [psutil.Process(int(one)) for one in path.read_text().split()]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_its_exit_status_is_the_commands() -> None:
    assert keeper(sys.executable, "-c", "raise SystemExit(7)").wait(DEADLINE_S) == 7
    assert keeper(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)").wait(DEADLINE_S) == 128 + signal.SIGKILL


def test_it_ends_the_command_and_what_that_started_when_told_to(tmp_path: Path) -> None:
    process = keeper(sys.executable, "-c", COMMAND, str(tmp_path / "ids"))
    kept = started(tmp_path / "ids")
    process.terminate()
    assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    wait_for(lambda: all(gone(one) for one in kept))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_them_when_its_parent_dies(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "ids")]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder), *command])
    kept = started(tmp_path / "ids")
    parent.send_signal(number)
    parent.wait(DEADLINE_S)
    wait_for(lambda: all(gone(one) for one in kept))
    wait_for(lambda: not folder.exists())


def test_ctrl_c_in_a_terminal_does_not_reach_the_command(tmp_path: Path) -> None:
    process = keeper(sys.executable, "-c", COMMAND, str(tmp_path / "ids"))
    kept = started(tmp_path / "ids")
    assert {os.getpgid(one.pid) for one in kept} == {kept[0].pid}
    process.terminate()
    process.wait(DEADLINE_S)
