"""Files and folders that are there whole or not at all, whatever stops the process or the machine.

What is being written stands beside its place under a name that ends in ``.partial``, is pushed to the disk, and takes
its place in one rename.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Return where ``path`` stands while it is unfinished: in the same folder, as a rename crosses no file system."""
    return path.with_name(path.name + PARTIAL)


def sync(path: Path) -> None:
    """Push a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Push a folder to the disk with everything in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and its parents, where there is none; the new names are on the disk afterwards."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file; a reader finds the old text or the new one, never a part."""
    partial = partial_path(path)
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def discard_folder(folder: Path) -> None:
    """Remove a folder; half removed, it no longer has the name of a whole one."""
    doomed = partial_path(folder)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)
