"""Tasks, where they come from, and every way an episode can end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class StopReason(StrEnum):
    """Every way an episode or trajectory can end.

    The environment gives the first group; the agent, which alone sees tokens, the second.
    """

    ANSWERED = "answered"
    TURN_LIMIT = "turn_limit"
    MALFORMED = "malformed"
    TOOL_STOP = "tool_stop"
    TIME_LIMIT = "time_limit"
    TOOL_FAILURE = "tool_failure"  # the infrastructure's fault: nothing that the policy did, so it is not trained on

    TOTAL_TOKEN_LIMIT = "total_token_limit"
    CONTEXT_LIMIT = "context_limit"


@dataclass(frozen=True, slots=True)
class SolutionStep:
    """One turn of an oracle: a thought, then a call of ``tool`` with ``argument``; ``tool`` None answers with it."""

    argument: str
    tool: str | None = None
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    Attributes:
        question: Shown to the policy.
        answer: The reference answer; never shown.
        uid: Names the task for ever, such as ``gsm8k/test/3``.
        metadata: Whatever else the source says, as JSON values.
        solution: The turns of an oracle that solves it; empty where none is known.
    """

    question: str
    answer: str
    uid: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    solution: tuple[SolutionStep, ...] = ()


class Taskset(Protocol):
    """An indexed source of tasks: ``taskset[i]`` is the same task always, for generated ones too."""

    @property
    def size(self) -> int | None:
        """How many tasks there are, or None where they never end."""
        ...

    def __getitem__(self, index: int) -> Task:
        """Return the task with this index, 0 or more; IndexError past the end."""
        ...
