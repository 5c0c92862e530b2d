"""A clock and a source of randomness that give the same values each time a program is run.

A session is copied by running its calls again (see ``forkgym.tools.python``), so what a program can observe has to be
a function of the program. `make_deterministic` replaces what Python code reads; hashes are fixed by PYTHONHASHSEED.
What C code reads for itself (``numpy.datetime64("now")``), addresses, and the order of threads stay as they are.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import hashlib
import os
import random
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

BEGINNING_NS = 1_735_732_800 * 10**9  # 2025-01-01 12:00 UTC, when every session begins
TICK_NS = 1_000  # by which each reading moves the clock, about the time that a reading takes
SEED = b"forkgym"

REAL_SLEEP = time.sleep


class Clock:
    """Time as a program sees it: it moves when it is read, and by what was slept."""

    def __init__(self) -> None:
        self.elapsed_ns = 0

    def read_ns(self) -> int:
        """Nanoseconds since the session began."""
        self.elapsed_ns += TICK_NS
        return self.elapsed_ns

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return BEGINNING_NS + self.read_ns()

    def sleep(self, seconds: float) -> None:
        """Sleep for real, so that the limit of the call counts it, and move the clock."""
        REAL_SLEEP(seconds)
        self.elapsed_ns += int(seconds * 1e9)


CLOCK = Clock()


def now(cls: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
    """As ``datetime.datetime.now``."""
    return cls.fromtimestamp(CLOCK.now_ns() / 1e9, tz)


def utcnow(cls: type[datetime.datetime]) -> datetime.datetime:
    """As ``datetime.datetime.utcnow``."""
    return now(cls, datetime.UTC).replace(tzinfo=None)


class Randomness:
    """An endless stream of bytes, the same in every session."""

    def __init__(self) -> None:
        self.blocks = 0

    def read(self, size: int, flags: int = 0, /) -> bytes:
        """Return the next bytes, as ``os.urandom`` and ``os.getrandom`` do."""
        del flags
        if size < 0:
            raise ValueError("negative argument not allowed")
        data = bytearray()
        while len(data) < size:
            self.blocks += 1
            data += hashlib.sha512(SEED + self.blocks.to_bytes(8, "big")).digest()
        return bytes(data[:size])


RANDOMNESS = Randomness()


def make_deterministic() -> None:
    """Replace the clocks and the sources of randomness of this process and of its forks."""
    replace_clocks()
    replace_randomness()


def seed_generators() -> None:
    """Seed the generators behind the functions of ``random`` and ``numpy.random``.

    For each fork: Python gives the first of them a seed of the system's in every new process.
    """
    random.seed()
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(RANDOMNESS.read(4), "big"))


def replace_clocks() -> None:
    """Replace every function of ``time`` and ``datetime`` that reads a clock."""
    module: Any = time
    real_asctime, real_strftime = time.asctime, time.strftime

    def clock_gettime(clock: int) -> float:
        seconds: float = module.time() if clock == time.CLOCK_REALTIME else module.monotonic()
        return seconds

    def clock_gettime_ns(clock: int) -> int:
        return CLOCK.now_ns() if clock == time.CLOCK_REALTIME else CLOCK.read_ns()

    def asctime(moment: time.struct_time | None = None) -> str:
        return real_asctime(time.localtime() if moment is None else moment)

    def strftime(pattern: str, moment: time.struct_time | None = None) -> str:
        return real_strftime(pattern, time.localtime() if moment is None else moment)

    for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
        setattr(module, name, lambda: CLOCK.read_ns() / 1e9)
        setattr(module, f"{name}_ns", CLOCK.read_ns)
    module.time = lambda: CLOCK.now_ns() / 1e9
    module.time_ns = CLOCK.now_ns
    module.clock_gettime, module.clock_gettime_ns = clock_gettime, clock_gettime_ns
    module.sleep = CLOCK.sleep
    for name in ("gmtime", "localtime", "ctime"):
        setattr(module, name, with_now(getattr(time, name)))
    module.asctime, module.strftime = asctime, strftime
    # A subclass with other methods would print, compare and pickle otherwise, so the type itself is changed. Python
    # hides the dictionary of a type of C; the collector of garbage knows it. ``today`` asks ``time.time`` already.
    tables: list[Any] = [value for value in gc.get_referents(datetime.datetime.__dict__) if isinstance(value, dict)]
    methods: Any = tables[0]
    methods["now"], methods["utcnow"] = classmethod(now), classmethod(utcnow)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))


def with_now(function: Callable[[float], Any]) -> Callable[..., Any]:
    """Make a function of a moment take the session's time where it is given none."""

    def of_moment(seconds: float | None = None) -> Any:
        return function(CLOCK.now_ns() // 10**9 if seconds is None else seconds)

    return of_moment


def replace_randomness() -> None:
    """Replace what reads randomness from the system."""
    system: Any = os
    system.urandom = system.getrandom = RANDOMNESS.read
    generators: Any = random
    generators._urandom = RANDOMNESS.read  # SystemRandom, and with it secrets and numpy's seeds
    real_seed = random.Random.seed

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        """As ``random.Random.seed``, which asks the system by itself where it is given nothing."""
        real_seed(self, int.from_bytes(RANDOMNESS.read(32), "big") if a is None else a, version)

    generators.Random.seed = seed
    generators.seed = getattr(random, "_inst").seed  # noqa: B009 - the generator behind the functions of the module
    unique: Any = uuid
    unique._generate_time_safe = unique._UuidCreate = None  # of C libraries, from the clock and the network card
    unique._node = 0x0242AC110002
