"""Mixtures: whose task an index is, what follows the active environment, and exact forks from one to another."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.error import ResetNeeded

import forkgym.envs
from forkgym.envs import fork
from forkgym.envs.base import ToolEnv
from forkgym.envs.checking import check_tool_env
from forkgym.envs.config import EnvConfig, make_envs
from forkgym.envs.mixture import MixtureEnv
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.envs.wordmath import WordMathEnv
from forkgym.tools.base import as_tool

MakeEnv = Callable[..., gym.Env[str, str]]

GSM8K, HOTPOTQA, WORDMATH, MULTIHOP = (f"forkgym/{name}-v0" for name in ("GSM8K", "HotpotQA", "WordMath", "MultiHop"))


@pytest.fixture
def mixture(small_arguments: dict[str, dict[str, Any]]) -> MixtureEnv:
    """Two places in three for GSM8K's three tasks, one for HotpotQA's two."""
    return MixtureEnv(
        envs={
            GSM8K: {"weight": 2, **small_arguments[GSM8K]},
            HOTPOTQA: {"weight": 1, **small_arguments[HOTPOTQA], "grammar": "search_r1"},
        }
    )


def test_an_index_is_the_same_task_always(mixture: MixtureEnv) -> None:
    # The cycle is GSM8K, HotpotQA, GSM8K; where an environment has no more tasks, its first comes again.
    uids = [mixture.task(index).uid for index in range(9)]
    assert uids == [
        "gsm8k/test/0",
        "hotpotqa/validation/0",
        "gsm8k/test/1",
        "gsm8k/test/2",
        "hotpotqa/validation/1",
        "gsm8k/test/0",
        "gsm8k/test/1",
        "hotpotqa/validation/0",
        "gsm8k/test/2",
    ]
    assert mixture.num_tasks is None
    for index in (8, 0, 4):
        _, info = mixture.reset(options={"index": index})
        assert info["task_uid"] == uids[index] == mixture.current_task.uid
        assert (info["task_index"], info["env_id"]) == (float(index), HOTPOTQA if index == 4 else GSM8K)


def test_reset_draws_by_weight(mixture: MixtureEnv) -> None:
    mixture.reset(seed=0)
    drawn = Counter(mixture.reset()[1]["env_id"] for _ in range(300))
    # 200 of 300 are expected, with a deviation of sqrt(300 * 2/9) = 8.
    assert 168 <= drawn[GSM8K] <= 232
    mixture.reset(seed=0)
    assert Counter(mixture.reset()[1]["env_id"] for _ in range(300)) == drawn


def test_everything_is_the_active_environments(mixture: MixtureEnv) -> None:
    observation, info = mixture.reset(options={"index": 0})
    assert (mixture.tool_names, mixture.grammar.name, mixture.max_turns) == (("calculator",), "arpo", 12)
    assert mixture.stop_strings == ("</calculator>", "</answer>")
    assert mixture.instructions == info["instructions"]
    assert mixture.prompt_of(observation) == mixture.active.prompt_of(observation)
    observation, *_, info = mixture.step("<calculator>3*8</calculator>")
    assert (observation, info["env_id"], info["tool_calls"]) == ("<result>24</result>", GSM8K, 1.0)

    mixture.reset(options={"index": 1})
    assert (mixture.tool_names, mixture.grammar.name, mixture.max_turns) == (("search",), "search_r1", 6)
    assert "<information>" in mixture.markers
    assert mixture.render_step(SolutionStep("Norway")) == "<answer>Norway</answer>"
    _, reward, terminated, _, info = mixture.step("<answer>Norway</answer>")
    assert (reward, terminated, info["reward/f1"], info["env_id"]) == (1.0, True, 1.0, HOTPOTQA)
    with pytest.raises(ResetNeeded):
        mixture.step("<answer>Norway</answer>")


def test_all_of_a_tool_env_is_answered_by_the_active_environment(mixture: MixtureEnv) -> None:
    own = {"metadata", "held_out_split", "num_tasks", "task", "reset", "step", "close", "fork", "snapshot", "restore"}
    for name, value in vars(ToolEnv).items():
        if name.startswith("_") or name in own:
            continue
        assert isinstance(getattr(MixtureEnv, name), property), name
        if not isinstance(value, property):
            assert getattr(mixture, name) == getattr(mixture.active, name)


class Shouting(WordMathEnv):
    """An environment that overrides a detail."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """One more than usual."""
        return (*super().stop_strings, "!!!")


def test_what_an_environment_overrides_counts() -> None:
    mixture = MixtureEnv(envs={f"{__name__}:Shouting": 1.0})
    assert "!!!" in mixture.stop_strings
    assert mixture.env_ids == (f"{__name__}:Shouting",)


def test_forks_go_their_own_ways(mixture: MixtureEnv) -> None:
    mixture.reset(seed=3, options={"index": 0})
    mixture.step("<calculator>3*8</calculator>")
    twin = mixture.fork()
    assert twin.active is not mixture.active
    twin.reset(options={"index": 1})
    assert (twin.tool_names, mixture.tool_names) == (("search",), ("calculator",))
    assert mixture.step("<answer>20</answer>")[1] == 1.0
    assert twin.step("<answer>Norway</answer>")[1] == 1.0
    # Both have drawn as much since the fork, the seed of an episode.
    mixture.reset(options={"index": 2})
    assert [mixture.reset()[1]["task_index"] for _ in range(5)] == [twin.reset()[1]["task_index"] for _ in range(5)]


def test_forks_of_one_that_was_never_reset_share_no_episode(mixture: MixtureEnv) -> None:
    one, other = mixture.fork(), mixture.fork()
    one.reset(options={"index": 0})
    with pytest.raises(ResetNeeded):
        _ = other.current_task
    other.reset(options={"index": 2})
    assert (one.current_task.uid, other.current_task.uid) == ("gsm8k/test/0", "gsm8k/test/1")


def test_a_snapshot_brings_back_the_environment_and_its_episode(mixture: MixtureEnv) -> None:
    mixture.reset(seed=0, options={"index": 1})
    mixture.step("<search>Glass Harbour</search>")
    state = json.loads(json.dumps(mixture.snapshot()))
    drawn = mixture.reset()[1]["task_index"]
    mixture.reset(options={"index": 0})
    mixture.restore(state)
    assert mixture.snapshot() == state
    *_, info = mixture.step("<answer>Norway</answer>")
    assert (info["turns"], info["env_id"], info["accuracy"]) == (2.0, HOTPOTQA, 1.0)
    assert mixture.reset()[1]["task_index"] == drawn


class Dice(ToolEnv):
    """Asks what the environment's own randomness came to."""

    def __init__(self) -> None:
        super().__init__(tools=[as_tool(noted, inline=True)])

    def task(self, index: int) -> Task:
        """Task ``index``."""
        return Task(f"Guess {index}", "1", uid=f"dice/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """A number from the environment's generator."""
        return {"correct": 0.0, "roll": float(self.np_random.random())}


def noted(text: str) -> str:
    """Note it."""
    return text


def test_the_randomness_of_an_environment_follows_from_the_mixtures() -> None:
    rolls: list[float] = []
    for _ in range(2):
        mixture = MixtureEnv(envs={f"{__name__}:Dice": 1})
        mixture.reset(seed=5)
        rolls += [mixture.step("<answer>?</answer>")[-1]["reward/roll"]]
        mixture.reset()
        rolls += [mixture.step("<answer>?</answer>")[-1]["reward/roll"]]
    assert rolls[:2] == rolls[2:]
    assert rolls[0] != rolls[1]


def test_options_of_all_and_of_one(corpus_file: Path, small_arguments: dict[str, dict[str, Any]]) -> None:
    mixture = MixtureEnv(
        envs={WORDMATH: {"weight": 1, "max_turns": 3}, HOTPOTQA: {"weight": 1, **small_arguments[HOTPOTQA]}},
        corpus=str(corpus_file),  # WordMath takes none
        max_turns=2,
        split="held-out",
    )
    wordmath, hotpotqa = mixture.templates
    assert (wordmath.max_turns, hotpotqa.max_turns) == (3, 2)
    assert (wordmath.task(0).uid.split("/")[1], hotpotqa.task(0).uid.split("/")[1]) == ("test", "validation")
    mixture.reset(options={"index": 1})
    assert mixture.step("<search>Grey Heron</search>")[0] == "<result>Grey Heron: Grey Heron is a river boat.</result>"


def test_arpos_setting_mathematics_and_search_out_of_one_file(small_arguments: dict[str, dict[str, Any]]) -> None:
    names = ("forkgym/VerlMath-v0", "forkgym/VerlSearch-v0")
    mixture = MixtureEnv(envs=dict.fromkeys(names, 0.5), **small_arguments["forkgym/VerlSearch-v0"])
    assert [mixture.task(index).uid for index in range(4)] == [f"verl/train/{row}" for row in (0, 1, 2, 4)]
    check_tool_env(mixture, episodes=4)  # a Python session is forked, and restored from a snapshot
    mixture.reset(options={"index": 0})
    mixture.step("<python>a = 3</python>")
    twin = mixture.fork()
    assert twin.step("<python>a + 1</python>")[0] == mixture.step("<python>a + 1</python>")[0]
    assert not mixture.inline
    mixture.reset(options={"index": 1})
    assert mixture.inline
    twin.close()


class Bare(ToolEnv):
    """An environment that takes no options."""

    def __init__(self) -> None:
        super().__init__()

    def task(self, index: int) -> Task:
        """Task ``index``."""
        return Task("?", "!", uid=f"bare/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """1 where they agree."""
        return {"correct": float(answer == task.answer)}


def test_what_scripts_always_give_may_be_taken_by_none() -> None:
    (env,) = make_envs(EnvConfig(id=(f"{__name__}:bare_mixture",), grammar="arpo")).values()
    assert env.reset(options={"index": 3})[1]["task_uid"] == "bare/3"


def bare_mixture(split: str, grammar: str) -> MixtureEnv:
    """As the scripts make one."""
    return MixtureEnv(envs={f"{__name__}:Bare": 1}, split=split, grammar=grammar)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"envs": {}}, "weights are ''"),
        ({"envs": {WORDMATH: 0}}, "weights are '0.0', expected"),
        ({"envs": {WORDMATH: {"difficulty": 1}}}, r"envs\['forkgym/WordMath-v0'\] is .*expected a weight"),
        ({"envs": {WORDMATH: {"weight": 1, "corpus": "c"}}}, "corpus: forkgym/WordMath-v0 takes no such option"),
        ({"envs": {WORDMATH: 1, MULTIHOP: 1}, "corpus": "c"}, "corpus: forkgym/WordMath-v0, forkgym/MultiHop-v0 takes"),
        ({"envs": {"forkgym/Nothing-v0": 1}}, "'forkgym/Nothing-v0'"),
        ({"envs": {"CartPole-v1": 1}}, "'CartPole-v1' is no environment of text"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MixtureEnv(**arguments)


def test_a_mixture_in_a_mixture_and_copies() -> None:
    env = MixtureEnv(envs={"forkgym/Mixture-v0": 1, WORDMATH: 1})
    check_tool_env(env, episodes=2)
    _, info = env.reset(options={"index": 2})  # the inner mixture's task 1, which is the first of MultiHop
    assert env.current_task.uid == info["task_uid"] == "multihop-1/train/0"
    assert (info["env_id"], info["task_index"]) == (MULTIHOP, 2.0)
    assert copy.deepcopy(env).step("?") == env.step("?")


def test_a_users_own_mixture_is_a_row(small_arguments: dict[str, dict[str, Any]]) -> None:
    envs = {GSM8K: {"weight": 0.7, **small_arguments[GSM8K]}, MULTIHOP: 0.3}
    gym.register("third_party/Mine-v0", entry_point="forkgym.envs.mixture:MixtureEnv", kwargs={"envs": envs})
    try:
        env: gym.Env[str, str] = gym.make("third_party/Mine-v0")
        check_tool_env(env, episodes=4)
        env.reset(seed=1)
        assert isinstance(fork(env).unwrapped, MixtureEnv)
    finally:
        del gym.registry["third_party/Mine-v0"]


def test_the_default_needs_no_data() -> None:
    assert forkgym.envs.MIXTURE == {WORDMATH: 0.5, MULTIHOP: 0.5}
    env = gym.make("forkgym/Mixture-v0").unwrapped
    assert isinstance(env, MixtureEnv)
    assert [env.task(index).uid.split("/")[0] for index in range(4)] == ["wordmath-1", "multihop-1"] * 2
