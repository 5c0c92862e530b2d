"""Linux system calls that Python has no function for, through ctypes."""

from __future__ import annotations

import ctypes
import os
import platform

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
MACHINE = platform.machine()

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

# Calls that differ between machines, x86_64 and aarch64; those above 423 have the same number everywhere.
SETUP_CALLS = {
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}


def syscall(name: str, *arguments: object) -> int:
    """Make a system call of ``SETUP_CALLS``.

    Raises:
        OSError: The kernel refused it.
    """
    if MACHINE not in ("x86_64", "aarch64"):
        raise OSError(f"{name}: the numbers of system calls are known for x86_64 and aarch64, this is {MACHINE}")
    number = SETUP_CALLS[name][MACHINE == "aarch64"]
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(name, LIBC.syscall(ctypes.c_long(number), *converted))


def checked(what: str, result: int) -> int:
    """Return what a C function returned.

    Raises:
        OSError: It is the -1 of a failure.
    """
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int | ctypes.Structure, third: object = 0) -> int:
    """Change a property of this process."""
    second = ctypes.c_ulong(value) if isinstance(value, int) else ctypes.byref(value)
    last = ctypes.c_ulong(third) if isinstance(third, int) else third
    return checked(f"prctl({option})", LIBC.prctl(option, second, last, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    checked("unshare", LIBC.unshare(ctypes.c_int(flags)))


def setns(descriptor: int, flags: int) -> None:
    """Enter a namespace; a process-id namespace is entered by the children only."""
    checked("setns", LIBC.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system, or a folder elsewhere."""
    result = LIBC.mount(
        source.encode(),
        target.encode(),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )
    checked(f"mount {target}", result)


class MountAttributes(ctypes.Structure):
    """``struct mount_attr``."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def set_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    """Add attributes to a mount, with the mounts below it where ``recursive``."""
    record = MountAttributes(attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    syscall("mount_setattr", AT_FDCWD, c_path(path), flags, ctypes.byref(record), ctypes.sizeof(record))


def unmount(path: str) -> None:
    """Take a mount out of sight; it goes once nobody uses it."""
    checked(f"umount {path}", LIBC.umount2(path.encode(), MNT_DETACH))


class CapabilityHeader(ctypes.Structure):
    """``struct __user_cap_header_struct``."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def drop_capabilities() -> None:
    """Give up every capability; without new privileges, no program that is started gets one back."""
    header = CapabilityHeader(0x20080522, 0)  # version 3: two words for each of the three sets
    syscall("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def c_path(path: str) -> ctypes.c_char_p:
    """A path as the kernel takes it."""
    return ctypes.c_char_p(os.fsencode(path))
