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
from forkgym.trainers.processes import gathered, interleaved
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import Rollout, RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collection:
    """The trees of a step.

    Attributes:
        tasks: What the step is taken on.
        groups: The tree of each of them.
        replaced: Trees without a signal that others took the place of; they count in what a step reports of rollouts.
        unusable: Trees whose prompt left no room for a single token; no step can be taken on them.
        tool_failures: Trajectories that were redone, since the infrastructure failed them.
        entropy_changes: Of all rollouts, see `Rollout`.
    """

    tasks: tuple[TaskRef, ...]
    groups: tuple[Group, ...]
    replaced: tuple[Group, ...]
    unusable: tuple[Group, ...]
    tool_failures: int
    entropy_changes: tuple[float, ...]

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """Every tree that was rolled out."""
        return (*self.groups, *self.replaced, *self.unusable)


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
        rolled, failure = Rollout((), 0, ()), ""
        try:
            rolled = roll_out(self.agent, self.envs, tasks[own::processes], settings)
        except ToolFailure as error:
            failure = str(error)
        # The others wait for this process's trees: where there are none, all stop.
        failures = [one for one in gathered(self.accelerator, [failure]) if one]
        if failures:
            raise ToolFailure(failures[0])
        by_process = interleaved(self.accelerator, [rolled], processes)
        groups = interleaved(self.accelerator, rolled.groups, len(tasks))
        changes = tuple(change for one in by_process for change in one.entropy_changes)
        return Rollout(tuple(groups), sum(one.tool_failures for one in by_process), changes)

    def collect(
        self, tasks: Sequence[TaskRef], settings: RolloutSettings, min_valid_fraction: float, extra_rounds: int
    ) -> Collection:
        """Roll out a step's tasks, and replace those without a signal as long as too few have one.

        A group whose rewards are all equal has no signal. Each round rolls out as many new tasks of the same
        environments as there are such groups, and every group with a signal takes the place of one without, so that
        none with a signal is ever dropped: GPG's threshold on the valid fraction (arXiv:2504.02546), and with 1 DAPO's
        dynamic sampling (arXiv:2503.14476).

        Args:
            tasks: Of the step.
            settings: Of every rollout; each round adds its number to the seed.
            min_valid_fraction: Least share of groups with a signal, 0 to 1.
            extra_rounds: Most rounds, 0 or more; after them the step is taken on what there is, and says so.
        """
        rolled = self.roll_out(tasks, settings)
        kept, replaced, rolls = list(zip(tasks, rolled.groups, strict=True)), list[Group](), [rolled]
        for number in range(1, extra_rounds + 1):
            places = [place for place, (_, group) in enumerate(kept) if not group.is_valid]
            if len(kept) - len(places) >= min_valid_fraction * len(kept):
                break
            rng = np.random.default_rng([*settings.seed, number])
            others = [draw_task(self.envs, kept[place][0].env_id, rng) for place in places]
            rolled = self.roll_out(others, replace(settings, seed=(*settings.seed, number)))
            rolls.append(rolled)
            for place, task, group in zip(places, others, rolled.groups, strict=True):
                replaced.append(kept[place][1] if group.is_valid else group)
                if group.is_valid:
                    kept[place] = (task, group)
        share = sum(group.is_valid for _, group in kept) / len(kept)
        if share < min_valid_fraction:
            logger.warning(
                "%.0f %% of this step's groups have a signal after %d more rounds, expected %.0f %%",
                *(100 * share, len(rolls) - 1, 100 * min_valid_fraction),
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
            unusable=tuple(unusable),
            tool_failures=sum(one.tool_failures for one in rolls),
            entropy_changes=tuple(change for one in rolls for change in one.entropy_changes),
        )

    def greedy_rewards(self, tasks: Sequence[TaskRef], settings: RolloutSettings) -> list[float]:
        """Reward of each task's greedy trajectory: ReMax's baseline (arXiv:2310.10505)."""
        config = replace(settings.config, num_generations=1, initial_generations=1)
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
