"""`TextSpace`, alone and in vector environments."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Tuple
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.vector import utils as vector_utils
from hypothesis import given
from hypothesis import strategies as st

from forkgym.envs.math_env import MathEnv
from forkgym.envs.space import TextSpace
from forkgym.envs.tasks import Task
from forkgym.envs.vector_space import SharedTexts
from forkgym.tools.base import as_tool

utils: Any = vector_utils  # its types allow for no spaces of others
VECTOR_KINDS: dict[str, Callable[[list[Callable[[], gym.Env[str, str]]]], Any]] = {
    "sync": SyncVectorEnv,
    "async": lambda makers: AsyncVectorEnv(makers, shared_memory=False),
    "async, shared memory": AsyncVectorEnv,
}


def test_contains() -> None:
    space = TextSpace(max_length=3)
    assert "" in space and "a\ud800\0" in space
    assert "abcd" not in space
    assert 3 not in space and b"abc" not in space
    assert "a" * 2_000_000 in TextSpace()


@pytest.mark.parametrize("max_length", [0, -1])
def test_a_limit_is_positive(max_length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length is {max_length}"):
        TextSpace(max_length)


def test_samples_are_seeded_and_contained() -> None:
    one, other = TextSpace(max_length=5, seed=3), TextSpace(max_length=5, seed=3)
    samples = [one.sample() for _ in range(50)]
    assert samples == [other.sample() for _ in range(50)]
    assert all(sample in one for sample in samples)
    assert {len(sample) for sample in samples} == {1, 2, 3, 4, 5}
    assert max(len(TextSpace(seed=0).sample()) for _ in range(50)) <= 32
    with pytest.raises(ValueError, match="no mask"):
        one.sample(mask=np.ones(3))


def test_equality_copies_and_pickles() -> None:
    space = TextSpace(5, seed=1)
    assert space == TextSpace(5) and hash(space) == hash(TextSpace(5))
    assert space != TextSpace(6) and space != TextSpace() and space != 5
    assert repr(space) == "TextSpace(max_length=5)"
    assert not space.is_np_flattenable
    for twin in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert twin == space
        assert twin.sample() == copy.deepcopy(space).sample()
    copy.deepcopy(space).sample()
    assert space.sample() == TextSpace(5, seed=1).sample()


@given(st.lists(st.text(st.characters(codec=None), max_size=20), min_size=1, max_size=4))
def test_shared_memory_holds_every_text(texts: list[str]) -> None:
    space = TextSpace(max_length=20)
    memory = utils.create_shared_memory(space, n=len(texts))
    view = utils.read_from_shared_memory(space, memory, n=len(texts))
    assert list(view) == [""] * len(texts)
    for index, text in enumerate(texts):
        utils.write_to_shared_memory(space, index, text, memory)
    assert copy.deepcopy(view) == tuple(texts)  # the view that was made before is live
    for index in range(len(texts)):
        utils.write_to_shared_memory(space, index, "", memory)
    assert tuple(view) == ("",) * len(texts)


def test_a_view_is_a_sequence() -> None:
    space = TextSpace(max_length=4)
    memory = utils.create_shared_memory(space, n=3)
    view = utils.read_from_shared_memory(space, memory, n=3)
    for index, text in enumerate(("one", "\U0001f600" * 4, "")):  # four bytes a character: a slot filled to its end
        utils.write_to_shared_memory(space, index, text, memory)
    assert isinstance(view, SharedTexts)
    assert (view[0], view[-1], view[:2], len(view)) == ("one", "", ("one", "\U0001f600" * 4), 3)
    with pytest.raises(IndexError):
        view[3]


def test_what_does_not_fit_into_shared_memory_is_refused() -> None:
    space = TextSpace(max_length=4)
    memory = utils.create_shared_memory(space, n=1)
    with pytest.raises(ValueError, match=r"5 characters does not fit TextSpace\(max_length=4\)"):
        utils.write_to_shared_memory(space, 0, "12345", memory)
    with pytest.raises(ValueError, match="expected a max_length"):
        utils.create_shared_memory(TextSpace(), n=1)


def test_batches_are_tuples() -> None:
    space = TextSpace(max_length=4)
    batched = utils.batch_space(space, 2)
    assert isinstance(batched, Tuple)
    assert ("a", "b") in batched and ("a", "too long") not in batched
    assert list(utils.iterate(batched, ("a", "b"))) == ["a", "b"]
    assert utils.create_empty_array(space, n=2) == ("", "")
    assert utils.concatenate(space, ["a", "b"], None) == ("a", "b")
    differing = utils.batch_differing_spaces([space, TextSpace(1)])
    assert ("abc", "d") in differing and ("abc", "de") not in differing


class Questions:
    size = 4

    def __getitem__(self, index: int) -> Task:
        return Task(question="\u00e9\U0001f600" * index, answer=str(index), uid=f"questions/{index}")


def repeat(times: str) -> str:
    """Repeat a letter."""
    return "\u00e4" * int(times)


def make_questions() -> gym.Env[str, str]:
    return MathEnv(taskset=Questions(), tools=[as_tool(repeat, inline=True)], max_turns=3)


# Newer Pythons warn of every fork of a process with threads, which libraries start at import.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS))
def test_vector_environments_give_the_texts_of_single_ones(kind: str) -> None:
    # The replies get longer, shorter and empty again: what a stale view or a slot that is not cleared would show.
    turns = [
        ("<repeat>900</repeat>", "<repeat>1</repeat>", "nothing"),
        ("<repeat>2</repeat>", "<answer>0</answer>", "<repeat>0</repeat>"),
    ]
    singles = [make_questions() for _ in range(3)]
    vector = VECTOR_KINDS[kind]([make_questions] * 3)
    try:
        observations, info = vector.reset(seed=[0, 1, 2])
        expected = [single.reset(seed=seed) for seed, single in enumerate(singles)]
        assert observations == tuple(outcome[0] for outcome in expected)
        assert observations in vector.observation_space
        assert list(info["task_uid"]) == [outcome[1]["task_uid"] for outcome in expected]
        before = observations
        for actions in turns:
            observations, rewards, terminations, truncations, info = vector.step(actions)
            outcomes = [single.step(action) for single, action in zip(singles, actions, strict=True)]
            assert observations == tuple(outcome[0] for outcome in outcomes)
            assert rewards.tolist() == [outcome[1] for outcome in outcomes]
            assert terminations.tolist() == [outcome[2] for outcome in outcomes]
            assert truncations.tolist() == [outcome[3] for outcome in outcomes]
            assert list(info["stop_reason"]) == [outcome[4]["stop_reason"] for outcome in outcomes]
            assert info["tool_calls"].tolist() == [outcome[4]["tool_calls"] for outcome in outcomes]
        assert before == tuple(outcome[0] for outcome in expected)  # what was returned does not change
    finally:
        vector.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_make_vec(mode: str) -> None:
    vector = gym.make_vec("forkgym/WordMath-v0", num_envs=2, vectorization_mode=mode)
    try:
        observations, info = vector.reset(seed=7)
        single = gym.make("forkgym/WordMath-v0")
        assert observations == tuple(single.reset(seed=seed)[0] for seed in (7, 8))
        assert len(set(info["question"])) == 2
    finally:
        vector.close()
