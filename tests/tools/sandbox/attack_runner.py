"""Runs hostile programs in the Python tool, inside the containment that ``test_python_attacks.py`` makes around it.

It refuses to run anywhere else: some of the programs would end every process of the machine. Cases come as JSON on
standard input, results go as JSON to standard output.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import secrets
import socket
import struct
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from forkgym.tools.python import shown
from forkgym.tools.sandbox.limits import SandboxLimits
from forkgym.tools.sandbox.linux import drop_capabilities
from forkgym.tools.sandbox.sessions import SERVERS, SandboxSession, ServerSettings

SHORT, LONG = SandboxLimits(timeout_s=2.0), SandboxLimits(timeout_s=20.0)
MAX_PROCESSES = 1 + 3 + 2 + 2  # this one; server, forker and its parent; spares; workers that are about to be reaped
ORPHANS_GONE_S = 10.0
PARALLEL = 3


def check_containment() -> None:
    """Refuse to go on unless nothing of the machine can be reached from here."""
    others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    limited = resource.getrlimit(resource.RLIMIT_NPROC)[1] != resource.RLIM_INFINITY
    limited = limited and resource.getrlimit(resource.RLIMIT_AS)[1] != resource.RLIM_INFINITY
    interfaces = {name for _, name in socket.if_nameindex()}
    if os.getpid() != 1 or os.getuid() == 0 or others or not limited or not interfaces <= {"lo"}:
        sys.exit(
            f"no containment: pid {os.getpid()}, user {os.getuid()}, other processes {others}, "
            f"limits {limited}, interfaces {interfaces}"
        )


def bring_loopback_up() -> None:
    """Switch the loopback interface on, for which there is a capability left, then give that up."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, get_flags, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack("16xh14x", request)
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", flags | up))
    clear_ambient = 4
    ctypes.CDLL(None).prctl(47, clear_ambient, 0, 0, 0)
    drop_capabilities()


def serve_canary(listener: socket.socket, canary: bytes) -> None:
    """Give the canary to whoever connects."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(canary)


class Runner:
    """Fills in the cases, runs them and collects what happened."""

    def __init__(self) -> None:
        nonce = secrets.token_hex(8)
        canary = f"canary-{secrets.token_hex(8)}"
        self.gold = f"gold-{secrets.token_hex(8)}"  # in this process, which stands for the one that trains
        folder = Path(tempfile.mkdtemp())
        file = folder / "gold.jsonl"
        file.write_text(canary)
        tcp = socket.create_server(("127.0.0.1", 0))
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0canary_{nonce}")
        abstract.listen()
        for listener in (tcp, abstract):
            threading.Thread(target=serve_canary, args=(listener, canary.encode()), daemon=True).start()
        os.environ["SECRET"] = f"env-{nonce}"
        self.fillings = {
            "{{CANARY}}": canary,
            "{{CANARY_FILE}}": str(file),
            "{{ENV_CANARY}}": f"env-{nonce}",
            "{{GOLD_CANARY}}": self.gold,
            "{{NONCE}}": nonce,
            "{{PORT}}": str(tcp.getsockname()[1]),
        }

    def fill(self, value: Any) -> Any:
        """Put the values into a case."""
        if isinstance(value, str):
            for mark, filling in self.fillings.items():
                value = value.replace(mark, filling)
            return value
        if isinstance(value, list):
            return [self.fill(item) for item in cast("list[object]", value)]
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in cast("dict[str, object]", value).items()}
        return value

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """Run one case in a session of its own, and once more a harmless call in the same session."""
        filled = self.fill(case)
        limits = SHORT if "timeout" in filled["expect"]["outcome"] else LONG
        session = SandboxSession(ServerSettings(), limits)
        begin = time.monotonic()
        result = session.call(filled["input"])
        wall_s = time.monotonic() - begin
        after = session.call("6 * 7")
        session.close()

        return {
            "id": case["id"],
            "expect": filled["expect"],
            "outcome": result.outcome,
            "stdout": result.output,
            "detail": result.detail,
            "wall_s": wall_s,
            "timeout_s": limits.timeout_s,
            "shown": shown(result),
            "next": [after.outcome, after.output],
            "files": [path for path in [filled["expect"].get("no_file")] if path and os.path.exists(path)],
        }


def processes_left() -> int:
    """How many processes there are once those that are ending have ended."""
    deadline = time.monotonic() + ORPHANS_GONE_S
    while True:
        count = sum(name.isdigit() for name in os.listdir("/proc"))
        if count <= MAX_PROCESSES or time.monotonic() > deadline:
            return count
        time.sleep(0.05)


def main() -> None:
    """Run all cases."""
    check_containment()
    bring_loopback_up()
    cases = json.loads(sys.stdin.read())
    runner = Runner()
    SERVERS.get(ServerSettings())
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(PARALLEL) as pool:
        results = list(pool.map(runner.run, cases))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    report = {
        "results": results,
        "grown_mib": grown_mib,
        "processes": processes_left(),
        "max_processes": MAX_PROCESSES,
        "layers": SERVERS.get(ServerSettings()).layers,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
