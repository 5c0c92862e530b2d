"""Text from outside, made fit for a model's context: no control characters, and no longer than a limit."""

from __future__ import annotations

import re

# Terminal escapes, NUL bytes and the halves of surrogate pairs, which no tokenizer takes. Tab and newline stay.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
LINE_END = re.compile(r"\r\n?")


def printable(text: str) -> str:
    r"""Drop control characters, and write every end of a line as ``\n``.

    >>> printable("red\x1b[31m\r\nline")
    'red[31m\nline'
    """
    return UNPRINTABLE.sub("", LINE_END.sub("\n", text))


def shortened(text: str, max_chars: int) -> str:
    r"""Cut a text that is longer than ``max_chars`` characters, and say so at its end.

    >>> shortened("abcdef", 4)
    'abcd\n[cut: 6 characters, 4 shown]'
    """
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: {len(text)} characters, {max_chars} shown]"
