"""Grow the tree of one task: which turns to sample next, given what has been sampled.

Pure bookkeeping: it takes events and returns requests; `rollout` drives agents and runs tools.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, SupportsFloat

from forkgym.agents.base import Completion, FinishReason, Request
from forkgym.agents.codec import Codec
from forkgym.envs.base import ToolEnv
from forkgym.envs.forking import fork
from forkgym.envs.tasks import StopReason, Task
from forkgym.tools.base import ToolFailure
from forkgym.trainers.rollouts.branching import mean_entropy
from forkgym.trainers.rollouts.growth import Candidate, Env, GrowthPlan, LiveTrajectory
from forkgym.trainers.seeding import derive_seed, uniform
from forkgym.trainers.types import Group, Trajectory, Turn, finite_reward

logger = logging.getLogger(__name__)

StepResult = tuple[str, SupportsFloat, bool, bool, dict[str, Any]]


class TreeGrower:
    """One task's tree while it grows.

    The budget is given out in the order (depth, trajectory index), whoever is faster: a boundary is decided when no
    live trajectory can reach an earlier one any more. A branch starts before the turn whose first tokens caused it,
    from a fork of the environment as it stood at that boundary.

    A trajectory that a failure of the infrastructure ended is thrown away, and its place in the budget is given out
    again: what fails there does not depend on the policy, so the trees that remain are what they would have been.
    """

    def __init__(self, env: Env, env_id: str, index: int, codec: Codec, plan: GrowthPlan) -> None:
        bare = env.unwrapped
        assert isinstance(bare, ToolEnv)
        observation, info = env.reset(options={"index": index})
        self.env_id = str(info.get("env_id", env_id))  # a mixture says which of its environments it is
        self.plan = plan
        self.codec = codec
        self.task: Task = bare.current_task
        self.inline = bare.inline
        self.stop = bare.stop_strings
        self.prompt = codec.encode_prompt(bare.prompt_of(observation))
        self.solution = tuple(bare.render_step(step) for step in self.task.solution)
        self.origin = fork(env)
        self.live: dict[str, LiveTrajectory] = {}
        self.candidates: list[Candidate] = []
        self.changes: dict[tuple[int, int], float] = {}
        self.turns: dict[str, Turn] = {}
        self.finished: list[Trajectory] = []
        self.started = 0
        self.failures = 0

    @property
    def entropy_changes(self) -> list[float]:
        """Every ``H_t - H_0`` at a boundary, nats, in the order (depth, trajectory index)."""
        return [self.changes[place] for place in sorted(self.changes)]

    @property
    def done(self) -> bool:
        """Whether the budget is spent and every trajectory has ended."""
        return not self.live and self._budget_left() == 0

    def start(self) -> list[Request]:
        """Begin the initial trajectories."""
        return [self._begin_fresh(may_branch=self.plan.branching.branches) for _ in range(self.plan.initial)]

    def take_first_tokens(self, uid: str, entropies: tuple[float, ...]) -> list[Request]:
        """Take in a turn's first tokens: they are the baseline, or make its boundary a candidate for a branch."""
        trajectory = self.live[self._turn_uid(uid)]
        entropy = mean_entropy(entropies, self.plan.branching.first_tokens)
        if not entropies:  # nothing could be sampled here, and no branch could either
            self._close(trajectory.boundary)
            trajectory.boundary = None
        elif trajectory.baseline is None:
            trajectory.baseline = entropy
        elif trajectory.at_boundary:
            place, change = (trajectory.depth, trajectory.index), entropy - trajectory.baseline
            # Noted whether or not there is budget left: when that ran out depends on who was faster.
            self.changes[place] = change
            self._propose(trajectory, change)
        trajectory.at_boundary = False
        return self._decide()

    def stepping_env(self, completion: Completion) -> Env | None:
        """Return the environment that a finished turn is to be stepped in, or None where a limit ends it here."""
        trajectory = self.live[self._turn_uid(completion.uid)]
        return None if self._limit_reached(trajectory, completion) is not None else trajectory.env

    def said(self, completion: Completion) -> str:
        """What its environment is told of a finished turn: a thought that the chat template opened belongs to it.

        Otherwise what stands in a thought that was cut off would pass for an answer, or a call.
        """
        begins_message = self.live[self._turn_uid(completion.uid)].depth == 0 or not self.stop
        return (self.codec.opening if begins_message else "") + completion.text

    def take_turn(self, completion: Completion, result: StepResult | None) -> list[Request]:
        """Take in a finished turn and what its environment said (None where ``stepping_env`` gave none).

        Raises:
            ToolFailure: The infrastructure has failed more often than the tree has trajectories.
            RewardError: The environment paid what is no finite number.
        """
        trajectory = self.live.pop(self._turn_uid(completion.uid))
        turn = Turn(
            uid=trajectory.uid,
            parent=trajectory.parent,
            tokens=completion.tokens,
            logprobs=completion.logprobs,
            entropies=completion.entropies,
            text=completion.text,
            finish_reason=completion.finish_reason,
            version=completion.version,
        )
        if result is None:
            reason = self._limit_reached(trajectory, completion)
            assert reason is not None
            self._finish(trajectory, turn, reason, {})
            return self._decide()
        observation, reward, terminated, truncated, info = result
        if info["stop_reason"] == StopReason.TOOL_FAILURE:
            self._discard(trajectory, str(info["failure"]))
            return self._decide()
        tokens = self._encode(observation, completion.tokens) if observation else ()
        turn = replace(
            turn,
            observation=observation,
            observation_tokens=tokens,
            reward=finite_reward(
                reward, f"task {self.task.uid}: turn {turn.uid} of trajectory t{trajectory.index} was paid"
            ),
            tools=tuple(name for name in info["tools"].split(",") if name),
            error=info["error"],
        )
        context = trajectory.context + completion.tokens + tokens
        if terminated or truncated:
            self._finish(trajectory, turn, StopReason(info["stop_reason"]), info)
        elif len(context) >= self.plan.config.max_total_tokens:
            self._finish(trajectory, turn, StopReason.TOTAL_TOKEN_LIMIT, {})
        else:
            self.turns[turn.uid] = turn
            after = LiveTrajectory(
                trajectory.index,
                trajectory.env,
                context,
                trajectory.depth + 1,
                turn.uid,
                trajectory.baseline,
                trajectory.may_branch,
            )
            if after.may_branch and self._budget_left() > 0:
                after.boundary = fork(after.env)
            if self.plan.branching.first_tokens:
                after.at_boundary = after.may_branch
            else:
                self._propose(after)
            return [self._request(after, continues=completion.uid), *self._decide()]
        return self._decide()

    def group(self) -> Group:
        """Return the finished tree, in an order that does not depend on who was faster."""
        assert self.done

        def rank(uid: str) -> tuple[int, int]:
            index, depth = uid[1:].split("d")
            return int(depth), int(index)

        kept = self._kept()
        return Group(
            env_id=self.env_id,
            task_uid=self.task.uid,
            question=self.task.question,
            answer=self.task.answer,
            prompt_tokens=self.prompt,
            turns=tuple(self.turns[uid] for uid in sorted(kept, key=rank)),
            trajectories=tuple(sorted(self.finished, key=lambda done: int(done.leaf[1:].split("d")[0]))),
            # One that the infrastructure failed as a whole is replaced by the first fresh one, if there is any.
            num_initial=min(self.plan.initial, sum(self.turns[uid].parent is None for uid in kept)),
        )

    def close(self) -> None:
        """Let go of every environment, also of a tree that is not grown."""
        self._close(self.origin)
        for trajectory in self.live.values():
            self._close(trajectory.env)
            self._close(trajectory.boundary)
        for candidate in self.candidates:
            self._close(candidate.env)

    # Details.

    def _budget_left(self) -> int:
        return self.plan.config.num_generations - self.started + self.failures

    def _turn_uid(self, request_uid: str) -> str:
        return request_uid.removeprefix(self.plan.uid)

    def _begin_fresh(self, *, may_branch: bool) -> Request:
        trajectory = LiveTrajectory(self.started, fork(self.origin), self.prompt, 0, None, None, may_branch)
        self.started += 1
        return self._request(trajectory, continues=None)

    def _request(self, trajectory: LiveTrajectory, continues: str | None) -> Request:
        config = self.plan.config
        self.live[trajectory.uid] = trajectory
        return Request(
            uid=self.plan.uid + trajectory.uid,
            tokens=trajectory.context,
            max_tokens=max(1, min(config.turn_tokens, config.max_total_tokens - len(trajectory.context))),
            stop=self.stop,
            seed=derive_seed(*self.plan.seed, trajectory.index, trajectory.depth),
            temperature=self.plan.temperature,
            continues=continues,
            report_after=self.plan.branching.first_tokens if trajectory.may_branch else 0,
            task=self.task,
            solution=self.solution,
        )

    def _encode(self, observation: str, turn: tuple[int, ...]) -> tuple[int, ...]:
        bare = self.origin.unwrapped
        assert isinstance(bare, ToolEnv)
        return self.codec.encode_reply(bare.reply_of(observation), turn)

    def _limit_reached(self, trajectory: LiveTrajectory, completion: Completion) -> StopReason | None:
        """Why a turn that was cut off ends its trajectory; one cut by its own limit goes to the environment."""
        if completion.finish_reason is FinishReason.CONTEXT:
            return StopReason.CONTEXT_LIMIT
        used = len(trajectory.context) + len(completion.tokens)
        if completion.finish_reason is FinishReason.TURN_TOKENS and used >= self.plan.config.max_total_tokens:
            return StopReason.TOTAL_TOKEN_LIMIT
        return None

    def _finish(self, trajectory: LiveTrajectory, turn: Turn, reason: StopReason, info: Mapping[str, Any]) -> None:
        self._close(trajectory.env)
        self._close(trajectory.boundary)
        self.turns[turn.uid] = turn
        reward, uid = 0.0, turn.uid
        while True:
            reward += self.turns[uid].reward
            parent = self.turns[uid].parent
            if parent is None:
                break
            uid = parent
        parts = {name.removeprefix("reward/"): value for name, value in info.items() if name.startswith("reward/")}
        self.finished.append(
            Trajectory(
                leaf=turn.uid,
                reward=reward,
                accuracy=float(info.get("accuracy", 0.0)),
                stop_reason=reason,
                parts=parts,
                extraction=str(info.get("extraction", "")),
            )
        )

    def _discard(self, trajectory: LiveTrajectory, failure: str) -> None:
        """Throw away a trajectory that the infrastructure failed, and say so."""
        self._close(trajectory.env)
        self._close(trajectory.boundary)
        self.failures += 1
        logger.warning("%s: %s; the trajectory is redone", self.task.uid, failure)
        if self.failures > self.plan.config.num_generations:
            raise ToolFailure(f"{self.task.uid}: {self.failures} trajectories failed, the last with {failure}")

    def _kept(self) -> set[str]:
        """The turns that lead to a trajectory; a discarded one may leave turns that lead nowhere."""
        kept: set[str] = set()
        for trajectory in self.finished:
            uid: str | None = trajectory.leaf
            while uid is not None and uid not in kept:
                kept.add(uid)
                uid = self.turns[uid].parent
        return kept

    def _propose(self, trajectory: LiveTrajectory, change: float = 0.0) -> None:
        """Make the boundary at which a trajectory stands a candidate, where there is budget left to branch with."""
        if trajectory.boundary is not None:
            context, parent, baseline = trajectory.context, trajectory.parent, trajectory.baseline
            place = trajectory.depth, trajectory.index
            self.candidates.append(Candidate(*place, trajectory.boundary, context, parent, baseline, change))
            trajectory.boundary = None

    def _decide(self) -> list[Request]:
        """Decide every boundary whose turn has come, then spend what is left where nobody can branch any more."""
        requests: list[Request] = []
        self.candidates.sort(key=lambda candidate: (candidate.depth, candidate.index))
        while self.candidates and self._budget_left() > 0:
            first = self.candidates[0]
            if (first.depth, first.index) > self._earliest_possible():
                break
            self.candidates.pop(0)
            requests += self._branch(first)
        if self._budget_left() == 0:
            for candidate in self.candidates:
                self._close(candidate.env)
            self.candidates.clear()
        if not self.live and not self.candidates:
            requests += [self._begin_fresh(may_branch=False) for _ in range(self._budget_left())]
        return requests

    def _earliest_possible(self) -> tuple[float, int]:
        """Return the (depth, index) of the earliest boundary that a live trajectory may still bring up."""
        keys = [
            (trajectory.depth if trajectory.at_boundary else trajectory.depth + 1, trajectory.index)
            for trajectory in self.live.values()
            if trajectory.may_branch
        ]
        return min(keys, default=(float("inf"), 0))

    def _branch(self, candidate: Candidate) -> list[Request]:
        rule = self.plan.branching
        draw = uniform(*self.plan.seed, candidate.index, candidate.depth, 1)
        added = rule.config.width - 1 if draw < rule.probability(candidate.change) else 0
        requests: list[Request] = []
        for _ in range(min(added, self._budget_left())):
            # No boundary of its own here: this one has been decided.
            twin = LiveTrajectory(
                self.started,
                fork(candidate.env),
                candidate.context,
                candidate.depth,
                candidate.parent,
                candidate.baseline,
                may_branch=True,
            )
            self.started += 1
            requests.append(self._request(twin, continues=None))
        self._close(candidate.env)
        return requests

    @staticmethod
    def _close(env: Env | None) -> None:
        """Let go of what a fork's tool sessions hold outside this process."""
        if env is not None:
            env.close()
