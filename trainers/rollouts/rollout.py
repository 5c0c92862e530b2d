"""Roll out many tasks at once: an agent samples, environments reply, trees grow. No trajectory waits for another."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from forkgym.agents.base import Agent, Completion, FirstTokens, Request
from forkgym.trainers.algorithms.table import Branching
from forkgym.trainers.config import RolloutConfig
from forkgym.trainers.rollouts.branching import BranchingRule, EntropyScale
from forkgym.trainers.rollouts.growth import Env, GrowthPlan
from forkgym.trainers.rollouts.tree import StepResult, TreeGrower
from forkgym.trainers.types import Group

TOOL_THREADS = 32


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task to roll out: an environment's id and the task's index in it."""

    env_id: str
    index: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a rollout brought.

    Attributes:
        groups: One tree for each task, in the tasks' order.
        tool_failures: Trajectories that were redone, since the infrastructure failed them.
        entropy_changes: Every ``H_t - H_0`` at a tool boundary where it was looked at, nats, in the tasks' order.
    """

    groups: tuple[Group, ...]
    tool_failures: int
    entropy_changes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How to roll out, beside the budget and limits in ``config``.

    Attributes:
        config: Budget, limits and the numbers of the branching rule.
        branching: The strategy that holds, whatever ``config`` says; there it may be left to the algorithm.
        temperature: Of the sampling distribution; 0 is greedy.
        seed: Numbers that every draw derives from, together with the task's place and the turn.
        scale: What the branching rule knows of earlier steps.
    """

    config: RolloutConfig
    branching: Branching
    temperature: float
    seed: tuple[int, ...]
    scale: EntropyScale = EntropyScale()


def roll_out(agent: Agent, envs: dict[str, Env], tasks: Sequence[TaskRef], settings: RolloutSettings) -> Rollout:
    """Grow the tree of each task.

    Tools that are bounded in time run inline and in order, so that the same seed gives the same trees to the bit;
    others run in threads beside the decoding.

    Args:
        agent: Samples the turns.
        envs: Environments by id; they are forked, never stepped themselves.
        tasks: What to roll out; a task may occur more than once.
        settings: How.

    Raises:
        ToolFailure: The tools of a task fail again and again. After this, as after any other exception, the agent
            knows nothing of the rollout any more.
        RewardError: An environment paid what is no finite number.
    """
    rule = BranchingRule(settings.branching, settings.config.branching, settings.scale, agent.vocabulary_size)
    growers: list[TreeGrower] = []
    try:
        for place, task in enumerate(tasks):
            plan = GrowthPlan(
                uid=f"{place}/",
                config=settings.config,
                branching=rule,
                temperature=settings.temperature,
                seed=(*settings.seed, place),
            )
            growers.append(TreeGrower(envs[task.env_id], task.env_id, task.index, agent.codec, plan))
        with ThreadPoolExecutor(TOOL_THREADS, thread_name_prefix="tools") as executor:
            Driver(agent, growers, executor).run()
        return Rollout(
            groups=tuple(grower.group() for grower in growers),
            tool_failures=sum(grower.failures for grower in growers),
            entropy_changes=tuple(change for grower in growers for change in grower.entropy_changes),
        )
    finally:
        for grower in growers:
            grower.close()


class Driver:
    """Passes events between an agent and the trees of one rollout until all are grown."""

    def __init__(self, agent: Agent, growers: Sequence[TreeGrower], executor: ThreadPoolExecutor) -> None:
        self.agent = agent
        self.growers = growers
        self.executor = executor
        self.sampling = 0
        self.held: set[str] = set()  # requests that the agent knows, finished or not
        self.stepping: dict[Future[StepResult], tuple[TreeGrower, Completion]] = {}

    def run(self) -> None:
        """Drive until nothing is being sampled and no tool runs."""
        try:
            for grower in self.growers:
                self._submit(grower.start())
            while self.sampling or self.stepping:
                if self.sampling:
                    for event in self.agent.step():
                        self._take(event)
                self._collect_tools(wait_for_one=not self.sampling)
        finally:  # nothing is left unless something raised
            for future in self.stepping:
                future.cancel()
            for uid in self.held:
                self.agent.abort(uid)

    def _submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.agent.submit(request)
            self.held.add(request.uid)
            if request.continues is not None:
                self.held.remove(request.continues)
        self.sampling += len(requests)

    def _take(self, event: FirstTokens | Completion) -> None:
        grower = self.growers[int(event.uid.split("/", 1)[0])]
        if isinstance(event, FirstTokens):
            self._submit(grower.take_first_tokens(event.uid, event.entropies))
            return
        self.sampling -= 1
        env = grower.stepping_env(event)
        if env is None:
            self._turn_done(grower, event, None)
        elif grower.inline:
            self._turn_done(grower, event, env.step(grower.said(event)))
        else:
            self.stepping[self.executor.submit(env.step, grower.said(event))] = (grower, event)

    def _collect_tools(self, *, wait_for_one: bool) -> None:
        if not self.stepping:
            return
        finished, _ = wait(self.stepping, timeout=None if wait_for_one else 0, return_when=FIRST_COMPLETED)
        for future in [future for future in self.stepping if future in finished]:
            grower, completion = self.stepping.pop(future)
            self._turn_done(grower, completion, future.result())

    def _turn_done(self, grower: TreeGrower, completion: Completion, result: StepResult | None) -> None:
        requests = grower.take_turn(completion, result)
        self._submit(requests)
        if all(request.continues != completion.uid for request in requests):
            self.agent.release(completion.uid)
            self.held.remove(completion.uid)
