"""Where segments begin, against trees that fit on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from forkgym.trainers.algorithms.config import SegmentConfig
from forkgym.trainers.algorithms.segments import Begins, Marking, least_certain, marker_begins, segment_begins
from forkgym.trainers.algorithms.table import Segmentation
from forkgym.trainers.types import Group
from tests.trainers.small_trees import three_leaves, trajectory, turn

MARKERS = ("<think>", "</think>", "<search>", "</search>", "<result>")


def begins(
    group: Group, kind: Segmentation, seed: int = 0, marking: Marking | None = None, **numbers: float
) -> dict[str, list[bool]]:
    config = SegmentConfig(**numbers)  # type: ignore[arg-type]  # numbers by name
    found = segment_begins(group, kind, config, np.random.default_rng(seed), marking)
    return {uid: [bool(one) for one in turn_begins] for uid, turn_begins in found.items()}


def long_turn(size: int, count: int = 1) -> Group:
    """First turns of as many tokens each, alone."""
    return replace(
        three_leaves(),
        turns=tuple(turn(f"t{place}d0", None, (3,) * size) for place in range(count)),
        trajectories=tuple(trajectory(f"t{place}d0", 0.0) for place in range(count)),
    )


def within(found: Mapping[str, Sequence[bool]]) -> list[bool]:
    """Of all turns together, without each turn's first token, which always begins a segment."""
    assert all(turn_begins[0] for turn_begins in found.values())
    return [one for turn_begins in found.values() for one in turn_begins[1:]]


def marked(*pieces: str) -> list[bool]:
    """Where segments begin in a turn of these tokens."""
    return [bool(one) for one in marker_begins(range(len(pieces)), Marking(MARKERS, lambda token: pieces[token]))]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("trajectory", {"t0d0": [0, 0], "t1d0": [0], "t0d1": [0], "t2d1": [0, 0], "t1d1": [0]}),
        ("turn", {"t0d0": [1, 0], "t1d0": [1], "t0d1": [1], "t2d1": [1, 0], "t1d1": [1]}),
        ("token", {"t0d0": [1, 1], "t1d0": [1], "t0d1": [1], "t2d1": [1, 1], "t1d1": [1]}),
    ],
)
def test_whole_trajectories_turns_and_tokens(kind: Segmentation, expected: dict[str, list[int]]) -> None:
    assert begins(three_leaves(), kind) == {uid: [bool(one) for one in ones] for uid, ones in expected.items()}


def test_a_turn_without_tokens_has_no_segment() -> None:
    group = replace(three_leaves(), turns=(*three_leaves().turns[:4], turn("t1d1", "t1d0", ())))
    kinds: tuple[Segmentation, ...] = ("trajectory", "turn", "token", "random", "entropy", "marker")
    for kind in kinds:
        assert begins(group, kind, marking=Marking(MARKERS, str))["t1d1"] == []


def test_a_marker_begins_a_segment_where_it_opens_and_after_it_closes() -> None:
    assert marked("I", "<search>", "q", "</search>", ".") == [False, True, False, False, True]
    # the example of the docstring
    assert marked("I", "<se", "arch>", "q", "</search>", ".") == [False, True, False, False, False, True]


def test_markers_split_over_tokens() -> None:
    #       0    1     2      3    4    5     6     7    8
    found = marked("a", " <", "sea", "rch", ">", "q<", "/sear", "ch>", "z")
    assert found == [False, True, False, False, False, False, False, False, True]


def test_a_token_that_holds_several_markers() -> None:
    # "</think><search>q" opens a search and closes a thought: a segment begins here and at the next token
    assert marked("x", "</think><search>q", "r", "</search>") == [False, True, True, False]
    # a marker that ends inside a token: what comes after that token is new, its tail stays with the marker
    assert marked("a</sea", "rch>b", "c") == [False, False, True]
    assert marked("<think>a<think>b", "c") == [True, False]


def test_a_marker_at_the_end_begins_nothing_and_broken_ones_neither() -> None:
    assert marked("q", "</search>") == [False, False]
    assert marked("<sear", "ch", "search>", "< search>") == [False] * 4
    assert marked() == []


def test_every_occurrence_of_a_marker_counts() -> None:
    assert marked("<search>", "a", "</search>", "<search>", "b") == [True, False, False, True, False]


def test_tokens_without_text_and_parts_of_characters_do_not_shift_the_places() -> None:
    # half a character decodes to one replacement character; a control token may decode to nothing
    assert marked("�", "�", "", "<search>", "q") == [False, False, False, True, False]
    # the marker's first character is in the token that has it, not in the empty one before
    assert marked("a", "", "<sea", "", "rch>") == [False, False, True, False, False]


def test_marker_segments_also_begin_at_turns_and_need_the_markers() -> None:
    pieces = {6: "q", 7: "x", 8: "<search>", 3: "a", 4: "b", 9: "c"}
    found = begins(three_leaves(), "marker", marking=Marking(MARKERS, lambda token: pieces[token]))
    assert found == {"t0d0": [True, False], "t1d0": [True], "t0d1": [True], "t2d1": [True, True], "t1d1": [True]}
    with pytest.raises(ValueError, match="need the environment's markers"):
        begins(three_leaves(), "marker")


@pytest.mark.parametrize("mean_length", [1.0, 2.5, 16.0])
def test_random_segments_have_the_mean_length_that_was_asked_for(mean_length: float) -> None:
    found = begins(long_turn(40_000), "random", mean_length=mean_length)
    segments = sum(found["t0d0"])
    # over n tokens the count has a deviation of sqrt(n p (1 - p)) < 100
    assert abs(segments - 40_000 / mean_length) <= 4 * (40_000 / mean_length * (1 - 1 / mean_length)) ** 0.5 + 1


def test_random_segments_follow_from_the_seed_and_differ_between_turns() -> None:
    group = long_turn(200, count=2)
    found = begins(group, "random", seed=1, mean_length=4.0)
    assert found == begins(group, "random", seed=1, mean_length=4.0)
    assert found != begins(group, "random", seed=2, mean_length=4.0)
    assert found["t0d0"] != found["t1d0"]


def with_entropies(group: Group, entropies: Mapping[str, tuple[float, ...]]) -> Group:
    return replace(group, turns=tuple(replace(one, entropies=entropies[one.uid]) for one in group.turns))


def test_the_least_certain_tokens_of_the_tree_begin_segments() -> None:
    # Seven tokens; a share of 3/7 are the entropies 0.9, 0.8 and 0.7, wherever in the tree they are: none in t2d1.
    group = with_entropies(
        three_leaves(), {"t0d0": (0.1, 0.9), "t1d0": (0.8,), "t0d1": (0.7,), "t2d1": (0.2, 0.3), "t1d1": (0.4,)}
    )
    found = begins(group, "entropy", entropy_share=3 / 7)
    assert found == {"t0d0": [True, True], "t1d0": [True], "t0d1": [True], "t2d1": [True, False], "t1d1": [True]}
    assert begins(group, "entropy", entropy_share=1.0) == begins(group, "token")
    assert begins(group, "entropy", entropy_share=0.0) == begins(group, "turn")


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # Seven tokens, in the tree's order: 0.5 0.9 | 0.5 | 0.1 | 0.5 0.5 | 0.9. Of equal ones the first count.
        (1 / 7, {"t0d0": [0, 1], "t1d0": [0], "t0d1": [0], "t2d1": [0, 0], "t1d1": [0]}),
        (2 / 7, {"t0d0": [0, 1], "t1d0": [0], "t0d1": [0], "t2d1": [0, 0], "t1d1": [1]}),
        (4 / 7, {"t0d0": [1, 1], "t1d0": [1], "t0d1": [0], "t2d1": [0, 0], "t1d1": [1]}),
        (5 / 7, {"t0d0": [1, 1], "t1d0": [1], "t0d1": [0], "t2d1": [1, 0], "t1d1": [1]}),
        (0.7, {"t0d0": [1, 1], "t1d0": [1], "t0d1": [0], "t2d1": [0, 0], "t1d1": [1]}),  # 4.9 tokens: 4
        (0.14, {"t0d0": [0, 0], "t1d0": [0], "t0d1": [0], "t2d1": [0, 0], "t1d1": [0]}),  # 0.98: none
    ],
)
def test_of_equally_uncertain_tokens_the_first_count(share: float, expected: dict[str, list[int]]) -> None:
    group = with_entropies(
        three_leaves(), {"t0d0": (0.5, 0.9), "t1d0": (0.5,), "t0d1": (0.1,), "t2d1": (0.5, 0.5), "t1d1": (0.9,)}
    )
    found = least_certain(group.turns, share)
    assert {uid: ones.tolist() for uid, ones in found.items()} == {
        uid: [bool(one) for one in ones] for uid, ones in expected.items()
    }


@pytest.mark.parametrize("share", [0.0, 0.29, 0.35, 0.57, 0.999, 1.0])
def test_the_share_of_uncertain_tokens_is_what_was_asked_for(share: float) -> None:
    rng = np.random.default_rng(0)
    drawn = with_entropies(long_turn(1000), {"t0d0": tuple(rng.random(1000).tolist())})
    equal = with_entropies(long_turn(1000), {"t0d0": (0.7,) * 1000})
    for group in (drawn, equal):
        assert least_certain(group.turns, share)["t0d0"].sum() == round(1000 * share)
    assert least_certain((), share) == {}


def test_missed_and_spurious_boundaries_have_the_share_that_was_asked_for() -> None:
    group = long_turn(1000, count=20)
    # every token is a boundary: a quarter is missed; no other token is left that could become one
    kept = within(begins(group, "token", missed=0.25, spurious=0.5))
    assert sum(kept) / len(kept) == pytest.approx(0.75, abs=0.015)
    # no token within a turn is one: a tenth becomes one, and none can be missed
    added = within(begins(group, "turn", missed=0.5, spurious=0.1))
    assert sum(added) / len(added) == pytest.approx(0.1, abs=0.01)
    assert not any(within(begins(group, "token", missed=1.0)))
    assert all(within(begins(group, "turn", spurious=1.0)))


def test_disturbing_boundaries_draws_anew_for_each_seed_and_leaves_others_alone() -> None:
    group = long_turn(200)
    assert begins(group, "token", 1, missed=0.5) == begins(group, "token", 1, missed=0.5)
    assert begins(group, "token", 1, missed=0.5) != begins(group, "token", 2, missed=0.5)
    plain = begins(group, "random", 1, mean_length=4.0)["t0d0"]
    fewer = begins(group, "random", 1, mean_length=4.0, missed=0.5)["t0d0"]
    assert all(one or not other for one, other in zip(plain, fewer, strict=True))  # nothing was added
    assert 0 < sum(fewer) < sum(plain)


def test_trajectories_that_share_a_turn_share_its_segments() -> None:
    # boundaries belong to turns: there is one array for t0d0, whoever goes through it
    found: Mapping[str, Begins] = segment_begins(
        three_leaves(), "random", SegmentConfig(mean_length=2.0), np.random.default_rng(0)
    )
    assert found.keys() == three_leaves().turn_by_uid.keys()
