"""seccomp: the system calls that untrusted Python may make; every other one fails with "operation not permitted".

The list is what Python, numpy and sympy need to compute, and to use files in a private folder. What is left out is
the point: no new process (``clone`` makes threads only), no program started, no socket, no pipe, no signal to anybody,
no memory of others, no memory that limits do not count (``memfd_create``, System V), no mount or namespace, no
``ioctl``, and nothing that changes a file's owner, mode or times, which Landlock does not cover.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from functools import cache
from typing import NamedTuple

from forkgym.tools.sandbox.linux import MACHINE, PR_SET_SECCOMP, prctl

SECCOMP_MODE_FILTER = 2
KILL_PROCESS, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
X32_BIT = 0x40000000  # marks a second table of the same calls on x86_64
CLONE_THREAD = 0x00010000
NAMESPACE_FLAGS = 0x7E020080  # every CLONE_NEW*: a thread cannot have most of them, but the filter does not rely on it
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # duplicate, flags, locks: no signals, leases or sizes of pipes

LEAF_CALLS = 3  # compared one by one at the leaves of the search

# Offsets in ``struct seccomp_data``; the machines are little-endian.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class Numbers(NamedTuple):
    """A call's number on each machine; None where it does not exist."""

    x86_64: int | None
    aarch64: int | None


AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOWED: dict[str, Numbers] = {
    # Memory.
    "brk": Numbers(12, 214),
    "madvise": Numbers(28, 233),
    "mmap": Numbers(9, 222),
    "mprotect": Numbers(10, 226),
    "mremap": Numbers(25, 216),
    "munmap": Numbers(11, 215),
    # Open files.
    "close": Numbers(3, 57),
    "close_range": Numbers(436, 436),
    "dup": Numbers(32, 23),
    "dup2": Numbers(33, None),
    "dup3": Numbers(292, 24),
    "fdatasync": Numbers(75, 83),
    "flock": Numbers(73, 32),
    "fstat": Numbers(5, 80),
    "fstatfs": Numbers(138, 44),
    "fsync": Numbers(74, 82),
    "ftruncate": Numbers(77, 46),
    "getdents64": Numbers(217, 61),
    "lseek": Numbers(8, 62),
    "poll": Numbers(7, None),
    "ppoll": Numbers(271, 73),
    "pread64": Numbers(17, 67),
    "pselect6": Numbers(270, 72),
    "pwrite64": Numbers(18, 68),
    "read": Numbers(0, 63),
    "readv": Numbers(19, 65),
    "select": Numbers(23, None),
    "write": Numbers(1, 64),
    "writev": Numbers(20, 66),
    # Files by name.
    "access": Numbers(21, None),
    "chdir": Numbers(80, 49),
    "faccessat": Numbers(269, 48),
    "faccessat2": Numbers(439, 439),
    "fchdir": Numbers(81, 50),
    "getcwd": Numbers(79, 17),
    "lstat": Numbers(6, None),
    "mkdir": Numbers(83, None),
    "mkdirat": Numbers(258, 34),
    "newfstatat": Numbers(262, 79),
    "open": Numbers(2, None),
    "openat": Numbers(257, 56),
    "readlink": Numbers(89, None),
    "readlinkat": Numbers(267, 78),
    "rename": Numbers(82, None),
    "renameat": Numbers(264, 38),
    "renameat2": Numbers(316, 276),
    "rmdir": Numbers(84, None),
    "stat": Numbers(4, None),
    "statfs": Numbers(137, 43),
    "statx": Numbers(332, 291),
    "umask": Numbers(95, 166),
    "unlink": Numbers(87, None),
    "unlinkat": Numbers(263, 35),
    # Threads and signals of this process.
    "exit": Numbers(60, 93),
    "exit_group": Numbers(231, 94),
    "futex": Numbers(202, 98),
    "gettid": Numbers(186, 178),
    "membarrier": Numbers(324, 283),
    "pause": Numbers(34, None),
    "restart_syscall": Numbers(219, 128),
    "rseq": Numbers(334, 293),
    "rt_sigaction": Numbers(13, 134),
    "rt_sigpending": Numbers(127, 136),
    "rt_sigprocmask": Numbers(14, 135),
    "rt_sigreturn": Numbers(15, 139),
    "rt_sigsuspend": Numbers(130, 133),
    "rt_sigtimedwait": Numbers(128, 137),
    "sched_getaffinity": Numbers(204, 123),
    "sched_yield": Numbers(24, 124),
    "set_robust_list": Numbers(273, 99),
    "set_tid_address": Numbers(218, 96),
    "sigaltstack": Numbers(131, 132),
    # Time.
    "alarm": Numbers(37, None),
    "clock_getres": Numbers(229, 114),
    "clock_gettime": Numbers(228, 113),
    "clock_nanosleep": Numbers(230, 115),
    "getitimer": Numbers(36, 102),
    "gettimeofday": Numbers(96, 169),
    "nanosleep": Numbers(35, 101),
    "setitimer": Numbers(38, 103),
    "time": Numbers(201, None),
    "times": Numbers(100, 153),
    # Who and where it is.
    "getcpu": Numbers(309, 168),
    "getegid": Numbers(108, 177),
    "geteuid": Numbers(107, 175),
    "getgid": Numbers(104, 176),
    "getgroups": Numbers(115, 158),
    "getpgid": Numbers(121, 155),
    "getpgrp": Numbers(111, None),
    "getpid": Numbers(39, 172),
    "getppid": Numbers(110, 173),
    "getrandom": Numbers(318, 278),
    "getrlimit": Numbers(97, 163),
    "getrusage": Numbers(98, 165),
    "getsid": Numbers(124, 156),
    "getuid": Numbers(102, 174),
    "sysinfo": Numbers(99, 179),
    "uname": Numbers(63, 160),
}

# Calls that are allowed with some arguments only, or whose callers try something else after a certain error.
CLONE, CLONE3 = Numbers(56, 220), Numbers(435, 435)
FCNTL, IOCTL, PRLIMIT64 = Numbers(72, 25), Numbers(16, 29), Numbers(302, 261)


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One ``struct sock_filter``; the jumps say how many instructions are skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def load(offset: int) -> bytes:
    """Load a word of the call's data."""
    return instruction(LOAD, offset)


def argument(place: int) -> tuple[int, int]:
    """Offsets of an argument's low and high word."""
    return ARGUMENTS + 8 * place, ARGUMENTS + 8 * place + 4


def verdict(value: int) -> bytes:
    """End with a verdict."""
    return instruction(RETURN, value)


def when(number: int, body: list[bytes]) -> list[bytes]:
    """Instructions for one call; ``body`` ends with a verdict."""
    return [instruction(JUMP_EQUAL, number, 0, len(body)), *body]


def zero_argument(place: int, rest: list[bytes]) -> list[bytes]:
    """Refuse the call unless an argument is zero, then go on with ``rest``."""
    refused = verdict(ERRNO | errno.EPERM)
    low, high = argument(place)
    checks = [
        load(low),
        instruction(JUMP_EQUAL, 0, 1, 0),
        refused,
        load(high),
        instruction(JUMP_EQUAL, 0, 1, 0),
        refused,
    ]
    return [*checks, *rest]


@cache
def build(machine: str) -> bytes:
    """Assemble the filter for a machine, ``x86_64`` or ``aarch64``; once, since every worker needs it.

    Raises:
        OSError: The numbers of the machine's calls are not known.
    """
    if machine not in AUDIT_ARCHITECTURES:
        raise OSError(f"no list of system calls for {machine}, only for {', '.join(AUDIT_ARCHITECTURES)}")
    place = list(AUDIT_ARCHITECTURES).index(machine)
    allowed, refused = verdict(ALLOW), verdict(ERRNO | errno.EPERM)
    # A call by the table of another machine (int 0x80) means something else under the same number.
    program = [
        load(ARCHITECTURE),
        instruction(JUMP_EQUAL, AUDIT_ARCHITECTURES[machine], 1, 0),
        verdict(KILL_PROCESS),
        load(NUMBER),
        instruction(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        verdict(ERRNO | errno.ENOSYS),
    ]
    calls = {number: [allowed] for numbers in ALLOWED.values() if (number := numbers[place]) is not None}
    # glibc tries clone3 first, whose arguments are in memory where no filter sees them, and clone after "no such call".
    calls[needed(CLONE3, place)] = [verdict(ERRNO | errno.ENOSYS)]
    # Python takes "not a terminal" for an answer wherever it asks.
    calls[needed(IOCTL, place)] = [verdict(ERRNO | errno.ENOTTY)]
    flags, _ = argument(0)
    calls[needed(CLONE, place)] = [
        load(flags),
        instruction(JUMP_ANY_BIT, NAMESPACE_FLAGS, 0, 1),
        refused,
        instruction(JUMP_ANY_BIT, CLONE_THREAD, 1, 0),
        refused,
        allowed,
    ]
    # Reading its own limits, as ``resource.getrlimit`` does: this process, and no new limit.
    calls[needed(PRLIMIT64, place)] = zero_argument(0, zero_argument(2, [allowed]))
    command, _ = argument(1)
    commands = [step for value in FCNTL_COMMANDS for step in when(value, [allowed])]
    calls[needed(FCNTL, place)] = [load(command), *commands, refused]
    return b"".join([*program, *search_tree(sorted(calls.items()))])


def needed(numbers: Numbers, place: int) -> int:
    """The number of a call that every machine has."""
    number = numbers[place]
    assert number is not None, "every machine has this call"
    return number


def search_tree(calls: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Find a call's instructions by halving the list.

    The kernel runs the filter once for each call that exists when it is installed, to remember the plain verdicts; in a
    list of ninety comparisons that takes a millisecond.
    """
    if len(calls) <= LEAF_CALLS:
        return [*(step for number, body in calls for step in when(number, body)), verdict(ERRNO | errno.EPERM)]
    middle = len(calls) // 2
    low, high = search_tree(calls[:middle]), search_tree(calls[middle:])
    return [instruction(JUMP_GREATER_EQUAL, calls[middle][0], len(low), 0), *low, *high]


def install() -> None:
    """Filter the calls of this process from now on; it needs "no new privileges".

    Raises:
        OSError: The kernel has no seccomp, or the machine's calls are not known.
    """
    code = build(MACHINE)
    buffer = ctypes.create_string_buffer(code, len(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(code) // 8, ctypes.addressof(buffer))))
