"""Agents without a model: fixed replies for tests, and oracles that take the steps of a task's known solution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkgym.agents.base import Completion, Event, FinishReason, FirstTokens, Request, check_continued, check_released
from forkgym.agents.codec import ByteCodec, Codec, TokenizerCodec

if TYPE_CHECKING:
    import torch

BYTES = 256


@dataclass(slots=True)
class Writing:
    """A queued turn, how many came before it in its trajectory, and what was written for it."""

    request: Request
    turn: int
    tokens: tuple[int, ...]
    entropies: tuple[float, ...]
    text: str
    reason: FinishReason
    reported: bool = False


class WritingAgent(ABC):
    """Writes replies instead of sampling them; log-probs are 0.

    How many turns came before one follows from the turn that it continues. A branch continues none: it follows the
    longest finished turn with which its context begins.

    Args:
        codec: Makes tokens of the replies.
        entropy: Entropy in nats by request, turn (from 0) and position in the turn (from 0); 0 where not given.
    """

    def __init__(self, codec: Codec, entropy: Callable[[Request, int, int], float] | None = None) -> None:
        self._codec = codec
        self._entropy = entropy
        self._version = 0
        self._live: dict[str, Writing] = {}
        self._finished: dict[str, Writing] = {}
        self._turns: dict[tuple[int, ...], int] = {}  # by context and completion, for branches

    @abstractmethod
    def write(self, request: Request, turn: int) -> str:
        """The whole reply to a turn, counted from 0; what follows a stop string in it is cut off."""

    @property
    def codec(self) -> Codec:
        """Turns texts into tokens and back."""
        return self._codec

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens of the codec."""
        return len(self._codec.tokenizer) if isinstance(self._codec, TokenizerCodec) else BYTES

    def submit(self, request: Request) -> None:
        """Queue a turn.

        Raises:
            ValueError: The uid is in use, or ``continues`` names no finished turn.
        """
        if request.uid in self._live or request.uid in self._finished:
            raise ValueError(f"request {request.uid}: another live request has this uid")
        turn = self._turn(request)
        text, reason = self._cut(self.write(request, turn), request.stop)
        tokens = self._codec.encode_turn(text)
        if len(tokens) > request.max_tokens:
            tokens, reason = tokens[: request.max_tokens], FinishReason.TURN_TOKENS
            text = self._codec.decode(tokens)
        entropies = tuple(
            self._entropy(request, turn, position) if self._entropy else 0.0 for position in range(len(tokens))
        )
        if request.continues is not None:
            del self._finished[request.continues]
        self._live[request.uid] = Writing(request, turn, tokens, entropies, text, reason)

    def step(self) -> Sequence[Event]:
        """Finish every queued turn, except that its first tokens may be reported one step earlier."""
        events: list[Event] = []
        for uid, writing in list(self._live.items()):
            report_after = writing.request.report_after
            if report_after and not writing.reported:
                writing.reported = True
                events.append(FirstTokens(uid, writing.entropies[:report_after]))
                if len(writing.tokens) > report_after:
                    continue
            events.append(self._finish(uid, writing))
        return events

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue.

        Raises:
            ValueError: No finished turn has this uid.
        """
        check_released(uid, self._finished)
        del self._finished[uid]

    def abort(self, uid: str) -> None:
        """Forget a turn, finished or not; it is never reported.

        Raises:
            ValueError: No live turn has this uid.
        """
        if uid in self._live:
            del self._live[uid]
        else:
            self.release(uid)

    def pause(self) -> None:
        """Do nothing: there is no memory to let go of.

        Raises:
            RuntimeError: A request is queued.
        """
        if self._live:
            raise RuntimeError(f"a pause while {len(self._live)} requests run, expected none")

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Take the version; there are no weights.

        Raises:
            RuntimeError: A request is queued.
        """
        del model
        if self._live:
            raise RuntimeError(f"weights of version {version} while {len(self._live)} requests run, expected none")
        self._version = version

    def figures(self) -> Mapping[str, float]:
        """Return nothing: there is no model to measure."""
        return {}

    def _turn(self, request: Request) -> int:
        if request.continues is None:
            for length in sorted({len(key) for key in self._turns}, reverse=True):
                before = self._turns.get(request.tokens[:length])
                if before is not None:
                    return before + 1
            return 0
        check_continued(request, self._finished)
        return self._finished[request.continues].turn + 1

    def _finish(self, uid: str, writing: Writing) -> Completion:
        self._finished[uid] = self._live.pop(uid)
        self._turns[writing.request.tokens + writing.tokens] = writing.turn
        zeros = (0.0,) * len(writing.tokens)
        return Completion(uid, writing.tokens, writing.text, zeros, writing.entropies, writing.reason, self._version)

    @staticmethod
    def _cut(text: str, stop: tuple[str, ...]) -> tuple[str, FinishReason]:
        ends = [text.index(string) + len(string) for string in stop if string in text]
        return (text[: min(ends)], FinishReason.STOP) if ends else (text, FinishReason.END)


class ScriptedAgent(WritingAgent):
    """Gives fixed replies.

    Args:
        replies: The reply to a request at a turn (from 0), or one reply a turn; the last is repeated.
        codec: Makes tokens of the replies.
        entropy: Entropy in nats by request, turn (from 0) and position in the turn (from 0); 0 where not given.

    Raises:
        ValueError: There is no reply.
    """

    def __init__(
        self,
        replies: Callable[[Request, int], str] | Sequence[str],
        codec: Codec | None = None,
        entropy: Callable[[Request, int, int], float] | None = None,
    ) -> None:
        super().__init__(codec or ByteCodec(), entropy)
        if not callable(replies) and not replies:
            raise ValueError("replies is empty, expected one at least")
        self._replies = replies

    def write(self, request: Request, turn: int) -> str:
        """The reply of this turn."""
        if callable(self._replies):
            return self._replies(request, turn)
        return self._replies[min(turn, len(self._replies) - 1)]


class NoSolution(ValueError):
    """There is nothing for an oracle to write: the environment's tasks say no steps."""


class OracleAgent(WritingAgent):
    """Takes the turns of each request's solution; after the last it repeats it."""

    def write(self, request: Request, turn: int) -> str:
        """The turn of the solution.

        Raises:
            NoSolution: The request has none.
        """
        if not request.solution:
            name = f"task {request.task.uid!r}" if request.task is not None else f"request {request.uid}"
            raise NoSolution(f"{name} has no solution, expected at least one turn for the oracle")
        return request.solution[min(turn, len(request.solution) - 1)]
