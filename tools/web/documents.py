"""A page as it was fetched, from the web or from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forkgym.tools.web.page_program import Form


@dataclass(frozen=True, slots=True)
class Document:
    """A page as it was fetched.

    Attributes:
        url: Where it came from, after redirects.
        form: HTML or text.
        charset: Its character set; empty where it was not said.
        body: Its bytes.
        title: Where it is known beforehand.
    """

    url: str
    form: Form
    charset: str
    body: bytes
    title: str = ""


Fetch = Callable[[str, float], Document]  # of a URL, within a number of seconds; ToolError where there is no page
