"""Which tokens end a turn, for an engine elsewhere that knows tokens only."""

from __future__ import annotations

import numpy as np

from forkgym.agents.stopping import END, MAY_STOP, StopTable

MANY = 20_000  # tokens; with more to watch for, as where a stop string ends in a space, any token may matter


class TurnEndings:
    """What an engine is told, so that turns end there where they end by a `StopTable`.

    Args:
        stops: The table.
        vocabulary_size: Number of tokens that can be sampled.
    """

    def __init__(self, stops: StopTable, vocabulary_size: int) -> None:
        self._stops = stops
        self._size = vocabulary_size
        self._known: dict[tuple[str, ...], tuple[list[int], list[int] | None]] = {}

    def of(self, stop: tuple[str, ...]) -> tuple[list[int], list[int] | None]:
        """Sort the vocabulary by what a token does under some stop strings.

        Args:
            stop: The stop strings.

        Returns:
            The tokens that end a turn wherever they come: end tokens, and those that hold a whole stop string. And the
            tokens that may end one, depending on what is before them; None where any may.
        """
        if stop not in self._known:
            tokens = np.arange(self._size)
            flags = self._stops.flags(np.full(self._size, self._stops.row(stop)), tokens)
            possible: list[int] = tokens[(flags & MAY_STOP) != 0].tolist()
            whole = {token for token in possible if self._stops.completed((token,), stop)}
            ends = sorted(whole.union(tokens[(flags & END) != 0].tolist()))
            watched = [token for token in possible if token not in ends]
            self._known[stop] = ends, (watched if len(watched) <= MANY else None)
        return self._known[stop]
