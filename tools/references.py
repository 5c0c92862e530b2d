"""Objects of a user's own, by a text that says where they are: ``module:attribute`` or ``path/to/file.py:Name``.

Tools, environments and grammars are named in this way on the command line of every script. A relative path starts at
the working directory. A reference runs the code that it names, with all rights of this process: it comes from whoever
starts the process, never from a policy.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

FORMS = "'module:attribute' or 'path/to/file.py:Name'"


def is_reference(source: str) -> bool:
    """Whether a text has the form of a reference; what it names need not exist."""
    place, _, attribute = source.rpartition(":")
    return bool(place and attribute)


def load_reference(source: str, kind: str) -> Any:
    """Load what a ``module:attribute`` or a ``path/to/file.py:Name`` refers to.

    The attribute may be dotted, such as ``Class.method``.

    Args:
        source: The reference.
        kind: What it should be, for messages: "tool", "environment", "grammar".

    Raises:
        ValueError: It is no reference, or there is no such file, module or attribute.
    """
    found: Any = load_place(source, kind)
    place, _, attribute = source.rpartition(":")
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{kind} {source!r}: {place} has no attribute {attribute!r}")
        found = getattr(found, name)
    return found


def load_place(source: str, kind: str) -> ModuleType:
    """Load the module or the file of a reference.

    A file is run once in a process, so that its classes are the same objects however often it is named; it cannot
    import the files beside it. An error inside a module or file is its author's to see, and propagates.

    Args:
        source: The reference.
        kind: As for `load_reference`.

    Raises:
        ValueError: It is no reference, or there is no such file or module.
    """
    if not is_reference(source):
        raise ValueError(f"unknown {kind} {source!r}; expected {FORMS}")
    place = source.rpartition(":")[0]
    try:
        return load_file(Path(place)) if place.endswith(".py") else load_module(place)
    except NothingThere as error:
        raise ValueError(f"{kind} {source!r}: {error}") from error


def load_entry_point(point: EntryPoint, kind: str) -> Any:
    """Load what an installed package names in its metadata; ``kind`` is as for `load_reference`.

    Raises:
        ValueError: The module or the attribute is not there.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind} {point.name!r}: its entry point {point.value!r} cannot be loaded: {error}") from error


class NothingThere(Exception):
    """There is no such module or file. No ValueError: the code that is run may raise that itself."""


def load_module(name: str) -> ModuleType:
    """Import a module; NothingThere where there is none."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise NothingThere(f"{name!r} is no module name and does not end in .py")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise NothingThere(f"there is no module {error.name!r}") from error


def load_file(path: Path) -> ModuleType:
    """Run a file of Python code as a module; NothingThere where there is none."""
    if not path.is_file():
        raise NothingThere(f"there is no file {str(path)!r} (seen from {Path.cwd()})")
    return run_file(path.resolve())


@cache
def run_file(path: Path) -> ModuleType:
    """Run a file as a module, once."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
