"""What each trajectory of a tree weighs in the gradient, and what its return is compared with. Pure functions of trees.

Branching over-represents the prefixes that branched: where every leaf weighs the same (``leaf``), a first turn with
three leaves below it counts three times. ``node`` weights make every sampled turn count as one draw from its state,
which is what the policy gradient theorem asks for. Both are weights of leaves. A turn's weight is the sum over the
leaves below it, so the sum over leaves of ``weight * (return - baseline) * grad log pi(trajectory)`` needs no more.

With a budget of five trajectories and two initial ones, the first of which branched twice, and a fresh one,

    prompt ─┬─ t0d0 ─┬─ t0d1 ─┬─ t0d2   return 1   weight 5 * 1/2 * 1/2 * 1/2 = 5/8   baseline 0
            │        │        └─ t3d2   return 0   weight 5 * 1/2 * 1/2 * 1/2 = 5/8   baseline 0
            │        └─ t2d1 ── t2d2    return 1   weight 5 * 1/2 * 1/2       = 5/4   baseline 0
            ├─ t1d0                     return 0   weight 5 * 1/2             = 5/2   baseline 3/4
            └─ t4d0   (fresh)           return 1   weight 5 * 1/2             = 5/2   baseline 3/8

the returns below ``t0d0`` are worth ``1/2 * (1/2 * 1 + 1/2 * 0) + 1/2 * 1 = 3/4`` in the mean, and those of both
initial trees ``(3/4 + 0) / 2 = 3/8``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from forkgym.trainers.types import Group


def leaf_weights(group: Group) -> list[float]:
    """Weigh every trajectory 1, as published for ARPO (arXiv:2507.19849) and as GRPO and GPG do without branches.

    Where nothing branches this is unbiased. Where something does, the expected gradient is that of another objective:
    turns below which there are many leaves count for more, so what leads to boundaries that branch is pushed up or down
    harder than what answers at once.

    Returns:
        The weight of each trajectory, in the group's order.
    """
    return [1.0] * len(group.trajectories)


def node_weights(group: Group) -> list[float]:
    """Weigh the leaves so that every sampled turn counts as one draw from its state.

    ``w(first turn) = G / N``, also of a fresh trajectory; ``w(turn) = w(parent) / children of the parent``; a leaf
    weighs what its last turn does. ``G`` is the number of trajectories, so that a weight is 1 where nothing branches,
    as in `leaf_weights`; ``N`` is the number of initial ones.

    With ``F`` fresh trajectories the weights sum to ``G * (1 + F / N)``, and ``sum(weights * terms)`` is ``G * (1 +
    E[F] / N)`` times the gradient in expectation: a constant, by which the learning rate is scaled. Dividing by a
    tree's own ``N + F`` instead would be biased, for its F depends on how its initial trajectories went.

    The branching decisions must not depend on the continuations that are kept (see `branching`): the entropy strategy
    needs ``k = 1``.

    Returns:
        The weight of each trajectory, in the group's order.
    """
    scale = len(group.trajectories) / len(initial_roots(group))
    shares = node_shares(group)
    return [scale * share for share in shares]


def node_baselines(group: Group, returns_G: Sequence[float]) -> list[float]:
    """Compare each trajectory with the other initial trees: the mean over them of their node-weighted return.

    An initial tree is left out of its own baseline, since a baseline that contains a turn's own leaves is biased; a
    fresh one is in nobody's baseline, for whether it is there depends on how the initial ones went, and is compared
    with all initial ones. Node-weighted, since the trees compete for one budget: what one does decides how many leaves
    another has, but not what it is worth in the mean.

    Args:
        group: The tree.
        returns_G: One return a trajectory, in the group's order.

    Returns:
        The baseline of each trajectory, in the group's order.

    Raises:
        ValueError: There are not as many returns as trajectories, or there is one initial tree alone.
    """
    if len(returns_G) != len(group.trajectories):
        raise ValueError(
            f"group {group.task_uid}: {len(returns_G)} returns, expected one for each of its "
            f"{len(group.trajectories)} trajectories"
        )
    initial = initial_roots(group)
    if len(initial) < 2:
        raise ValueError(
            f"group {group.task_uid}: {len(initial)} initial trajectory, expected at least 2, each other's baseline"
        )
    roots = [group.path(trajectory.leaf)[0].uid for trajectory in group.trajectories]
    worth = dict.fromkeys(initial, 0.0)
    for root, share, value in zip(roots, node_shares(group), returns_G, strict=True):
        if root in worth:
            worth[root] += share * value
    total = sum(worth.values())
    others = {root: (total - own) / (len(initial) - 1) for root, own in worth.items()}
    return [others.get(root, total / len(initial)) for root in roots]


def node_shares(group: Group) -> list[float]:
    """Return each trajectory's share of its own tree: the product of ``1 / children`` down its path; they sum to 1."""
    children = Counter(turn.parent for turn in group.turns)
    share: dict[str | None, float] = {}
    for turn in group.turns:  # parents come first
        share[turn.uid] = 1.0 if turn.parent is None else share[turn.parent] / children[turn.parent]
    return [share[trajectory.leaf] for trajectory in group.trajectories]


def initial_roots(group: Group) -> list[str]:
    """Return the first turns of the initial trajectories, without those of fresh ones."""
    return [turn.uid for turn in group.turns if turn.parent is None][: group.num_initial]
