"""A circuit breaker: who keeps failing is left alone for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

MAX_KNOWN = 1024  # names may be the policy's invention


class CircuitBreaker:
    """Counts the failures in a row of one server. Threads may share it.

    Closed, it admits every request. After ``most`` failures in a row it opens and admits none for ``open_s`` seconds;
    then it admits one, and that one's outcome closes it or opens it again.
    """

    def __init__(self, most: int, open_s: float) -> None:
        self._most = most
        self._open_s = open_s
        self._failures = 0
        self._open_until_s = 0.0
        self._lock = threading.Lock()

    def admits(self) -> bool:
        """Whether a request may be sent; its outcome has to be noted."""
        with self._lock:
            if self._failures < self._most:
                return True
            now = time.monotonic()
            if now < self._open_until_s:
                return False
            self._open_until_s = now + self._open_s  # one tries, the others wait for what it finds
            return True

    def note(self, *, failed: bool) -> None:
        """Note the outcome of a request."""
        with self._lock:
            self._failures = self._failures + 1 if failed else 0
            if self._failures >= self._most:
                self._open_until_s = time.monotonic() + self._open_s


class CircuitBreakers:
    """A breaker for each of many servers; the oldest are forgotten."""

    def __init__(self, most: int, open_s: float) -> None:
        self._most = most
        self._open_s = open_s
        self._breakers: dict[Hashable, CircuitBreaker] = {}
        self._lock = threading.Lock()

    def of(self, name: Hashable) -> CircuitBreaker:
        """The breaker of the server of this name."""
        with self._lock:
            breaker = self._breakers.get(name)
            if breaker is None:
                if len(self._breakers) >= MAX_KNOWN:
                    del self._breakers[next(iter(self._breakers))]
                breaker = self._breakers[name] = CircuitBreaker(self._most, self._open_s)
            return breaker
