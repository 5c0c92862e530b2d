"""What an agent is: an engine that turns token contexts into completions, one turn of one trajectory at a time.

The rollout drives it: ``submit`` requests, call ``step`` until they are done, ``submit`` what follows. No trajectory
waits for another.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from forkgym.agents.codec import Codec
from forkgym.envs.tasks import Task

if TYPE_CHECKING:
    import torch

FINISHED = "a finished turn that was neither continued nor released"


class FinishReason(StrEnum):
    """Why a turn's sampling ended."""

    STOP = "stop"  # a stop string of the grammar
    END = "end"  # the model's end token
    TURN_TOKENS = "turn_tokens"  # the request's max_tokens
    CONTEXT = "context"  # the model's or the engine's longest context


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to sample.

    Attributes:
        uid: Names the turn; unique among live requests.
        tokens: The whole context, never empty.
        max_tokens: Most tokens to sample, 1 or more.
        stop: Strings that end the turn; the token that completes one is kept.
        seed: Seeds this turn's draws alone, so that no other request can change them.
        temperature: Of the sampling distribution; 0 is greedy.
        continues: The finished request whose context and completion begin this context: its cache is taken over.
        report_after: ``step`` reports a `FirstTokens` once so many tokens are sampled; 0 for never.
        task: For logs and oracles; a policy sees tokens only.
        solution: The turns of the task's solution as text, in the environment's grammar; empty where none is known.
    """

    uid: str
    tokens: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    temperature: float = 1.0
    continues: str | None = None
    report_after: int = 0
    task: Task | None = None
    solution: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.tokens:
            raise ValueError(f"request {self.uid}: the context is empty")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.uid}: max_tokens is {self.max_tokens}, expected 1 or more")
        if self.temperature < 0:
            raise ValueError(f"request {self.uid}: temperature is {self.temperature}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The entropies (nats) of a turn's first ``report_after`` tokens, or of all where it was shorter."""

    uid: str
    entropies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished turn.

    Attributes:
        uid: The request's.
        tokens: What was sampled, the end token included where there is one; the loss sees exactly these.
        text: The same as text for the environment, without the end token.
        logprobs: Of each token under the sampling distribution, nats; where decoding was greedy, under the model's
            own distribution.
        entropies: Of that distribution before each token, nats.
        finish_reason: Why it ended.
        version: The weights' version; a turn is sampled under one version.
    """

    uid: str
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    finish_reason: FinishReason
    version: int

    def __post_init__(self) -> None:
        """Check the fields."""
        if not len(self.tokens) == len(self.logprobs) == len(self.entropies):
            raise ValueError(
                f"completion {self.uid}: {len(self.tokens)} tokens, {len(self.logprobs)} log-probs and "
                f"{len(self.entropies)} entropies, expected as many of each"
            )


Event = FirstTokens | Completion


class Agent(Protocol):
    """An engine that samples turns.

    Events of one ``step`` come in the order in which their requests were submitted. A request that finishes within
    ``report_after`` tokens is reported by a `FirstTokens` first, then by its `Completion`.

    It samples from the model's whole distribution at the request's temperature: no top-p, top-k or repetition penalty,
    whatever the model's own settings for generation ask for. No importance weight could make up for those.
    """

    @property
    def codec(self) -> Codec:
        """Turns texts into tokens and back."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that can be sampled."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a turn."""
        ...

    def step(self) -> Sequence[Event]:
        """Work a little and return what has happened since; empty where nothing has."""
        ...

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue."""
        ...

    def abort(self, uid: str) -> None:
        """Forget a turn, finished or not; it is never reported."""
        ...

    def pause(self) -> None:
        """Let go of memory that only sampling needs. No request runs, and none comes before ``load_weights``."""
        ...

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Sample from these weights from now on. No request may be running."""
        ...

    def figures(self) -> Mapping[str, float]:
        """Return what it measures of itself, by name, for the log of a training step; empty where nothing."""
        ...


def check_released(uid: str, finished: Container[str | None]) -> None:
    """Raise ValueError where a turn that is to be released is not among the finished ones."""
    if uid not in finished:
        raise ValueError(f"turn {uid}: expected {FINISHED}")


def check_continued(request: Request, finished: Container[str | None]) -> None:
    """Raise ValueError where the turn that a request continues is not among the finished ones."""
    if request.continues not in finished:
        raise ValueError(f"request {request.uid}: it continues {request.continues!r}, expected {FINISHED}")
