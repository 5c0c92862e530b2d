"""A root folder with nothing in it but what untrusted code may read."""

from __future__ import annotations

import os
from collections.abc import Sequence

from forkgym.tools.sandbox import linux
from forkgym.tools.sandbox.layers import DEVICES, private_folder

BASE = "/tmp"  # exists everywhere; what is in it stays reachable below OUTSIDE until that is unmounted
OUTSIDE = "/outside"
READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


def enter(paths: Sequence[str]) -> None:
    """Exchange the root of this mount namespace for an empty folder in memory with ``paths`` in it, all read-only.

    Every path is at its old place and, whatever the modes of the folders above it were, can be reached by everybody:
    a root's interpreter below ``/root`` too. There is no ``/proc`` in it. The private folder is empty.

    Args:
        paths: Files and folders of the old root; links among them stay links.

    Raises:
        OSError: This process may not mount, and nothing has changed.
        RuntimeError: It went wrong halfway, and there is no way back.
    """
    linux.set_attributes("/", 0, recursive=False)  # a kernel that does not know the call has to say so before the rest
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", BASE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    os.mkdir(BASE + OUTSIDE)
    linux.syscall("pivot_root", linux.c_path(BASE), linux.c_path(BASE + OUTSIDE))
    os.chdir("/")
    try:
        os.makedirs(private_folder(paths))
        for path in sorted([*paths, *DEVICES]):
            place(path)
        linux.unmount(OUTSIDE)
        os.rmdir(OUTSIDE)
        linux.set_attributes("/", READ_ONLY, recursive=False)
    except OSError as error:
        raise RuntimeError(f"cannot build the root folder of the sandbox: {error}") from error


def place(path: str) -> None:
    """Put a file, folder or link of the old root at its place."""
    outside = OUTSIDE + path
    if os.path.lexists(path):
        return  # below something that is there already
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(outside):
        os.symlink(os.readlink(outside), path)
        return
    if os.path.isdir(outside):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    linux.mount(outside, path, None, linux.MS_BIND | linux.MS_REC)
    if path not in DEVICES:
        linux.set_attributes(path, READ_ONLY, recursive=True)
