"""Trees come back from their files as they were."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkgym.agents.base import FinishReason
from forkgym.envs.tasks import StopReason
from forkgym.trainers.rollouts.rollout_file import read_rollouts, write_rollouts
from forkgym.trainers.types import Group, Trajectory, Turn
from tests.trainers.small_trees import three_leaves

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text()
TOKENS = st.lists(st.integers(0, 2**31), max_size=4).map(tuple)
# Every code point, halves of surrogate pairs too: a call's JSON can hold them.
ANY_TEXTS = st.text(st.characters(exclude_categories=()))


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Trees of up to five turns; all that a record can hold."""
    size = draw(st.integers(1, 5))
    # Dyadic rewards, whose sums are exact.
    rewards = [draw(st.integers(-8, 8)) / 8 for _ in range(size)]
    parents = [draw(st.one_of(st.none(), st.integers(0, number - 1))) if number else None for number in range(size)]
    turns: list[Turn] = []
    for number, parent in enumerate(parents):
        tokens = draw(TOKENS)
        figures = st.lists(NUMBERS, min_size=len(tokens), max_size=len(tokens)).map(tuple)
        turns.append(
            Turn(
                uid=str(number),
                parent=None if parent is None else str(parent),
                tokens=tokens,
                logprobs=draw(figures),
                entropies=draw(figures),
                text=draw(ANY_TEXTS),
                finish_reason=draw(st.sampled_from(FinishReason)),
                version=draw(st.integers(0, 9)),
                observation=draw(ANY_TEXTS),
                observation_tokens=draw(TOKENS),
                tools=draw(st.lists(TEXTS, max_size=2).map(tuple)),
                error=draw(TEXTS),
                reward=rewards[number],
            )
        )
    trajectories: list[Trajectory] = []
    for leaf in sorted(set(range(size)) - set(parents)):
        paid, place = 0.0, leaf
        while True:
            paid += rewards[place]
            above = parents[place]
            if above is None:
                break
            place = above
        trajectories.append(
            Trajectory(
                leaf=str(leaf),
                reward=paid,
                accuracy=draw(NUMBERS),
                stop_reason=draw(st.sampled_from(StopReason)),
                parts=draw(st.dictionaries(TEXTS, NUMBERS, max_size=2)),
                extraction=draw(TEXTS),
            )
        )
    return Group(
        env_id=draw(TEXTS),
        task_uid=draw(TEXTS),
        question=draw(ANY_TEXTS),
        answer=draw(ANY_TEXTS),
        prompt_tokens=draw(TOKENS),
        turns=tuple(turns),
        trajectories=tuple(trajectories),
    )


@settings(max_examples=30)
@given(written=st.lists(groups(), max_size=3))
def test_trees_come_back_equal(tmp_path_factory: pytest.TempPathFactory, written: list[Group]) -> None:
    path = tmp_path_factory.mktemp("rollouts") / "step-000010.jsonl"
    write_rollouts(path, written)
    read = read_rollouts(path)
    # repr tells more than equality: 0.0 from -0.0, 1 from 1.0, an enum from its text.
    assert read == written
    assert repr(read) == repr(written)
    assert len(path.read_bytes().splitlines()) == len(written)


def test_the_layout(tmp_path: Path) -> None:
    group = three_leaves()
    assert group.path("t1d1")  # fills a cache of the group's, which is no field
    write_rollouts(tmp_path / "file", [group, group])
    first, second = (tmp_path / "file").read_text(encoding="utf-8").splitlines()
    assert first == second
    tree = json.loads(first)
    assert tree["turns"][0] == {
        "uid": "t0d0",
        "parent": None,
        "tokens": [3, 4],
        "logprobs": [-1.0, -1.0],
        "entropies": [0.5, 0.5],
        "text": "",
        "finish_reason": "stop",
        "version": 0,
        "observation": "",
        "observation_tokens": [5],
        "tools": [],
        "error": "",
        "reward": 0.0,
    }
    assert tree["trajectories"][0] == {
        "leaf": "t0d1",
        "reward": 1.0,
        "accuracy": 1.0,
        "stop_reason": "answered",
        "parts": {},
        "extraction": "",
    }
    rest = {name: value for name, value in tree.items() if name not in ("turns", "trajectories")}
    assert rest == {
        "env_id": "toy",
        "task_uid": "toy/0",
        "question": "?",
        "answer": "!",
        "prompt_tokens": [1, 2],
        "num_initial": None,
    }
    assert (len(tree["turns"]), len(tree["trajectories"])) == (5, 3)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    path = tmp_path / "file"
    good = three_leaves()
    write_rollouts(path, [good])
    broken = replace(good, turns=(replace(good.turns[0], logprobs=(number, -1.0)), *good.turns[1:]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rollouts(path, [good, broken])
    assert read_rollouts(path) == [good]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"turns": 1',
        json.dumps({"prompt_tokens": [], "turns": [{}], "trajectories": []}),
        json.dumps({"prompt_tokens": [], "turns": [], "trajectories": []}),
    ],
)
def test_a_line_that_is_no_tree_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "file"
    write_rollouts(path, [three_leaves()])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"file, line 2: expected a tree of turns"):
        read_rollouts(path)


def test_a_tree_that_does_not_hold_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_rollouts(path, [three_leaves()])
    path.write_text(path.read_text(encoding="utf-8").replace('"parent": "t1d0"', '"parent": "t0d1"'), encoding="utf-8")
    with pytest.raises(ValueError, match="leaves"):
        read_rollouts(path)
