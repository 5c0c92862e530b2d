"""Keep a command running for as long as the process that asked for it lives.

``python -m forkgym.agents.vllm.keeper PARENT FOLDER COMMAND ...`` ends with the command's exit status, as shells do
with 128 and the signal's number where a signal ended it, and removes the folder where the parent can't any more.

A process that is killed outright can't stop what it has started: this one notices that its parent is another, and stops
it instead. It watches, since the signal that Linux can send at a parent's death comes when the thread that forked ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from types import FrameType

POLL_S = 0.2
GRACE_S = 10.0  # for a command to end by itself


class Asked:
    """Whether the end was asked for."""

    to_end = False


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    parent, folder, command = int(arguments[0]), arguments[1], arguments[2:]
    asked = Asked()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.to_end = True

    signal.signal(signal.SIGTERM, end)
    # A process group of its own: what the command starts ends with it, and Ctrl-C in a terminal does not reach it.
    child = subprocess.Popen(command, start_new_session=True)
    while child.poll() is None and os.getppid() == parent and not asked.to_end:
        time.sleep(POLL_S)
    end_group(child)
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    status = child.wait()
    return status if status >= 0 else 128 - status


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process group: the leader may clean up for a while, then all are killed."""
    if leader.poll() is None:
        leader.terminate()
        try:
            leader.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
