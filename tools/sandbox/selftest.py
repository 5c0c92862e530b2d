"""What a sandbox holds, found out by trying: the programs below are run in it when a server starts.

A layer can be there and hold nothing, so it is the effect that decides whether code is run, not the list of layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from forkgym.tools.sandbox.client import SandboxServer
from forkgym.tools.sandbox.limits import Outcome, SandboxLimits

LIMITS = SandboxLimits()
HELD = "held"

# Each prints HELD where it found no way out, and what it found else.
PROBES = {
    "network": """
import socket
found = "held"
for kind, address in ((socket.SOCK_DGRAM, ("192.0.2.1", 9)), (socket.SOCK_STREAM, ("127.0.0.1", 0))):
    try:
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.connect(address) if kind == socket.SOCK_DGRAM else probe.bind(address)
        found = "reached " + address[0]
    except OSError:
        pass
print(found)
""",
    "files": """
import os
found = "held"
for path in ("/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/environ", "/proc/cpuinfo"):
    try:
        open(path).read(1)
        found = "read " + path
    except OSError:
        pass
for folder in ("/", "/var/tmp", "/dev/shm", os.path.dirname(os.__file__), os.path.expanduser("~")):
    if folder == os.getcwd():
        continue  # the private folder
    try:
        with open(os.path.join(folder, "forkgym-probe"), "w"):
            os.unlink(os.path.join(folder, "forkgym-probe"))
        found = "wrote below " + folder
    except OSError:
        pass
print(found)
""",
    "fork": """
import os
try:
    if os.fork() == 0:
        os._exit(0)
    print("forked")
except OSError:
    print("held")
""",
    "kill": """
import os
try:
    os.kill(-1, 0)
    print("may signal other processes")
except OSError:
    print("held")
""",
    "memory": f"""
try:
    bytearray({LIMITS.memory_bytes})
    print("took more than its limit")
except MemoryError:
    print("held")
""",
}


def run_probes(server: SandboxServer) -> dict[str, str]:
    """Find out what a server's workers hold.

    Returns:
        For each of network, files, fork, kill, memory, output and time: ``held``, or what was found instead.

    Raises:
        ServerDown: It has ended.
    """
    results = {name: run_alone(server, code)[1] for name, code in PROBES.items()}
    flooded, _ = run_alone(server, "while True: print('x' * 1000)")
    results["output"] = HELD if flooded is Outcome.OUTPUT_LIMIT else f"no end, but {flooded}"
    endless, _ = run_alone(server, "while True: pass", timeout_s=0.1)
    results["time"] = HELD if endless is Outcome.TIMEOUT else f"no end, but {endless}"
    return results


def run_alone(server: SandboxServer, code: str, *, timeout_s: float = LIMITS.timeout_s) -> tuple[Outcome, str]:
    """Run one program in a session of its own."""
    session = server.new_session()
    result = server.call(session, code, LIMITS, timeout_s=timeout_s, new=True)
    server.close_session(session)
    return result.outcome, result.output.strip() or result.detail


def describe(layers: Mapping[str, str], probes: Mapping[str, str]) -> str:
    """Say in one line which layers hold, which do not and why, and what the self-test found."""
    held = ", ".join(name for name, why in layers.items() if not why)
    absent = "; ".join(f"{name} ({why})" for name, why in layers.items() if why)
    stopped = ", ".join(name for name, found in probes.items() if found == HELD)
    open_ways = "; ".join(f"{name} ({found})" for name, found in probes.items() if found != HELD)
    parts = [f"layers: {held or 'none'}", f"missing: {absent}" if absent else "", f"stops: {stopped or 'nothing'}"]
    parts.append(f"DOES NOT STOP: {open_ways}" if open_ways else "")
    return " | ".join(["Python sandbox", *(part for part in parts if part)])
