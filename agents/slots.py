"""Which token sequence each slot of the cache holds, and what was sampled into it, as arrays over the slots."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Columns that need not be read where stems are read once; fewer cost less than the second product.
WORTH_SHARING = 2048


class SlotState(IntEnum):
    """What a slot is used for; the contents of a free one may still serve as a prefix."""

    FREE = 0
    HELD = 1  # by a finished turn that may be continued
    RUNNING = 2


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """How a turn is sampled.

    Attributes:
        limit: Longest that the sequence may become, in tokens.
        report_after: Tokens of the turn after which it is reported; 0 for never.
        temperature: Of the sampling distribution; 0 is greedy.
        stop_row: Which set of stop strings applies, as `StopTable.row` numbers them.
        uniforms: One draw for each token that the turn may have, in [0, 1), float32.
    """

    limit: int
    report_after: int
    temperature: float
    stop_row: int
    uniforms: Floats


@dataclass(frozen=True, slots=True)
class Stems:
    """What the sequences of a forward begin with.

    Three sequences of which the first and the last share 40 tokens, and the second has 42 of its own: ``uids = 5 8``,
    ``length = 40``, ``holders = 0 1``, ``stem_of_row = 0 1 0``.

    Attributes:
        uids: What names each stem, as long as the cache holds it.
        length: Columns that are taken as the stem of each; the sequences may share more.
        holders: A slot that begins with each, [stems].
        stem_of_row: Which stem each row of the forward begins with, as an index into ``holders``, [rows].
    """

    uids: tuple[int, ...]
    length: int
    holders: Ints
    stem_of_row: Ints


class SlotTable:
    """Contents, limits and samples of every slot.

    Tokens of a slot that samples its second turn: ``P`` prompt, ``A`` sampled before, ``R`` reply, ``a`` sampled now,
    ``.`` stale::

        tokens   P P P A A R R a a . . .
        cached   6                          the cache has columns 0 to 5
        start    7                          this turn's first token
        length   9
        limit    11                         this turn's last possible length

    Slots that began as copies of one another have a *stem* in common: tokens whose columns are the same in all of them.

    Args:
        slots: How many there are, 1 or more.
    """

    def __init__(self, slots: int) -> None:
        self._stems_begun = 0
        self.state = np.zeros(slots, np.int8)
        self.tokens = np.zeros((slots, 0), np.int64)
        self.cached = np.zeros(slots, np.int64)
        self.start = np.zeros(slots, np.int64)
        self.length = np.zeros(slots, np.int64)
        self.limit = np.zeros(slots, np.int64)
        self.report_at = np.zeros(slots, np.int64)
        self.temperature = np.ones(slots, np.float32)
        self.stop_row = np.zeros(slots, np.int64)
        self.stem = np.zeros(slots, np.int64)
        self.stem_length = np.zeros(slots, np.int64)
        # By position in the turn, not in the sequence: [slots, longest turn].
        self.uniforms = np.zeros((slots, 0), np.float32)
        self.logprobs = np.zeros((slots, 0), np.float32)
        self.entropies = np.zeros((slots, 0), np.float32)

    def running(self) -> Ints:
        """Slots that are sampling, in order."""
        return np.flatnonzero(self.state == SlotState.RUNNING)

    def ready(self) -> Ints:
        """Running slots whose cache lacks nothing but the last token, in order."""
        return np.flatnonzero((self.state == SlotState.RUNNING) & (self.cached == self.length - 1))

    def free(self) -> Ints:
        """Slots that a new sequence may take, in order."""
        return np.flatnonzero(self.state == SlotState.FREE)

    def shared_prefixes(self, tokens: Ints, lengths: Ints) -> Ints:
        """For each slot, how many of its first ``lengths`` tokens are the first ones of ``tokens``."""
        width = min(len(tokens), self.tokens.shape[1])
        differs = np.ones((len(lengths), width + 1), np.bool_)
        np.not_equal(self.tokens[:, :width], tokens[:width], out=differs[:, :width])
        shared: Ints = np.minimum(differs.argmax(axis=1), lengths)
        return shared

    def begin_sequence(self, slot: int, tokens: Ints, cached: int, source: int) -> None:
        """Fill a slot with a context of which the first ``cached`` columns are right, being those of ``source``."""
        if 0 < self.stem_length[source] <= cached:
            self.stem[slot], self.stem_length[slot] = self.stem[source], self.stem_length[source]
        else:
            # A copy of this sequence will have all its columns but the last, which is run for its logits.
            self._stems_begun += 1
            self.stem[slot], self.stem_length[slot] = self._stems_begun, len(tokens) - 1
        self._widen(len(tokens))
        self.tokens[slot, : len(tokens)] = tokens
        self.length[slot] = len(tokens)
        self.cached[slot] = cached

    def begin_turn(self, slot: int, plan: TurnPlan) -> None:
        """Start to sample after the slot's present tokens."""
        self._widen(plan.limit)
        self._widen_turns(len(plan.uniforms))
        start = self.length[slot]
        self.start[slot] = start
        self.limit[slot] = plan.limit
        self.report_at[slot] = start + plan.report_after if plan.report_after else 0
        self.temperature[slot] = plan.temperature
        self.stop_row[slot] = plan.stop_row
        self.uniforms[slot, : len(plan.uniforms)] = plan.uniforms
        self.state[slot] = SlotState.RUNNING

    def append(self, slots: Ints, tokens: Ints, logprobs: Floats, entropies: Floats) -> None:
        """Add one sampled token to each of ``slots``, whose contexts the cache now has."""
        length = self.length[slots]
        position = length - self.start[slots]
        self.tokens[slots, length] = tokens
        self.logprobs[slots, position] = logprobs
        self.entropies[slots, position] = entropies
        self.cached[slots] = length
        self.length[slots] = length + 1

    def stems(self, slots: Ints) -> Stems | None:
        """What ready slots begin with; None where too few share too little for it to be worth a product of its own."""
        uids, first, stem_of_slot = np.unique(self.stem[slots], return_index=True, return_inverse=True)
        length = int(self.stem_length[slots].min())
        if (len(slots) - len(uids)) * length < WORTH_SHARING:
            return None
        return Stems(tuple(uids.tolist()), length, slots[first], stem_of_slot)

    def next_uniforms(self, slots: Ints) -> Floats:
        """The draw for the next token of each of ``slots``."""
        draws: Floats = self.uniforms[slots, self.length[slots] - self.start[slots]]
        return draws

    def sampled(self, slot: int) -> tuple[int, ...]:
        """The tokens of the slot's turn so far."""
        return tuple(self.tokens[slot, self.start[slot] : self.length[slot]].tolist())

    def measures(self, slot: int, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Log-probs and entropies of the first ``count`` tokens of the slot's turn."""
        return tuple(self.logprobs[slot, :count].tolist()), tuple(self.entropies[slot, :count].tolist())

    def _widen(self, width: int) -> None:
        missing = width - self.tokens.shape[1]
        if missing > 0:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, missing + self.tokens.shape[1] // 4)))

    def _widen_turns(self, width: int) -> None:
        missing = width - self.uniforms.shape[1]
        if missing > 0:
            padding = ((0, 0), (0, missing))
            self.uniforms = np.pad(self.uniforms, padding)
            self.logprobs = np.pad(self.logprobs, padding)
            self.entropies = np.pad(self.entropies, padding)
