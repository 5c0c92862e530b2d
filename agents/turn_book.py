"""The turns that an engine of another library samples token by token: where each ends, and what is reported of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from forkgym.agents.base import Completion, Event, FinishReason, FirstTokens, Request, check_continued, check_released
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.stopping import END, MAY_STOP, StopTable


@dataclass(slots=True)
class LiveTurn:
    """A turn that is being sampled.

    Attributes:
        request: What was asked for.
        serial: Its place in the order of submission.
        limit: Most tokens that may be sampled: the request's, or fewer where the longest context ends.
        stop_row: Which set of stop strings applies, as `StopTable.row` numbers them.
        tokens: Sampled so far.
        logprobs: Of each, nats.
        entropies: Before each, nats.
    """

    request: Request
    serial: int
    limit: int
    stop_row: int
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    entropies: list[float] = field(default_factory=list[float])


class TurnBook:
    """Keeps the contract of `Agent` for an engine that knows nothing of turns.

    It decides where a turn ends by the same table as the embedded agent, so that both keep the same tokens.

    Args:
        codec: Decodes what was sampled.
        stops: Knows the end tokens, and finds stop strings.
        num_embeddings: Tokens that a context may hold are 0 to this, less 1.
        max_context: Longest sequence in tokens.
    """

    def __init__(self, codec: TokenizerCodec, stops: StopTable, num_embeddings: int, max_context: int) -> None:
        self._codec = codec
        self._stops = stops
        self._num_embeddings = num_embeddings
        self._max_context = max_context
        self._serial = 0
        self._live: dict[str, LiveTurn] = {}
        self._finished: dict[str, tuple[int, ...]] = {}  # context and completion by uid
        self._events: list[tuple[int, Event]] = []  # with the serial of each request

    @property
    def live(self) -> int:
        """How many turns are being sampled."""
        return len(self._live)

    @property
    def has_events(self) -> bool:
        """Whether there is something to report."""
        return bool(self._events)

    def begin(self, request: Request, version: int) -> LiveTurn | None:
        """Note a turn; None where its context leaves no room to sample, and it is finished already.

        Raises:
            ValueError: The uid is in use; a token is not in the vocabulary; a stop string is empty; or ``continues``
                names no finished turn, or one whose tokens don't begin this context.
        """
        if request.uid in self._live or request.uid in self._finished:
            raise ValueError(f"request {request.uid}: another live request has this uid")
        least, most = min(request.tokens), max(request.tokens)
        if least < 0 or most >= self._num_embeddings:
            raise ValueError(
                f"request {request.uid}: tokens from {least} to {most}, expected 0 to {self._num_embeddings - 1}"
            )
        row = self._stops.row(request.stop)
        if request.continues is not None:
            self._take_over(request, request.continues)
        room = self._max_context - len(request.tokens)
        turn = LiveTurn(request, self._serial, min(request.max_tokens, room), row)
        self._serial += 1
        if room < 1:
            if request.report_after:
                self._events.append((turn.serial, FirstTokens(request.uid, ())))
            self._finish(turn, FinishReason.CONTEXT, version)
            return None
        self._live[request.uid] = turn
        return turn

    def add_tokens(
        self,
        turns: Sequence[LiveTurn],
        tokens: Sequence[int],
        logprobs: Sequence[float],
        entropies: Sequence[float],
        version: int,
    ) -> list[LiveTurn]:
        """Take in the next token of each of these turns; returns the turns that it ended."""
        rows = np.array([turn.stop_row for turn in turns], np.int64)
        flags: list[int] = self._stops.flags(rows, np.array(tokens, np.int64)).tolist()
        ended: list[LiveTurn] = []
        for turn, token, logprob, entropy, flag in zip(turns, tokens, logprobs, entropies, flags, strict=True):
            turn.tokens.append(token)
            turn.logprobs.append(logprob)
            turn.entropies.append(entropy)
            count, report_after = len(turn.tokens), turn.request.report_after
            if not flag and count != turn.limit and count != report_after:
                continue
            reason = self._finish_reason(turn, flag)
            if count == report_after or (reason is not None and count < report_after):
                self._events.append((turn.serial, FirstTokens(turn.request.uid, tuple(turn.entropies))))
            if reason is not None:
                del self._live[turn.request.uid]
                self._finish(turn, reason, version)
                ended.append(turn)
        return ended

    def take_events(self) -> Sequence[Event]:
        """Return what there is to report, in the order of submission, and forget it."""
        # Stable: the first tokens of a request come before its completion.
        events = [event for _, event in sorted(self._events, key=lambda item: item[0])]
        self._events.clear()
        return events

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue.

        Raises:
            ValueError: No finished turn has this uid.
        """
        check_released(uid, self._finished)
        del self._finished[uid]

    def abort(self, uid: str) -> LiveTurn | None:
        """Forget a turn and what there was to report of it; returns it where it was being sampled.

        Raises:
            ValueError: No live turn has this uid.
        """
        self._events = [item for item in self._events if item[1].uid != uid]
        turn = self._live.pop(uid, None)
        if turn is None:
            self.release(uid)
        return turn

    def _take_over(self, request: Request, continues: str) -> None:
        check_continued(request, self._finished)
        past = self._finished[continues]
        if request.tokens[: len(past)] != past:
            raise ValueError(
                f"request {request.uid}: its context does not begin with the {len(past)} tokens of {continues!r}, "
                "which it continues"
            )
        del self._finished[continues]

    def _finish_reason(self, turn: LiveTurn, flags: int) -> FinishReason | None:
        request = turn.request
        if flags & MAY_STOP and self._stops.completed(tuple(turn.tokens), request.stop):
            return FinishReason.STOP
        if flags & END:
            return FinishReason.END
        if len(turn.tokens) < turn.limit:
            return None
        return FinishReason.CONTEXT if turn.limit < request.max_tokens else FinishReason.TURN_TOKENS

    def _finish(self, turn: LiveTurn, reason: FinishReason, version: int) -> None:
        uid, tokens = turn.request.uid, tuple(turn.tokens)
        text = self._codec.decode(tokens[:-1] if reason is FinishReason.END else tokens)
        self._finished[uid] = turn.request.tokens + tokens
        measures = (tuple(turn.logprobs), tuple(turn.entropies))
        self._events.append((turn.serial, Completion(uid, tokens, text, *measures, reason, version)))
