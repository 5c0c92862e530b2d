"""What a session of untrusted code may use, and how a call can end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIB = 2**20


class Outcome(StrEnum):
    """Every way a call can end."""

    OK = "ok"
    ERROR = "error"  # an exception, or the code ended its own process
    TIMEOUT = "timeout"  # of the call's wall-clock time, or of the session's CPU time
    MEMORY = "memory"  # ended by the kernel for want of memory; a MemoryError in Python is an ordinary error
    OUTPUT_LIMIT = "output_limit"
    CRASH = "crash"  # ended by a signal, or the code closed the descriptors it was given
    UNREPEATABLE = "unrepeatable"  # not run: the session's history, run again, gave other output than the first time
    LOST = "lost"  # not run: the worker was gone already, its history has to be run again
    INFRASTRUCTURE = "infrastructure"  # not run: no worker could be started, which is never the code's fault


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Limits of one session.

    Attributes:
        timeout_s: Wall-clock time of one call, seconds.
        cpu_s: CPU time of the whole session, all threads together, whole seconds.
        memory_bytes: Address space beyond what a fresh worker with its libraries has.
        output_bytes: What one call may write; the session ends with the first byte beyond.
        file_bytes: Size of the private folder ``/tmp``, which is in memory.
        open_files: Descriptors open at once.
        threads: Threads at once.
    """

    timeout_s: float = 5.0
    cpu_s: int = 120
    memory_bytes: int = 512 * MIB
    output_bytes: int = 65_536
    file_bytes: int = 16 * MIB
    open_files: int = 64
    threads: int = 32

    def __post_init__(self) -> None:
        """Check that every limit is positive."""
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a positive number")


@dataclass(frozen=True, slots=True)
class CallResult:
    """What came of one call.

    Attributes:
        outcome: How it ended.
        output: Everything that it wrote, decoded with replacement characters.
        detail: Why the worker is gone, and every variable with it; empty where the session goes on.
    """

    outcome: Outcome
    output: str = ""
    detail: str = ""
