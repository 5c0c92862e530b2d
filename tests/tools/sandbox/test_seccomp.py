"""The filter of system calls, run here by an interpreter of its instructions, on both machines that it knows."""

import errno
import struct

import pytest

from forkgym.tools.sandbox import seccomp

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED, UNKNOWN, NO_TERMINAL = (0x00050000 | code for code in (errno.EPERM, errno.ENOSYS, errno.ENOTTY))
THREAD_FLAGS = 0x3D0F00  # what glibc starts a thread with: memory, files, signals and more are shared
FORK_FLAGS = 0x01200011


def verdict(machine: str, architecture: int, number: int, *arguments: int) -> int:
    """Interpret the filter for one call, as the kernel does."""
    words = [number, architecture, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFFFFFF, argument >> 32]
    program = list(struct.iter_unpack("=HBBI", seccomp.build(machine)))
    place = accumulator = 0
    while True:
        code, if_true, if_false, value = program[place]
        place += 1
        if code == 0x20:  # load a word
            accumulator = words[value // 4]
        elif code == 0x06:  # return
            return int(value)
        else:
            jumps = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            place += if_true if jumps[code] else if_false


def x86(number: int, *arguments: int) -> int:
    return verdict("x86_64", X86, number, *arguments)


def test_every_call_of_the_list_is_allowed_and_no_other_without_conditions() -> None:
    for place, (machine, architecture) in enumerate((("x86_64", X86), ("aarch64", ARM))):
        listed = {number for numbers in seccomp.ALLOWED.values() if (number := numbers[place]) is not None}
        special = (seccomp.CLONE3, seccomp.FCNTL, seccomp.IOCTL, seccomp.PRLIMIT64)
        conditional = {numbers[place] for numbers in special}
        for number in range(600):
            expected = ALLOW if number in listed else REFUSED
            if number not in conditional:
                assert verdict(machine, architecture, number) == expected, (machine, number)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (41, "socket"),
        (53, "socketpair"),
        (57, "fork"),
        (58, "vfork"),
        (59, "execve"),
        (62, "kill"),
        (101, "ptrace"),
        (157, "prctl"),
        (160, "setrlimit"),
        (165, "mount"),
        (234, "tgkill"),
        (272, "unshare"),
        (293, "pipe2"),
        (310, "process_vm_readv"),
        (317, "seccomp"),
        (319, "memfd_create"),
        (321, "bpf"),
        (322, "execveat"),
        (425, "io_uring_setup"),
        (434, "pidfd_open"),
    ],
)
def test_calls_that_lead_out_are_refused(number: int, name: str) -> None:
    assert x86(number) == REFUSED, name


def test_clone_makes_threads_only() -> None:
    assert x86(56, THREAD_FLAGS) == ALLOW
    assert x86(56, FORK_FLAGS) == REFUSED
    assert x86(56, THREAD_FLAGS | 0x10000000) == REFUSED  # with a user namespace
    assert x86(56, 0x20000000) == REFUSED  # a process-id namespace alone
    assert x86(435) == UNKNOWN  # clone3, so that glibc takes clone
    assert verdict("aarch64", ARM, 220, THREAD_FLAGS) == ALLOW
    assert verdict("aarch64", ARM, 220, FORK_FLAGS) == REFUSED


def test_limits_can_be_read_and_not_set() -> None:
    assert x86(302, 0, 9, 0, 0x7FFF00001000) == ALLOW
    assert x86(302, 0, 9, 0x7FFF00001000, 0) == REFUSED
    assert x86(302, 0, 9, 1 << 32, 0) == REFUSED  # an address whose low word is zero
    assert x86(302, 1, 9, 0, 0x7FFF00001000) == REFUSED  # another process
    assert x86(302, 1 << 32, 9, 0, 0x7FFF00001000) == REFUSED


def test_descriptors_can_be_copied_and_not_made_to_signal() -> None:
    assert x86(72, 3, 1030) == ALLOW  # F_DUPFD_CLOEXEC
    assert x86(72, 3, 8) == REFUSED  # F_SETOWN
    assert x86(72, 3, 1031) == REFUSED  # F_SETPIPE_SZ
    assert x86(16, 0, 0x5412) == NO_TERMINAL  # TIOCSTI


def test_other_tables_of_calls_are_shut() -> None:
    assert verdict("x86_64", 0x40000003, 1) == KILL  # int 0x80: exit is 1 there, write here
    assert verdict("aarch64", 0x40000028, 1) == KILL
    assert x86(0x40000000 + 39) == UNKNOWN  # getpid of the x32 table


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="no list of system calls for riscv64"):
        seccomp.build("riscv64")
