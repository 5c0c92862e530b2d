"""Tools by name: the built-in ones, other packages' and a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from forkgym.tools.base import Tool, as_tool
from forkgym.tools.references import FORMS, is_reference, load_entry_point, load_reference

ENTRY_POINT_GROUP = "forkgym.tools"
MCP_PREFIXES = ("mcp:", "mcp-episode:")  # one server for all episodes, or one for each: see `forkgym.tools.mcp`
NEEDS: Mapping[str, str] = MappingProxyType({"search": "passages to search in, which this environment does not supply"})


def calculator() -> Tool:
    """Exact arithmetic."""
    from forkgym.tools.calculator import CALCULATOR

    return CALCULATOR


def python() -> Tool:
    """Code, in a sandbox."""
    from forkgym.tools.python import PYTHON

    return PYTHON


def visit() -> Tool:
    """The readable text of a web page."""
    from forkgym.tools.visit import visit_tool

    return visit_tool()


# What makes each: some bring libraries that take a while to import.
BUILT_IN: Mapping[str, Callable[[], Tool]] = MappingProxyType(
    {"calculator": calculator, "python": python, "visit": visit}
)


def resolve_tools(source: str | Callable[..., Any] | Tool) -> tuple[Tool, ...]:
    """Find the tools that a source stands for: one, but for a server's or a list of them.

    A string is looked up among the built-in tools, then among the entry points of the group ``forkgym.tools``; one that
    starts with ``mcp:`` or ``mcp-episode:`` names a server (see `forkgym.tools.mcp`), and another one with a colon is a
    reference (see `forkgym.tools.references`).

    Args:
        source: A name, a reference, a typed function or class (see ``as_tool``), or a tool. What a reference or an
            entry point leads to may also be a list or a tuple of these, but for the names.

    Raises:
        ValueError: A string names nothing, or nothing that can be a tool.
        TypeError: A function or class cannot be a tool.
    """
    if not isinstance(source, str):
        return (as_tool(source),)
    if source in BUILT_IN:
        return (BUILT_IN[source](),)
    if source in NEEDS:
        raise ValueError(f"tool {source!r} needs {NEEDS[source]}")
    if source.startswith(MCP_PREFIXES):
        from forkgym.tools.mcp import tools_from_reference

        return tools_from_reference(source)
    found = load_tool(source)
    several: Sequence[Any] = found if type(found) in (list, tuple) else (found,)
    if not several:
        raise ValueError(f"tool {source!r} is an empty list, expected at least one tool")
    try:
        return tuple(as_tool(one) for one in several)
    except TypeError as error:
        raise ValueError(f"tool {source!r}: {error}") from error


def resolve_tool(source: str | Callable[..., Any] | Tool) -> Tool:
    """Find the one tool that a source stands for; as `resolve_tools`.

    Raises:
        ValueError: As `resolve_tools`, or it stands for several.
        TypeError: A function or class cannot be a tool.
    """
    tool, *others = resolve_tools(source)
    if others:
        names = ", ".join(one.name for one in (tool, *others))
        raise ValueError(f"tool {source!r} stands for {names}, expected one tool")
    return tool


def load_tool(source: str) -> Any:
    """Load what an entry point's name or a reference leads to."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if source in points:
        return load_entry_point(points[source], "tool")
    if not is_reference(source):
        names = ", ".join(sorted({*BUILT_IN, *points}))
        raise ValueError(f"unknown tool {source!r}; expected {names}, 'mcp:SERVER', {FORMS}")
    return load_reference(source, "tool")
