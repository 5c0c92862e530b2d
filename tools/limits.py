"""Keep a call's time limit."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from forkgym.tools.base import Tool, ToolSession


class ToolTimeout(Exception):
    """A call was given up: it took longer than its tool's limit."""


def call_within_limit(tool: Tool, session: ToolSession, arguments: Mapping[str, Any]) -> str:
    """Run one call, in this thread where the tool keeps its limit by itself, else beside it and for ``timeout_s``.

    A thread cannot be killed: a call that is given up goes on in a daemon thread until it ends by itself, so its
    session must not be used again.

    Raises:
        ToolTimeout: The limit was reached.
        ToolError: As the tool raises it; so does any other exception.
    """
    if tool.inline or tool.keeps_limit:
        return session.call(arguments)
    results: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(session.call(arguments))
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread and raised there
            errors.append(error)

    thread = threading.Thread(target=work, name=f"tool-{tool.name}", daemon=True)
    thread.start()
    thread.join(tool.timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise ToolTimeout(f"{tool.name} took longer than {tool.timeout_s:g} s")
    return results[0]
