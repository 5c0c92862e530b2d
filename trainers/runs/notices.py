"""What the package has to say while a program runs: which layers of a sandbox hold, what was left out of a file."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

PACKAGE = "forkgym"


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at the moment, which a progress display replaces while it is up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def show_notices() -> None:
    """Print what the package logs, from INFO on; for programs. The second call changes nothing."""
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())
