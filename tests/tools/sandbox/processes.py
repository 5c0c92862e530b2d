"""The processes of a sandbox, seen from outside."""

import time
from collections.abc import Callable

import psutil

from forkgym.tools.sandbox.client import SandboxServer


def workers(server: SandboxServer, status: str) -> list[psutil.Process]:
    """Workers in a state: the children of the forker, which is the child of the server's child.

    One that has run a call and waits for the next is stopped; a spare one, which was never called, sleeps.
    """
    (parent,) = psutil.Process(server.process.pid).children()
    (forker,) = parent.children()
    found: list[psutil.Process] = []
    for worker in forker.children():
        try:
            if worker.status() == status:
                found.append(worker)
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
