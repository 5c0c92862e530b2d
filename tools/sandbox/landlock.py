"""Landlock: which folders this process may read, and where it may write, for good.

https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from forkgym.tools.sandbox.linux import syscall

CREATE_RULESET_VERSION, RULE_PATH_BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, REFER, TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
READ_WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE
FILE_RIGHTS = READ_FILE | WRITE_FILE | TRUNCATE  # the only ones that a rule about a file, not a folder, may have

# How many rights on files each version of the interface knows, beginning with version 1.
FILE_RIGHT_BITS = (13, 14, 15, 15, 16)
TCP_RIGHTS = 3  # bind and connect, from version 4
SCOPES = 3  # abstract sockets and signals stay inside, from version 6


class Ruleset(ctypes.Structure):
    """``struct landlock_ruleset_attr``."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


class PathBeneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr``."""

    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def version() -> int:
    """The version of the kernel's interface, 0 where there is none."""
    try:
        return syscall("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> None:
    """Forbid every access to files but below some folders, TCP, and signals and abstract sockets to the outside.

    Nothing may be executed anywhere. A path that does not exist grants nothing. The process needs "no new privileges".

    Args:
        readable: Files and folders to read.
        writable: Folders in which files and folders may be made, changed and removed.
        devices: Files to read and write.

    Raises:
        OSError: The kernel refused a rule.
    """
    known = version()
    if known == 0:
        raise OSError("this kernel has no Landlock")
    handled = (1 << FILE_RIGHT_BITS[min(known, len(FILE_RIGHT_BITS)) - 1]) - 1
    rules = Ruleset(handled, TCP_RIGHTS if known >= 4 else 0, SCOPES if known >= 6 else 0)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    ruleset = syscall("landlock_create_ruleset", ctypes.byref(rules), size, 0)
    try:
        for paths, rights in ((readable, READ), (writable, READ_WRITE), (devices, DEVICE)):
            for path in paths:
                allow(ruleset, path, rights & handled)
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add one rule."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return  # what this process cannot reach needs no rule
    try:
        if not os.path.isdir(path):
            rights &= FILE_RIGHTS
        rule = PathBeneath(rights, descriptor)
        syscall("landlock_add_rule", ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
