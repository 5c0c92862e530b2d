"""Random trees of turns, and a policy small enough that its gradient can be written down: a table of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from forkgym.envs.tasks import StopReason
from forkgym.trainers.types import Group, Row, Trajectory, Turn
from tests.trainers.small_trees import turn

VOCABULARY = 6


def random_tree(seed: int, *, paid_on_the_way: bool = False, roots: int = 2) -> Group:
    """A tree of 4 to 12 turns of 1 to 5 tokens, with observations; at least ``roots`` first turns."""
    rng = np.random.default_rng(seed)
    parents: list[int | None] = [None] * roots
    for place in range(roots, int(rng.integers(roots + 2, 13))):
        choice = int(rng.integers(-1, place))
        parents.append(None if choice < 0 else choice)
    inner = set(parents)
    turns: list[Turn] = []
    for place, parent in enumerate(parents):
        tokens = rng.integers(VOCABULARY, size=int(rng.integers(1, 6))).tolist()
        seen = rng.integers(VOCABULARY, size=int(rng.integers(1, 4))).tolist() if place in inner else ()
        reward = float(rng.normal()) if paid_on_the_way or place not in inner else 0.0
        one = turn(f"t{place}d0", None if parent is None else f"t{parent}d0", tokens, seen=seen, reward=reward)
        turns.append(replace(one, entropies=tuple(rng.random(len(tokens)).tolist())))
    by_uid = {one.uid: one for one in turns}

    def returned(uid: str | None) -> float:
        return 0.0 if uid is None else by_uid[uid].reward + returned(by_uid[uid].parent)

    leaves = [one.uid for place, one in enumerate(turns) if place not in inner]
    return Group(
        env_id="toy",
        task_uid=f"toy/{seed}",
        question="?",
        answer="!",
        prompt_tokens=tuple(rng.integers(VOCABULARY, size=int(rng.integers(1, 4))).tolist()),
        turns=tuple(turns),
        trajectories=tuple(Trajectory(leaf, returned(leaf), 0.0, StopReason.ANSWERED) for leaf in leaves),
    )


def random_table(seed: int) -> torch.Tensor:
    """Logits of the next token by the token before it, [V, V], double."""
    logits = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY))
    return torch.from_numpy(logits)


def sampled_by(group: Group, table: torch.Tensor) -> Group:
    """The tree with the log-probs that the table gives its turns."""
    logs = table.log_softmax(1)
    last: dict[str | None, int] = {None: group.prompt_tokens[-1]}
    turns: list[Turn] = []
    for one in group.turns:
        before = (last[one.parent], *one.tokens[:-1])
        turns.append(replace(one, logprobs=tuple(float(log) for log in logs[before, one.tokens])))
        last[one.uid] = (*one.tokens, *one.observation_tokens)[-1]
    return replace(group, turns=tuple(turns))


def table_logprobs(table: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Log-prob of each sampled token of padded rows, [B, T]; 0 elsewhere."""
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([[*row.tokens, *[0] * (longest - len(row.tokens))] for row in rows])
    mask = torch.tensor([[*row.loss_mask, *[False] * (longest - len(row.tokens))] for row in rows])
    logs = table.log_softmax(1)[tokens[:, :-1], tokens[:, 1:]]
    return torch.where(mask, torch.nn.functional.pad(logs, (1, 0)), 0.0)


def written_out_gradient(table: torch.Tensor, group: Group, scales_GD: Sequence[Sequence[float]]) -> torch.Tensor:
    """``sum over trajectories, turns and tokens of scale * d log pi / d table``, term by term.

    The derivative of ``log softmax(z)_a`` by ``z`` is ``onehot(a) - softmax(z)``.

    Args:
        table: Logits.
        group: A tree.
        scales_GD: A number for each turn of each trajectory.
    """
    chances = table.softmax(1)
    gradient = torch.zeros_like(table)
    for one, scales_D in zip(group.trajectories, scales_GD, strict=True):
        before = group.prompt_tokens[-1]
        for node, scale in zip(group.path(one.leaf), scales_D, strict=True):
            for token in node.tokens:
                gradient[before] -= scale * chances[before]
                gradient[before, token] += scale
                before = token
            before = (*node.tokens, *node.observation_tokens)[-1]
    return gradient
