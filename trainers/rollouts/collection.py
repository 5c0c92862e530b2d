"""Collect the trees of a step: draw tasks, roll them out, replace groups that teach nothing where that is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from accelerate import Accelerator

from forkgym.agents.base import Agent
from forkgym.envs.base import INFINITE_TASK_RANGE, ToolEnv
from forkgym.envs.mixture import MixtureEnv
from forkgym.envs.shares import shares_of
from forkgym.tools.base import ToolFailure
from forkgym.trainers.algorithms.credit import CreditRule, teaches
from forkgym.trainers.processes import gathered, interleaved
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import Rollout, RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group, RewardError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collection:
    """The trees of a step.

    Attributes:
        tasks: What the step is taken on.
        groups: The tree of each of them.
        replaced: Trees without a signal that others took the place of; they count in what a step reports of rollouts.
        spare: Trees that were rolled out to take a place and have no signal either; they count as well.
        unusable: Trees whose prompt left no room for a single token; no step can be taken on them.
        tool_failures: Trajectories that were redone, since the infrastructure failed them.
        entropy_changes: Of all rollouts, see `Rollout`.
    """

    tasks: tuple[TaskRef, ...]
    groups: tuple[Group, ...]
    replaced: tuple[Group, ...]
    spare: tuple[Group, ...]
    unusable: tuple[Group, ...]
    tool_failures: int
    entropy_changes: tuple[float, ...]

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """Every tree that was rolled out."""
        return (*self.groups, *self.replaced, *self.spare, *self.unusable)


@dataclass(frozen=True, slots=True)
class Collector:
    """Rolls out tasks, in this process or in several.

    Attributes:
        agent: Samples the turns.
        envs: Training environments by id.
        accelerator: Says which processes there are; each rolls out its share, and all get all trees.
    """

    agent: Agent
    envs: dict[str, Env]
    accelerator: Accelerator

    def roll_out(self, tasks: Sequence[TaskRef], settings: RolloutSettings) -> Rollout:
        """Roll out tasks; with several processes another number of them draws other trees."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return roll_out(self.agent, self.envs, tasks, settings)
        own = self.accelerator.process_index
        settings = replace(settings, seed=(*settings.seed, own))
        rolled, failures = Rollout((), 0, ()), list[ToolFailure | RewardError]()
        try:
            rolled = roll_out(self.agent, self.envs, tasks[own::processes], settings)
        except (ToolFailure, RewardError) as error:
            failures.append(error)
        # The others wait for this process's trees: where there are none, all stop.
        for failure in gathered(self.accelerator, failures):
            raise failure
        by_process = interleaved(self.accelerator, [rolled], processes)
        groups = interleaved(self.accelerator, rolled.groups, len(tasks))
        changes = tuple(change for one in by_process for change in one.entropy_changes)
        return Rollout(tuple(groups), sum(one.tool_failures for one in by_process), changes)

    def collect(self, tasks: Sequence[TaskRef], settings: RolloutSettings, rule: CreditRule) -> Collection:
        """Roll out a step's tasks, and replace those without a signal as long as too few have one.

        A group has a signal if a token of it would get an advantage, see `teaches`. Each round rolls out as many new
        tasks of the same environments as there are groups without, and every group with a signal takes the place of
        one without, so that none with a signal is ever dropped: GPG's threshold on the valid fraction
        (arXiv:2504.02546), and with 1 DAPO's dynamic sampling (arXiv:2503.14476).

        Args:
            tasks: Of the step.
            settings: Of every rollout; each round adds its number to the seed.
            rule: How rewards become advantages; says the least share of groups with a signal, and the most rounds.
                After them the step is taken on what there is, and says so.
        """
        expected = rule.algorithm.min_valid_fraction

        def has_signal(group: Group) -> bool:
            return not expected or (has_tokens(group) and teaches(group, rule))

        rolled = self.roll_out(tasks, settings)
        kept, rolls = list(zip(tasks, rolled.groups, strict=True)), [rolled]
        replaced, spare = list[Group](), list[Group]()
        for number in range(1, rule.config.extra_rounds + 1):
            places = [place for place, (_, group) in enumerate(kept) if not has_signal(group)]
            if len(kept) - len(places) >= expected * len(kept):
                break
            rng = np.random.default_rng([*settings.seed, number])
            others = [draw_task(self.envs, kept[place][0].env_id, rng) for place in places]
            rolled = self.roll_out(others, replace(settings, seed=(*settings.seed, number)))
            rolls.append(rolled)
            for place, task, group in zip(places, others, rolled.groups, strict=True):
                if has_signal(group):
                    replaced.append(kept[place][1])
                    kept[place] = (task, group)
                else:
                    spare.append(group)
        share = sum(has_signal(group) for _, group in kept) / len(kept)
        if share < expected:
            logger.warning(
                "%.0f %% of this step's groups have a signal after %d more rounds, expected %.0f %%",
                *(100 * share, len(rolls) - 1, 100 * expected),
            )
        unusable = [group for _, group in kept if not has_tokens(group)]
        for group in unusable:
            logger.warning(
                "%s: its prompt of %d tokens leaves no room to answer; the task is left out",
                *(group.task_uid, len(group.prompt_tokens)),
            )
        usable = [(task, group) for task, group in kept if has_tokens(group)]
        return Collection(
            tasks=tuple(task for task, _ in usable),
            groups=tuple(group for _, group in usable),
            replaced=tuple(replaced),
            spare=tuple(spare),
            unusable=tuple(unusable),
            tool_failures=sum(one.tool_failures for one in rolls),
            entropy_changes=tuple(change for one in rolls for change in one.entropy_changes),
        )

    def greedy_rewards(self, tasks: Sequence[TaskRef], settings: RolloutSettings) -> list[float]:
        """Reward of each task's greedy trajectory: ReMax's baseline (arXiv:2310.10505)."""
        config = replace(settings.config, num_generations=1, initial_generations=None)
        greedy = replace(settings, config=config, branching="none", temperature=0.0)
        return [group.rewards[0] for group in self.roll_out(tasks, greedy).groups]


def has_tokens(group: Group) -> bool:
    """Whether each trajectory has a token that the policy sampled."""
    return all(any(turn.tokens for turn in group.path(one.leaf)) for one in group.trajectories)


def markers_of(envs: Mapping[str, Env]) -> tuple[str, ...]:
    """Every marker of the environments, those of a mixture's parts included."""
    found: dict[str, None] = {}
    for env in envs.values():
        bare = env.unwrapped
        assert isinstance(bare, ToolEnv)
        for part in bare.templates if isinstance(bare, MixtureEnv) else (bare,):
            found |= dict.fromkeys(part.markers)
    return tuple(found)


def draw_tasks(
    envs: Mapping[str, Env], count: int, seed: Sequence[int], weights: tuple[float, ...] | None = None, first: int = 0
) -> list[TaskRef]:
    """Draw a step's tasks: environments in turn, indices at random.

    Args:
        envs: Environments by id.
        count: Tasks of the step.
        seed: Numbers that the indices derive from.
        weights: Of the environments, in their order; None takes them one after the other, beginning anew at each step.
        first: Tasks of the steps before. With weights the turns go on from there, so that the shares hold over the
            run, also where a step is too short for them.
    """
    rng = np.random.default_rng(list(seed))
    tasks: list[TaskRef] = []
    for place in range(count):
        turn = place % len(envs) if weights is None else shares_of(weights).at(first + place)[0]
        env_id = list(envs)[turn]
        tasks.append(draw_task(envs, env_id, rng))
    return tasks


def draw_task(envs: Mapping[str, Env], env_id: str, rng: np.random.Generator) -> TaskRef:
    """Draw a task of an environment."""
    bare = envs[env_id].unwrapped
    assert isinstance(bare, ToolEnv)
    size = bare.num_tasks
    return TaskRef(env_id, int(rng.integers(size if size is not None else INFINITE_TASK_RANGE)))
