"""Trees that grow: budget, branching, limits, and independence of who is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

from forkgym.agents.base import Event, FirstTokens, Request
from forkgym.agents.scripted import ScriptedAgent
from forkgym.envs.base import ToolEnv
from forkgym.envs.grammar import Prompt
from forkgym.envs.tasks import StopReason, Task
from forkgym.tools.base import Tool, ToolFailure, as_tool
from forkgym.trainers.algorithms.table import Branching
from forkgym.trainers.config import BranchingConfig, RolloutConfig
from forkgym.trainers.rollouts.branching import EntropyScale
from forkgym.trainers.rollouts.rollout import Rollout, RolloutSettings, TaskRef, roll_out
from forkgym.trainers.runs.metrics import rollout_metrics
from forkgym.trainers.types import Group, RewardError


def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


class ShoutEnv(ToolEnv):
    """The right answer is a Y; a tool says things louder."""

    def __init__(self, tool: Tool | None = None, max_turns: int = 6) -> None:
        super().__init__(tools=[tool or as_tool(shout, inline=True)], max_turns=max_turns)

    def task(self, index: int) -> Task:
        """Task ``index``: always the same question."""
        return Task("What?", "Y", uid=f"shout/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """1 where the answers agree."""
        return {"correct": float(answer == task.answer)}


CALL, CALL_AGAIN, ANSWER = "<shout>a</shout>", "<shout>b</shout>", "<answer>Y</answer>"
REPLIES = (CALL, CALL_AGAIN, ANSWER)


def grow(
    agent: ScriptedAgent,
    config: RolloutConfig,
    *,
    branching: Branching = "entropy",
    tasks: int = 1,
    tool: Tool | None = None,
) -> Rollout:
    envs: dict[str, gym.Env[str, str]] = {"shout": ShoutEnv(tool)}
    settings = RolloutSettings(config, branching, temperature=1.0, seed=(0,))
    return roll_out(agent, envs, [TaskRef("shout", index) for index in range(tasks)], settings)


def shape(group: Group) -> list[tuple[str, str | None]]:
    return [(turn.uid, turn.parent) for turn in group.turns]


def by_turn(*entropies: float) -> Callable[[Request, int, int], float]:
    """An entropy for each turn, the same at each of its tokens."""
    return lambda request, turn, position: entropies[turn]


def test_without_branches_every_trajectory_starts_from_the_prompt() -> None:
    envs: dict[str, gym.Env[str, str]] = {"shout": ShoutEnv()}
    config = RolloutConfig(num_generations=3, initial_generations=1)
    settings = RolloutSettings(config, branching="none", temperature=1.0, seed=(0,))
    (group,) = roll_out(ScriptedAgent(REPLIES), envs, [TaskRef("shout", 7)], settings).groups
    assert group.task_uid == "shout/7"
    assert shape(group) == [(f"t{i}d{d}", f"t{i}d{d - 1}" if d else None) for d in range(3) for i in range(3)]
    assert [one.reward for one in group.trajectories] == [1.0, 1.0, 1.0]
    first = group.turns[0]
    assert (first.text, first.observation, first.tools) == (CALL, "<result>A</result>", ("shout",))


def test_a_branch_starts_before_the_turn_that_caused_it() -> None:
    # Entropy rises at the second turn alone: 0.1 at first, then 0.9, then 0.1. Threshold on the published scale:
    # P = 0.5 + 0.2 * 0.8 / log(256) = 0.5289, or 0.5 where nothing changed.
    config = RolloutConfig(
        num_generations=4,
        initial_generations=2,
        branching=BranchingConfig(rule="threshold", scale="vocabulary", threshold=0.52, tokens=4),
    )
    rollout = grow(ScriptedAgent(REPLIES, entropy=by_turn(0.1, 0.9, 0.1)), config)
    assert shape(rollout.groups[0]) == [
        ("t0d0", None),
        ("t1d0", None),
        ("t0d1", "t0d0"),
        ("t1d1", "t1d0"),
        ("t2d1", "t0d0"),
        ("t3d1", "t1d0"),
        *((f"t{i}d2", f"t{i}d1") for i in range(4)),
    ]
    # At depth 1 both initial trajectories, at depth 2 all four; the branches' own first turns stand at a decided one.
    assert rollout.entropy_changes == pytest.approx((0.8, 0.8, 0.0, 0.0, 0.0, 0.0))


def test_budget_goes_to_the_shallow_then_to_the_first() -> None:
    config = RolloutConfig(
        num_generations=4, initial_generations=3, branching=BranchingConfig(rule="threshold", threshold=0.4, tokens=4)
    )
    (group,) = grow(ScriptedAgent(REPLIES), config).groups
    assert [turn for turn in shape(group) if turn[0].startswith("t3")] == [("t3d1", "t0d0"), ("t3d2", "t3d1")]


def test_what_branching_leaves_over_becomes_fresh_trajectories() -> None:
    config = RolloutConfig(
        num_generations=5, initial_generations=2, branching=BranchingConfig(rule="threshold", threshold=0.99, tokens=4)
    )
    (group,) = grow(ScriptedAgent(REPLIES), config).groups
    assert len(group.trajectories) == len({one.leaf for one in group.trajectories}) == 5
    assert [uid for uid, parent in shape(group) if parent is None] == [f"t{i}d0" for i in range(5)]


def test_width_counts_the_continuation_that_is_kept() -> None:
    config = RolloutConfig(
        num_generations=16,
        initial_generations=1,
        branching=BranchingConfig(rule="threshold", threshold=0.4, tokens=4, width=3),
    )
    (group,) = grow(ScriptedAgent(REPLIES), config).groups
    assert sum(parent == "t0d0" for _, parent in shape(group)) == 3


def test_fixed_width_branches_at_every_boundary_until_the_budget_is_spent() -> None:
    # Three ways at the boundary of each initial trajectory: 2 + 2 * 2 = 6. The seventh leaves the first at depth 2.
    config = RolloutConfig(num_generations=7, initial_generations=2, branching=BranchingConfig(width=3))
    rollout = grow(ScriptedAgent(REPLIES), config, branching="fixed")
    assert shape(rollout.groups[0]) == [
        ("t0d0", None),
        ("t1d0", None),
        *(("t0d1", "t0d0"), ("t1d1", "t1d0")),
        *(("t2d1", "t0d0"), ("t3d1", "t0d0"), ("t4d1", "t1d0"), ("t5d1", "t1d0")),
        *((f"t{i}d2", f"t{i}d1") for i in range(6)),
        ("t6d2", "t0d1"),
    ]
    assert rollout.entropy_changes == ()  # nothing was looked at


@pytest.mark.parametrize("branching", ["fixed", "random"])
def test_what_looks_at_no_token_waits_for_none(branching: Branching) -> None:
    waits: list[int] = []

    class Noting(ScriptedAgent):
        def submit(self, request: Request) -> None:
            waits.append(request.report_after)
            super().submit(request)

    grow(Noting(REPLIES), RolloutConfig(), branching=branching)
    assert set(waits) == {0}


def test_random_branching_does_not_look_at_entropies() -> None:
    config = RolloutConfig(num_generations=32, initial_generations=8, branching=BranchingConfig(alpha=0.25))
    low = grow(ScriptedAgent(REPLIES, entropy=by_turn(5.0, 0.0, 0.0)), config, branching="random", tasks=40)
    high = grow(ScriptedAgent(REPLIES, entropy=by_turn(0.0, 5.0, 5.0)), config, branching="random", tasks=40)
    assert [shape(group) for group in low.groups] == [shape(group) for group in high.groups]
    # 40 * 8 boundaries at depth 1, a quarter of which branch: 80, with a standard deviation of 7.7.
    branched = sum(uid.endswith("d1") for group in low.groups for uid, _ in shape(group)) - 320
    fresh = sum(parent is None for group in low.groups for _, parent in shape(group)) - 320
    assert abs(branched - fresh - 80) < 4 * 7.7


@pytest.mark.parametrize(("tokens", "change", "branches"), [(1, 0.4 - 0.5, False), (2, (0.4 + 9) / 2 - 0.5 / 2, True)])
def test_with_one_token_the_entropy_is_that_of_the_state(tokens: int, change: float, branches: bool) -> None:
    # The first entropy of a turn is the state's, and falls at the tool's reply; the others depend on what was sampled.
    branching = BranchingConfig(rule="threshold", scale="vocabulary", tokens=tokens)
    config = RolloutConfig(num_generations=2, initial_generations=1, branching=branching)

    def entropy(request: Request, turn: int, position: int) -> float:
        first, others = (0.5, 0.0) if turn == 0 else (0.4, 9.0)
        return first if position == 0 else others

    rollout = grow(ScriptedAgent(REPLIES, entropy=entropy), config)
    assert rollout.entropy_changes[0] == pytest.approx(change)
    assert (("t1d1", "t0d0") in shape(rollout.groups[0])) == branches


def answer_early(request: Request, turn: int) -> str:
    """Answer after 0, 1 or 2 calls, or never."""
    return ANSWER if request.seed % 4 == 0 else CALL


@pytest.mark.parametrize(("total", "initial"), [(1, 1), (5, 1), (9, 3), (7, 7)])
@pytest.mark.parametrize("branching", ["entropy", "fixed", "random", "none"])
def test_a_group_has_its_budget_of_distinct_trajectories(branching: Branching, total: int, initial: int) -> None:
    config = RolloutConfig(num_generations=total, initial_generations=initial, branching=BranchingConfig(tokens=4))
    for group in grow(ScriptedAgent(answer_early), config, branching=branching, tasks=20).groups:
        assert len(group.trajectories) == len({one.leaf for one in group.trajectories}) == total
        indices = {turn.uid.split("d")[0] for turn in group.turns}
        assert indices == {f"t{index}" for index in range(total)}  # each sampled a turn of its own at least
        roots = [uid for uid, parent in shape(group) if parent is None]
        assert group.num_initial == (total if branching == "none" else initial) <= len(roots)
        assert roots[:initial] == [f"t{index}d0" for index in range(initial)]


def random_entropy(seed: int) -> Callable[[Request, int, int], float]:
    return lambda request, turn, position: float(np.random.default_rng((seed, request.seed, position)).random())


class SlowAgent(ScriptedAgent):
    """Keeps some turns back for a while, in an order drawn at random."""

    def __init__(self, replies: Sequence[str], entropy: Callable[[Request, int, int], float], order: int) -> None:
        super().__init__(replies, entropy=entropy)
        self.rng = np.random.default_rng(order)
        self.waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        """Keep the request back."""
        self.waiting.append(request)

    def step(self) -> Sequence[Event]:
        """Let some requests through, shuffled."""
        self.rng.shuffle(self.waiting)
        passed = int(self.rng.integers(1, 4))
        for request in self.waiting[:passed]:
            super().submit(request)
        del self.waiting[:passed]
        return super().step()


@pytest.mark.parametrize("order", range(12))
@pytest.mark.parametrize(("total", "initial"), [(9, 3), (5, 4), (6, 4)])
@pytest.mark.parametrize("branching", ["entropy", "fixed", "random"])
def test_the_tree_does_not_depend_on_who_is_faster(branching: Branching, order: int, total: int, initial: int) -> None:
    config = RolloutConfig(num_generations=total, initial_generations=initial, branching=BranchingConfig(tokens=4))
    scripted = grow(ScriptedAgent(REPLIES, entropy=random_entropy(1)), config, tasks=2, branching=branching)
    slow = grow(SlowAgent(REPLIES, random_entropy(1), order), config, tasks=2, branching=branching)
    assert slow.groups == scripted.groups
    assert slow.entropy_changes == scripted.entropy_changes


def test_the_same_seed_gives_the_same_tree_and_another_one_another() -> None:
    config = RolloutConfig(num_generations=12, initial_generations=3, branching=BranchingConfig(tokens=4))

    def shapes(seed: int) -> list[tuple[str, str | None]]:
        settings = RolloutSettings(config, "entropy", temperature=1.0, seed=(seed,))
        return shape(roll_out(ScriptedAgent(REPLIES), {"shout": ShoutEnv()}, [TaskRef("shout", 0)], settings).groups[0])

    assert shapes(1) == shapes(1)
    assert len({tuple(shapes(seed)) for seed in range(8)}) > 1


def test_every_seed_of_a_group_differs() -> None:
    seeds: list[int] = []

    class Noting(ScriptedAgent):
        def submit(self, request: Request) -> None:
            seeds.append(request.seed)
            super().submit(request)

    grow(Noting(REPLIES), RolloutConfig(branching=BranchingConfig(tokens=4)), tasks=3)
    assert len(seeds) == len(set(seeds))


def test_slow_tools_run_beside_each_other_and_change_nothing() -> None:
    def nap(text: str) -> str:
        """Say it louder."""
        time.sleep(0.002 if text == "a" else 0.001)
        return text.upper()

    config = RolloutConfig(num_generations=8, initial_generations=4, branching=BranchingConfig(tokens=4))
    quick = grow(ScriptedAgent(REPLIES, entropy=random_entropy(2)), config)
    slow = grow(ScriptedAgent(REPLIES, entropy=random_entropy(2)), config, tool=as_tool(nap, name="shout"))
    assert slow.groups == quick.groups


def test_the_baseline_is_the_trajectorys_own_first_turn() -> None:
    # Two rollouts of one agent with first turns of different entropy: each change is against its own.
    config = RolloutConfig(
        num_generations=2, initial_generations=1, branching=BranchingConfig(rule="threshold", threshold=0.99)
    )
    agent_low = ScriptedAgent(REPLIES, entropy=by_turn(0.1, 0.5, 0.5))
    agent_high = ScriptedAgent(REPLIES, entropy=by_turn(0.4, 0.5, 0.5))
    assert grow(agent_low, config).entropy_changes == pytest.approx((0.4, 0.4))
    assert grow(agent_high, config).entropy_changes == pytest.approx((0.1, 0.1))


def test_a_turn_that_is_cut_off_is_malformed_not_the_end() -> None:
    config = RolloutConfig(num_generations=1, initial_generations=1, max_turn_tokens=20)
    replies = ("<shout>" + "x" * 100 + "</shout>", "<answer>Y</answer>")
    (group,) = grow(ScriptedAgent(replies), config).groups
    assert [turn.error for turn in group.turns] == ["unclosed", ""]
    assert len(group.turns[0].tokens) == 20
    assert group.trajectories[0].reward == 1.0


def test_the_total_limit_ends_a_trajectory_without_a_reward() -> None:
    envs: dict[str, gym.Env[str, str]] = {"shout": ShoutEnv()}
    prompt = len(ScriptedAgent(REPLIES).codec.encode_prompt(Prompt(ShoutEnv().instructions, "What?")))
    config = RolloutConfig(num_generations=1, initial_generations=1, max_total_tokens=prompt + 60)
    settings = RolloutSettings(config, branching="none", temperature=1.0, seed=(0,))
    (group,) = roll_out(ScriptedAgent(REPLIES), envs, [TaskRef("shout", 0)], settings).groups
    # 16 + 18 tokens of call and result, twice, are over 60.
    assert group.trajectories[0].stop_reason is StopReason.TOTAL_TOKEN_LIMIT
    assert group.trajectories[0].reward == 0.0
    used = prompt + sum(len(turn.tokens) + len(turn.observation_tokens) for turn in group.turns)
    assert used >= prompt + 60


def test_first_tokens_come_from_after_the_reply() -> None:
    # The entropy before the tool's reply is high, after it low: nothing may branch on the former.
    config = RolloutConfig(
        num_generations=2, initial_generations=1, branching=BranchingConfig(tokens=2, rule="threshold")
    )

    def entropy(request: Request, turn: int, position: int) -> float:
        return 5.0 if turn == 0 and position > 2 else 0.0

    assert grow(ScriptedAgent(REPLIES, entropy=entropy), config).entropy_changes == (0.0, 0.0)


def test_metrics_count_each_turn_of_a_tree_once() -> None:
    config = RolloutConfig(
        num_generations=2, initial_generations=1, branching=BranchingConfig(rule="threshold", threshold=0.4, tokens=4)
    )
    (group,) = grow(ScriptedAgent(REPLIES), config).groups
    # t0d0 is shared: bytes 16 + 2 * (16 + 18) sampled, against 2 * (16 + 16 + 18) in trajectories
    metrics = rollout_metrics([group])
    assert metrics["tokens/sampled"] == 84.0
    assert metrics["tokens/in_trajectories"] == 100.0
    assert metrics["branches/fraction"] == 0.5
    assert (metrics["turns/mean"], metrics["tool_calls/mean"], metrics["accuracy"]) == (3.0, 2.0, 1.0)


def test_the_scale_of_a_step_is_that_of_the_steps_before() -> None:
    config = RolloutConfig(num_generations=8, initial_generations=2, branching=BranchingConfig(tokens=4))
    envs: dict[str, Any] = {"shout": ShoutEnv()}
    agent = ScriptedAgent(REPLIES, entropy=by_turn(0.0, 1.0, 3.0))
    # Known deviation 0.1: P = 0.5 + 0.2 * 10, cut to 1, so every boundary branches until the budget is spent.
    scale = EntropyScale().including((-0.1, 0.1))
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(0,), scale=scale)
    (group,) = roll_out(agent, envs, [TaskRef("shout", 0)], settings).groups
    # Two branches at depth 1, then one at each of the four boundaries of depth 2: 2 + 2 + 4 = 8.
    assert [sum(uid.endswith(f"d{depth}") for uid, _ in shape(group)) for depth in range(3)] == [2, 4, 8]


def test_events_keep_the_contract() -> None:
    agent = ScriptedAgent(REPLIES)
    agent.submit(Request("a", (1,), 100, ("</shout>",), seed=0, report_after=4))
    assert [type(event) for event in agent.step()] == [FirstTokens]


class FlakyEnv(ShoutEnv):
    """Its tool fails in the calls whose number, from 1 over all episodes, is listed."""

    def __init__(self, failing: Sequence[int]) -> None:
        self.calls = 0

        def shout(text: str) -> str:
            """Say it louder, or fail."""
            self.calls += 1
            if self.calls in failing:
                raise ToolFailure("no worker")
            return text.upper()

        super().__init__(as_tool(shout, inline=True))


def test_a_trajectory_that_the_infrastructure_fails_is_redone(caplog: pytest.LogCaptureFixture) -> None:
    # Three trajectories call "a" (calls 1 to 3), then "b" (4 to 6): the second fails at "b". What is left of it goes,
    # and a fourth begins at the prompt.
    config = RolloutConfig(num_generations=3, initial_generations=3)
    settings = RolloutSettings(config, branching="none", temperature=1.0, seed=(0,))
    rollout = roll_out(ScriptedAgent(REPLIES), {"shout": FlakyEnv([5])}, [TaskRef("shout", 0)], settings)
    (group,) = rollout.groups
    assert [one.leaf for one in group.trajectories] == ["t0d2", "t2d2", "t3d2"]
    assert group.rewards == (1.0, 1.0, 1.0)
    assert {turn.uid.split("d")[0] for turn in group.turns} == {"t0", "t2", "t3"}
    assert group.num_initial == 3  # the redone one took the place of an initial one
    assert rollout.tool_failures == 1
    assert "shout/0: shout: no worker; the trajectory is redone" in caplog.text


def test_a_branch_outlives_the_trajectory_that_it_left() -> None:
    # Both trajectories branch at depth 1; the first one's own call "b" (number 3) fails, its branch shares "a".
    config = RolloutConfig(
        num_generations=4, initial_generations=2, branching=BranchingConfig(rule="threshold", threshold=0.4, tokens=4)
    )
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(0,))
    agent = ScriptedAgent(REPLIES)
    (group,) = roll_out(agent, {"shout": FlakyEnv([3])}, [TaskRef("shout", 0)], settings).groups
    assert len(group.trajectories) == 4
    assert ("t2d1", "t0d0") in shape(group)
    assert not any(turn.uid.startswith("t0d1") for turn in group.turns)


def test_tools_that_fail_all_the_time_stop_the_rollout() -> None:
    config = RolloutConfig(num_generations=2, initial_generations=2)
    settings = RolloutSettings(config, branching="none", temperature=1.0, seed=(0,))
    with pytest.raises(ToolFailure, match="shout/0: 3 trajectories failed, the last with shout: no worker"):
        roll_out(ScriptedAgent(REPLIES), {"shout": FlakyEnv(range(99))}, [TaskRef("shout", 0)], settings)


class PayingEnv(ShoutEnv):
    """Pays something for an answer to its second task."""

    def __init__(self, paid: Any) -> None:
        super().__init__()
        self.paid = paid

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """As before but for the reward."""
        observation, reward, terminated, truncated, info = super().step(action)
        second = terminated and self.current_task.uid == "shout/1"
        return observation, self.paid if second else reward, terminated, truncated, info


@pytest.mark.parametrize("paid", [float("nan"), float("inf"), None, "1"])
def test_a_reward_that_is_no_number_is_named_where_it_is_paid(paid: object) -> None:
    settings = RolloutSettings(RolloutConfig(2, 2), branching="none", temperature=1.0, seed=(0,))
    agent, tasks = ScriptedAgent(REPLIES), [TaskRef("shout", index) for index in range(2)]
    with pytest.raises(RewardError) as caught:
        roll_out(agent, {"shout": PayingEnv(paid)}, tasks, settings)
    assert str(caught.value) == f"task shout/1: turn t0d2 of trajectory t0 was paid {paid!r}, expected a finite number"
    (first, second) = roll_out(agent, {"shout": PayingEnv(0.5)}, tasks, settings).groups  # the uids are the same
    assert (first.rewards, second.rewards) == ((1.0, 1.0), (0.5, 0.5))


class Held:
    """Say it louder, in a session that has to be closed; the fifth call of all fails."""

    opened: ClassVar[set[Held]] = set()
    calls: ClassVar[int] = 0

    def __init__(self) -> None:
        self.opened.add(self)

    def __call__(self, text: str) -> str:
        """Say it louder."""
        Held.calls += 1
        if Held.calls > 4:
            raise ToolFailure("no worker")
        return text.upper()

    def fork(self) -> Held:
        """Open another."""
        return Held()

    def close(self) -> None:
        """Close it."""
        self.opened.discard(self)


@pytest.mark.parametrize("inline", [True, False])
def test_after_a_failure_the_agent_is_free_and_every_session_is_closed(inline: bool) -> None:
    Held.calls = 0
    agent = ScriptedAgent(REPLIES)
    config = RolloutConfig(
        num_generations=4, initial_generations=3, branching=BranchingConfig(rule="threshold", threshold=0.4)
    )
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(0,))
    env = ShoutEnv(as_tool(Held, name="shout", inline=inline))
    tasks = [TaskRef("shout", index) for index in range(2)]
    with pytest.raises(ToolFailure, match="no worker"):
        roll_out(agent, {"shout": env}, tasks, settings)
    env.close()
    assert not Held.opened
    Held.calls = -1000
    assert len(roll_out(agent, {"shout": env}, tasks, settings).groups) == 2  # the uids are the same
    env.close()
    assert not Held.opened
