"""The weights and baselines of trees, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.trainers.algorithms.tree_weights import leaf_weights, node_baselines, node_weights
from forkgym.trainers.types import Group
from tests.trainers.small_trees import three_leaves, trajectory, turn


def group_of(parents: Sequence[str], returns: Sequence[float], num_initial: int | None) -> Group:
    """A tree of turns written ``uid<parent``, roots without a parent; the leaves in the order of the turns."""
    edges = [(uid, parent or None) for uid, _, parent in (text.partition("<") for text in parents)]
    leaves = [uid for uid, _ in edges if uid not in {parent for _, parent in edges}]
    paid = dict(zip(leaves, returns, strict=True))
    return Group(
        env_id="toy",
        task_uid="toy/0",
        question="?",
        answer="!",
        prompt_tokens=(1,),
        turns=tuple(turn(uid, parent, (2,), reward=paid.get(uid, 0.0)) for uid, parent in edges),
        trajectories=tuple(trajectory(leaf, paid[leaf]) for leaf in leaves),
        num_initial=num_initial,
    )


def five_leaves() -> Group:
    """The tree in the module's docstring; leaves t1d0, t4d0, t0d2, t2d2, t3d2."""
    return group_of(
        ["t0d0", "t1d0", "t4d0", "t0d1<t0d0", "t2d1<t0d0", "t0d2<t0d1", "t2d2<t2d1", "t3d2<t0d1"], (0, 1, 1, 1, 0), 2
    )


def test_leaf_weights_are_one() -> None:
    assert leaf_weights(five_leaves()) == [1.0] * 5


def test_node_weights_of_the_tree_in_the_docstring() -> None:
    group = five_leaves()
    assert [one.leaf for one in group.trajectories] == ["t1d0", "t4d0", "t0d2", "t2d2", "t3d2"]
    assert node_weights(group) == [5 / 2, 5 / 2, 5 / 8, 5 / 4, 5 / 8]
    assert sum(node_weights(group)) == 5 * (1 + 1 / 2)  # one fresh tree beside two initial ones


def test_node_baselines_of_the_tree_in_the_docstring() -> None:
    group = five_leaves()
    assert node_baselines(group, group.rewards) == [3 / 4, 3 / 8, 0.0, 0.0, 0.0]


def test_a_baseline_takes_the_returns_that_it_is_given() -> None:
    # tree t0: (2 + 4) / 2 = 3; tree t1: 7
    assert node_baselines(three_leaves(), [2.0, 7.0, 4.0]) == [7.0, 3.0, 7.0]


def test_without_branches_every_weight_is_one_and_the_baseline_leaves_one_out() -> None:
    group = group_of(["t0d0", "t1d0", "t2d0", "t3d0"], (1, 0, 0, 1), None)
    assert node_weights(group) == leaf_weights(group) == [1.0] * 4
    assert node_baselines(group, group.rewards) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_three_ways_at_one_boundary() -> None:
    group = group_of(["t0d0", "t1d0", "t0d1<t0d0", "t2d1<t0d0", "t3d1<t0d0"], (1, 1, 1, 0), 2)
    assert node_weights(group) == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    assert node_baselines(group, group.rewards) == pytest.approx([2 / 3, 1.0, 1.0, 1.0])


def test_a_lone_initial_trajectory_has_no_baseline() -> None:
    group = replace(three_leaves(), num_initial=1)  # the second root is a fresh one
    with pytest.raises(ValueError, match="group toy/0: 1 initial trajectory, expected at least 2"):
        node_baselines(group, group.rewards)
    assert node_weights(group) == [1.5, 3.0, 1.5]  # weights need none


def test_returns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 returns, expected one for each of its 3 trajectories"):
        node_baselines(three_leaves(), [1.0, 0.0])


@pytest.mark.parametrize("count", [0, 3])
def test_a_group_has_as_many_initial_trajectories_as_first_turns_at_most(count: int) -> None:
    with pytest.raises(ValueError, match=f"num_initial is {count}, expected 1 to 2"):
        replace(three_leaves(), num_initial=count)


@st.composite
def trees(draw: st.DrawFn) -> Group:
    """Random trees: each turn after the first goes on from one that came before, or from the prompt."""
    turns = ["t0d0"]
    for place in range(1, draw(st.integers(1, 12))):
        parent = draw(st.sampled_from(["", *(text.partition("<")[0] for text in turns)]))
        turns.append(f"t{place}d0" + (f"<{parent}" if parent else ""))
    leaves = len(turns) - len({text.partition("<")[2] for text in turns} - {""})
    roots = sum("<" not in text for text in turns)
    return group_of(turns, [0.0] * leaves, draw(st.integers(1, roots)))


@given(trees())
def test_what_is_below_a_turn_sums_to_its_weight_and_is_split_evenly(group: Group) -> None:
    below: dict[str, Fraction] = {}
    for one, weight in zip(group.trajectories, node_weights(group), strict=True):
        for node in group.path(one.leaf):
            below[node.uid] = below.get(node.uid, Fraction(0)) + Fraction(weight)
    assert group.num_initial is not None
    for node in group.turns:
        siblings = [other for other in group.turns if other.parent == node.parent]
        above = Fraction(len(group.trajectories)) if node.parent is None else below[node.parent]
        count = group.num_initial if node.parent is None else len(siblings)
        assert float(below[node.uid]) == pytest.approx(float(above / count))
