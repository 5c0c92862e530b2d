"""Unit conversion."""

from forkgym.tools.base import ToolError

METRES = {"m": 1.0, "km": 1000.0, "mi": 1609.344}


def convert(argument: str) -> str:
    """Convert a length; the argument is '<number> <from> <to>', such as '3 mi km'."""
    try:
        number, source, target = argument.split()
        return f"{float(number) * METRES[source] / METRES[target]:.6g} {target}"
    except (ValueError, KeyError) as error:
        raise ToolError(f"expected '<number> <from> <to>', got {argument[:80]!r}") from error
