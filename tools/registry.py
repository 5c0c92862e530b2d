"""Tools by name: the built-in ones, those an environment supplies, other packages' and a user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from forkgym.tools.base import Tool, as_tool
from forkgym.tools.calculator import CALCULATOR

ENTRY_POINT_GROUP = "forkgym.tools"
BUILT_IN: Mapping[str, Tool] = MappingProxyType({"calculator": CALCULATOR})
NEEDS: Mapping[str, str] = MappingProxyType({"search": "passages to search in, which this environment does not supply"})
NOTHING: Mapping[str, Tool] = MappingProxyType({})


def resolve_tool(source: str | Callable[..., Any] | Tool, provided: Mapping[str, Tool] = NOTHING) -> Tool:
    """Find a tool.

    A string is looked up in ``provided``, then among the built-in tools, then among the entry points of the group
    ``forkgym.tools``; one with a colon is ``module:attribute`` or ``path/to/file.py:Name``. The file is run once in a
    process.

    Args:
        source: A name, a reference, a typed function or class (see ``as_tool``), or a tool.
        provided: What the environment itself supplies, by name; it wins over built-in tools.

    Raises:
        ValueError: A string names nothing, or nothing that can be a tool.
        TypeError: A function or class cannot be a tool.
    """
    if not isinstance(source, str):
        return as_tool(source)
    if source in provided:
        return provided[source]
    if source in BUILT_IN:
        return BUILT_IN[source]
    if source in NEEDS:
        raise ValueError(f"tool {source!r} needs {NEEDS[source]}")
    found = load_reference(source, provided)
    try:
        return as_tool(found)
    except TypeError as error:
        raise ValueError(f"tool {source!r}: {error}") from error


def load_reference(source: str, provided: Mapping[str, Tool]) -> Any:
    """Load what an entry point's name, a ``module:attribute`` or a ``file.py:Name`` refers to."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if source in points:
        return load_entry_point(points[source])
    place, colon, attribute = source.rpartition(":")
    if not (place and colon and attribute):
        names = ", ".join(sorted({*provided, *BUILT_IN, *points}))
        raise ValueError(f"unknown tool {source!r}; expected {names}, 'module:attribute' or 'path/to/file.py:Name'")
    module = load_file(source, Path(place)) if place.endswith(".py") else load_module(source, place)
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ValueError(f"tool {source!r}: {place} has no attribute {attribute!r}")
        found = getattr(found, name)
    return found


def load_entry_point(point: EntryPoint) -> Any:
    """Load an entry point."""
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"tool {point.name!r}: its entry point {point.value!r} cannot be loaded: {error}") from error


def load_module(source: str, name: str) -> ModuleType:
    """Import a module; an error inside it is the author's to see, and propagates."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"tool {source!r}: {name!r} is no module name and does not end in .py")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"tool {source!r}: there is no module {error.name!r}") from error


def load_file(source: str, path: Path) -> ModuleType:
    """Run a file of Python code; an error inside it is the author's to see, and propagates."""
    if not path.is_file():
        raise ValueError(f"tool {source!r}: there is no file {str(path)!r}")
    return run_file(path.resolve())


@cache
def run_file(path: Path) -> ModuleType:
    """Run a file as a module, once: its classes are the same objects however often it is named."""
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
