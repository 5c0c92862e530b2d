"""Measure an agent on held-out tasks."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scipy.stats import binomtest

from forkgym.agents.base import Agent
from forkgym.envs.base import ToolEnv
from forkgym.trainers.config import EvaluationConfig, RolloutConfig
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group, Trajectory

Result = Mapping[str, Any]
SEED = 0x5EED  # keeps the draws of evaluations apart from those of training


def evaluate(
    agent: Agent, envs: dict[str, Env], config: EvaluationConfig, rollout: RolloutConfig, temperature: float
) -> dict[str, Result]:
    """Measure greedy and sampled accuracy on the first tasks of each environment.

    Args:
        agent: Who acts.
        envs: Held-out environments by id.
        config: How many tasks and samples.
        rollout: Token limits.
        temperature: Of the sampled episodes.

    Returns:
        A result for each environment: ``accuracy`` (greedy) with its 95 % Wilson ``interval``, ``accuracy/sampled``,
        ``pass@k`` (a task counts where any of its k samples is right), and of the greedy episodes ``reward/...``,
        ``turns/mean``, ``tool_calls/mean`` and ``stop_reasons``.
    """
    results: dict[str, Result] = {}
    for env_id, env in envs.items():
        bare = env.unwrapped
        assert isinstance(bare, ToolEnv)
        size = bare.num_tasks
        tasks = [TaskRef(env_id, index) for index in range(min(config.num_tasks, size or config.num_tasks))]
        greedy = roll_out(agent, envs, tasks, episodes(rollout, 1, 0.0)).groups
        sampled = roll_out(agent, envs, tasks, episodes(rollout, config.samples_per_task, temperature)).groups
        results[env_id] = summarise(greedy, sampled, temperature)
    return results


def episodes(rollout: RolloutConfig, samples: int, temperature: float) -> RolloutSettings:
    """Settings of an evaluation's rollout: that many trajectories of a task, none of them branched."""
    config = replace(rollout, num_generations=samples)
    return RolloutSettings(config, branching="none", temperature=temperature, seed=(SEED,))


def summarise(greedy: Sequence[Group], sampled: Sequence[Group], temperature: float) -> Result:
    """Turn greedy and sampled episodes of the same tasks into a result."""
    episodes: list[tuple[Group, Trajectory]] = [(group, group.trajectories[0]) for group in greedy]
    right = [trajectory.accuracy for _, trajectory in episodes]
    paths = [group.path(trajectory.leaf) for group, trajectory in episodes]
    interval = binomtest(round(sum(right)), len(right)).proportion_ci(confidence_level=0.95, method="wilson")
    names = sorted({name for _, trajectory in episodes for name in trajectory.parts})
    samples = len(sampled[0].trajectories)
    return {
        "accuracy": statistics.fmean(right),
        "interval": [float(interval.low), float(interval.high)],
        "num_tasks": len(right),
        "accuracy/sampled": statistics.fmean(t.accuracy for group in sampled for t in group.trajectories),
        "samples_per_task": samples,
        "pass@k": statistics.fmean(any(t.accuracy >= 1.0 for t in group.trajectories) for group in sampled),
        "reward/mean": statistics.fmean(trajectory.reward for _, trajectory in episodes),
        **{f"reward/{name}": statistics.fmean(t.parts.get(name, 0.0) for _, t in episodes) for name in names},
        "turns/mean": statistics.fmean(len(path) for path in paths),
        "tool_calls/mean": statistics.fmean(sum(len(turn.tools) for turn in path) for path in paths),
        "stop_reasons": dict(Counter(trajectory.stop_reason.value for _, trajectory in episodes)),
        "decoding": {"accuracy": "greedy", "accuracy/sampled": f"temperature {temperature:g}"},
    }
