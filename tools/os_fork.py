"""State that a forked process must not share with its parent: sockets, database handles, locks."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod

_INSTANCES: weakref.WeakSet[OwnedByProcess] = weakref.WeakSet()


class OwnedByProcess(ABC):
    """An object that starts afresh in a forked child.

    Two processes that read replies from one socket each get half of them, and a lock that another thread of the parent
    held is never released in the child. A subclass makes such state in ``start``, calls it once in ``__init__``, and it
    is called again in a child before anything else runs there.
    """

    def __init__(self) -> None:
        _INSTANCES.add(self)

    @abstractmethod
    def start(self) -> None:
        """Make the state that belongs to this process; forget what there was without touching it."""


def _start_afresh() -> None:
    for instance in list(_INSTANCES):
        instance.start()


os.register_at_fork(after_in_child=_start_afresh)
