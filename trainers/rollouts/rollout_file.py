"""Files of trees: one `Group` a line, as JSON with the fields of `Group`, `Turn` and `Trajectory`.

    {"env_id": "forkgym/WordMath-v0", "task_uid": ..., "question": ..., "answer": ..., "prompt_tokens": [5, 8],
     "turns": [{"uid": "t0d0", "parent": null, "tokens": [7], "logprobs": [-0.25], "entropies": [0.5], ...}, ...],
     "trajectories": [{"leaf": "t0d0", "reward": 1.0, "parts": {"exact_match": 1.0}, ...}, ...]}

Who wrote a token is told by where it stands: ``tokens`` are the policy's, ``prompt_tokens`` and
``observation_tokens`` are not, so a loss mask need not be stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from forkgym.agents.base import FinishReason
from forkgym.envs.tasks import StopReason
from forkgym.tools.durable import write_text
from forkgym.trainers.types import Group, Trajectory, Turn


def write_rollouts(path: Path, groups: Sequence[Group]) -> None:
    """Write trees as `read_rollouts` reads them, whole or not at all.

    Raises:
        ValueError: A number is not finite. No policy that works samples such a token, and JSON has no word for it.
    """
    # ASCII, which is json's default: a text with half a surrogate pair, which a call's JSON can hold, is no UTF-8.
    write_text(path, "".join(json.dumps(group_record(group), allow_nan=False) + "\n" for group in groups))


def read_rollouts(path: Path) -> list[Group]:
    """Read what `write_rollouts` wrote; the groups equal those that were written, to the bit.

    Raises:
        ValueError: A line is no tree; names the file and the line.
    """
    groups: list[Group] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                groups.append(group_from(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: expected a tree of turns ({error})") from error
    return groups


def group_record(group: Group) -> dict[str, object]:
    """Return a tree as one JSON object with the fields of `Group`, `Turn` and `Trajectory`."""
    return {
        **shallow(group),
        "turns": [shallow(turn) for turn in group.turns],
        "trajectories": [shallow(trajectory) | {"parts": dict(trajectory.parts)} for trajectory in group.trajectories],
    }


def shallow(item: Group | Turn | Trajectory) -> dict[str, object]:
    """Return a record's fields as they are; `dataclasses.asdict` would copy every token."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


def group_from(record: dict[str, Any]) -> Group:
    """Undo `group_record`."""
    restored: dict[str, Any] = {
        "prompt_tokens": tuple(record["prompt_tokens"]),
        "turns": tuple(turn_from(turn) for turn in record["turns"]),
        "trajectories": tuple(trajectory_from(trajectory) for trajectory in record["trajectories"]),
    }
    return Group(**(record | restored))


def turn_from(record: dict[str, Any]) -> Turn:
    """Return one turn of a tree."""
    sequences = ("tokens", "logprobs", "entropies", "observation_tokens", "tools")
    restored: dict[str, Any] = {name: tuple(record[name]) for name in sequences}
    restored["finish_reason"] = FinishReason(record["finish_reason"])
    return Turn(**(record | restored))


def trajectory_from(record: dict[str, Any]) -> Trajectory:
    """Return one trajectory of a tree."""
    restored: dict[str, Any] = {"stop_reason": StopReason(record["stop_reason"])}
    return Trajectory(**(record | restored))
