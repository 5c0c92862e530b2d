"""Which weights and which branching leave the policy gradient unbiased: measured where it can be enumerated.

    python scripts/benchmarks/unbiased.py --num_estimates 20000

The task: a coin lies in one of two boxes. A turn has two tokens, ``look`` or ``answer`` and then the box, ``a`` or
``b``; looking is a real tool call in a real environment, and the third turn is the last. The policy is a table of
logits, by what the tool said last and what the turn has said so far. Its exact gradient comes from walking all turns
through forks of the environment, an estimate from one tree of the trainer's own rollout, as the sum over its leaves of
``weight * (return - baseline) * grad log pi``:

- node: node weights, against the other initial trees. Expected to be ``roots / N`` times the gradient, where a tree has
  ``roots`` first turns and ``N`` initial ones.
- node, own roots: the same, divided by each tree's own ``roots / N``.
- node, leaf baseline: node weights, against the mean over all other leaves.
- leaf: every leaf weighs the same, against the mean over all other leaves. This is the published group advantage but
  for a factor ``G / (G - 1)``, without which it were too short by that even where nothing branches.

The table shows, for each strategy and estimator, how far the mean of all estimates is off, as a share of the
gradient's length; the part of that at right angles to the gradient; what chance alone leaves of the first; the largest
deviation of one parameter in its standard errors; and the variance of an estimate, against that of ``leaf``. Bold is
what chance would explain in one of a thousand tables only.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from forkgym.agents.base import Completion, Event, FinishReason, FirstTokens, Request
from forkgym.envs.base import ToolEnv
from forkgym.envs.forking import fork
from forkgym.envs.grammar import Prompt, Reply
from forkgym.envs.tasks import Task
from forkgym.tools.base import as_tool
from forkgym.trainers.algorithms.table import Branching
from forkgym.trainers.algorithms.tree_weights import initial_roots, leaf_weights, node_baselines, node_weights
from forkgym.trainers.config import BranchingConfig, RolloutConfig
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group

if TYPE_CHECKING:
    import torch

Floats = np.ndarray[Any, np.dtype[np.float64]]

FALSE_ALARM = 1e-3
BATCH = 500  # trees that are rolled out at once


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        num_estimates: Trees of each strategy.
        num_generations: Trajectories of a tree.
        initial_generations: Those that start from the prompt.
        seed: Of all draws.
    """

    num_estimates: int = 20_000
    num_generations: int = 4
    initial_generations: int = 2
    seed: int = 0


# The task.

VOCABULARY = ("<look>", "<answer>", "a", "b", "<prompt>", "<result>coin</result>", "<result>nothing</result>")
LOOK, ANSWER, A, B, PROMPT, COIN, NOTHING = range(len(VOCABULARY))
CLOSING = {LOOK: "</look>", ANSWER: "</answer>"}
TURNS = tuple(itertools.product((LOOK, ANSWER), (A, B)))
STATES = (PROMPT, COIN, NOTHING)  # what the policy sees of a context: its last token
CONTENTS = {"a": "coin", "b": "nothing"}


def look(box: str) -> str:
    """Say what is in a box, a or b."""
    return CONTENTS[box]


class BoxEnv(ToolEnv):
    """Say in which box the coin is: 1 for a, 0 for b or where no answer came in time."""

    def __init__(self) -> None:
        super().__init__(tools=[as_tool(look, inline=True)], max_turns=3)

    def task(self, index: int) -> Task:
        """Task ``index``: always the same."""
        return Task("Which box holds the coin, a or b?", "a", uid=f"boxes/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """1 where the answers agree."""
        return {"correct": float(answer == task.answer)}


class BoxCodec:
    """One token for a prompt and for a reply, two for a turn."""

    opening = ""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """One token."""
        del prompt
        return (PROMPT,)

    def encode_reply(self, reply: Reply, turn: tuple[int, ...]) -> tuple[int, ...]:
        """One token."""
        del turn
        return (VOCABULARY.index(reply.text),)

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """The turn with this text."""
        return next(turn for turn in TURNS if self.decode(turn) == text)

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of a turn."""
        return "".join(VOCABULARY[token] for token in tokens) + CLOSING[tokens[0]]


# The policy.


class Policy:
    """A softmax over two tokens wherever there is a choice; the second one's logit is 0.

    Args:
        logits: Of ``look`` against ``answer``, of ``a`` against ``b`` after ``look``, and of ``a`` against ``b`` after
            ``answer``; a row for each of the states [3, 3].
    """

    def __init__(self, logits: Floats) -> None:
        first = 1.0 / (1.0 + np.exp(-logits))
        chances = np.stack([first, 1.0 - first], axis=-1)  # [state, decision, option]
        self.num_logits = logits.size
        self.entropies: list[list[float]] = (-(chances * np.log(chances)).sum(axis=-1)).tolist()
        self.chances: list[list[list[float]]] = chances.tolist()
        # The gradient of a turn's log-prob by the logits [9]: 1 for the token that was taken, less its probability.
        self.scores: dict[tuple[int, tuple[int, ...]], Floats] = {}
        for state, turn in itertools.product(range(len(STATES)), TURNS):
            gradient = np.zeros_like(logits)
            for decision, option in decisions(turn):
                gradient[state, decision] = (option == 0) - first[state, decision]
            self.scores[state, turn] = gradient.ravel()

    def probabilities(self, state: int, turn: tuple[int, ...]) -> tuple[float, ...]:
        """The probability of each token of a turn."""
        return tuple(self.chances[state][decision][option] for decision, option in decisions(turn))


def decisions(turn: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two decisions of a turn with what was chosen, 0 or 1."""
    verb, box = turn
    return (0, verb - LOOK), (1 + verb - LOOK, box - A)


POLICY = Policy(np.array([[1.4, 0.8, 0.0], [0.0, 0.0, 3.0], [-1.6, 0.0, -3.0]]))


class TabularAgent:
    """Samples from a policy: a turn is drawn with its request's seed, whole, when it is submitted."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.codec = BoxCodec()
        self.vocabulary_size = len(VOCABULARY)
        self.events: list[Event] = []

    def submit(self, request: Request) -> None:
        """Draw the turn."""
        state, draw = STATES.index(request.tokens[-1]), random.Random(request.seed)
        look, *boxes = (first for first, _ in self.policy.chances[state])
        verb = LOOK if draw.random() < look else ANSWER
        tokens = verb, A if draw.random() < boxes[verb - LOOK] else B
        entropies = tuple(self.policy.entropies[state][decision] for decision, _ in decisions(tokens))
        logprobs = tuple(map(math.log, self.policy.probabilities(state, tokens)))
        if request.report_after:
            self.events.append(FirstTokens(request.uid, entropies[: request.report_after]))
        text = self.codec.decode(tokens)
        self.events.append(Completion(request.uid, tokens, text, logprobs, entropies, FinishReason.STOP, version=0))

    def step(self) -> Sequence[Event]:
        """Return what was drawn."""
        events, self.events = self.events, []
        return events

    def release(self, uid: str) -> None:
        """Nothing is kept of a finished turn."""

    def abort(self, uid: str) -> None:
        """Forget what was drawn."""
        self.events = [event for event in self.events if event.uid != uid]

    def pause(self) -> None:
        """There is no memory to let go of."""

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """There are no weights but the table."""
        raise NotImplementedError

    def figures(self) -> Mapping[str, float]:
        """Nothing is measured."""
        return {}


def exact_gradient(policy: Policy) -> tuple[float, Floats]:
    """The expected return and its gradient by the logits [9], from every trajectory that there is."""
    codec, expected, gradient = BoxCodec(), 0.0, np.zeros(policy.num_logits)

    def walk(env: Env, state: int, probability: float, score: Floats) -> None:
        nonlocal expected, gradient
        for turn in TURNS:
            twin = fork(env)
            observation, reward, terminated, truncated, _ = twin.step(codec.decode(turn))
            reached, total = (
                probability * math.prod(policy.probabilities(state, turn)),
                score + policy.scores[state, turn],
            )
            if terminated or truncated:
                expected += reached * float(reward)
                gradient += reached * float(reward) * total
            else:
                walk(twin, STATES.index(VOCABULARY.index(observation)), reached, total)

    env: Env = BoxEnv()
    env.reset()
    walk(env, STATES.index(PROMPT), 1.0, np.zeros(policy.num_logits))
    return expected, gradient


# The estimates.


def others_mean(group: Group, returns_G: Sequence[float]) -> list[float]:
    """Each leaf against the mean over all others."""
    total, others = sum(returns_G), len(group.trajectories) - 1
    return [(total - value) / others for value in returns_G]


def relative_roots(group: Group) -> float:
    """How many first turns there are for each initial one."""
    return sum(turn.parent is None for turn in group.turns) / len(initial_roots(group))


@dataclass(frozen=True, slots=True)
class Estimator:
    """Weights and baselines of leaves, and how many gradients the estimate is worth where both are right."""

    weights: Callable[[Group], Sequence[float]]
    baselines: Callable[[Group, Sequence[float]], Sequence[float]]
    factor: Callable[[Group], float]

    def estimate(self, group: Group, scores: Floats) -> Floats:
        """The gradient by the logits [9] as one tree has it, from the scores of its leaves [leaves, 9]."""
        advantages = np.subtract(group.rewards, self.baselines(group, group.rewards))
        return (advantages * self.weights(group)) @ scores / len(group.trajectories)


def leaf_scores(group: Group, policy: Policy) -> Floats:
    """The gradient of the log-prob of each trajectory by the logits [leaves, 9]."""
    scores: dict[str | None, Floats] = {None: np.zeros(policy.num_logits)}
    states: dict[str | None, int] = {None: STATES.index(PROMPT)}
    for turn in group.turns:  # parents come first
        scores[turn.uid] = scores[turn.parent] + policy.scores[states[turn.parent], turn.tokens]
        if turn.observation_tokens:
            states[turn.uid] = STATES.index(turn.observation_tokens[-1])
    return np.stack([scores[one.leaf] for one in group.trajectories])


def weights_by_own_roots(group: Group) -> list[float]:
    """Node weights divided by what the tree's own number of first turns makes of them."""
    return [weight / relative_roots(group) for weight in node_weights(group)]


ESTIMATORS: Mapping[str, Estimator] = {
    "node": Estimator(node_weights, node_baselines, relative_roots),
    "node, own roots": Estimator(weights_by_own_roots, node_baselines, lambda group: 1.0),
    "node, leaf baseline": Estimator(node_weights, others_mean, relative_roots),
    "leaf": Estimator(leaf_weights, others_mean, lambda group: 1.0),
}

# The strategy, and how many tokens' entropies it looks at.
STRATEGIES: Mapping[str, tuple[Branching, int]] = {
    "none": ("none", 1),
    "random": ("random", 1),
    "fixed": ("fixed", 1),
    "entropy, k = 1": ("entropy", 1),
    "entropy, k = 2": ("entropy", 2),
}


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the mean of many estimates is off the gradient.

    Attributes:
        bias: Length of the difference over the gradient's.
        across: The same of its part at right angles to the gradient, which no other learning rate makes up for.
        chance: What the bias would be if there were none, in the root of the mean square.
        errors: The largest difference of one parameter, in standard errors.
        variance: Of one estimate over the square of the gradient's length, summed over parameters.
    """

    bias: float
    across: float
    chance: float
    errors: float
    variance: float


def grow(policy: Policy, strategy: str, config: Config) -> Iterator[Group]:
    """Roll out the trees of one strategy; by entropy they branch where it is higher than in the first turn."""
    name, tokens = STRATEGIES[strategy]
    branching = BranchingConfig(rule="threshold", scale="vocabulary", tokens=tokens)
    rollout = RolloutConfig(config.num_generations, config.initial_generations, branching=branching)
    agent, envs = TabularAgent(policy), dict[str, Env](boxes=BoxEnv())
    for begin in range(0, config.num_estimates, BATCH):
        tasks = [TaskRef("boxes", 0)] * min(BATCH, config.num_estimates - begin)
        settings = RolloutSettings(rollout, name, temperature=1.0, seed=(config.seed, begin))
        yield from roll_out(agent, envs, tasks, settings).groups


def measure(policy: Policy, strategy: str, names: Sequence[str], config: Config) -> tuple[float, dict[str, Deviation]]:
    """Grow the trees of a strategy; return their mean ``roots / N`` and the deviation of each estimator."""
    roots: list[float] = []
    estimates: dict[str, list[Floats]] = {name: [] for name in names}
    factors: dict[str, list[float]] = {name: [] for name in names}
    for group in grow(policy, strategy, config):
        roots.append(relative_roots(group))
        scores = leaf_scores(group, policy)
        for name in names:
            estimates[name].append(ESTIMATORS[name].estimate(group, scores))
            factors[name].append(ESTIMATORS[name].factor(group))
    _, gradient = exact_gradient(policy)
    found = {name: deviation(np.stack(estimates[name]), np.array(factors[name]), gradient) for name in names}
    return float(np.mean(roots)), found


def deviation(estimates: Floats, factors: Floats, gradient: Floats) -> Deviation:
    """Compare estimates [trees, 9] with the exact gradient.

    The factors are taken out of the truth, tree by tree, not out of the estimates: ``estimate - factor * gradient`` has
    mean 0 exactly where there is no bias, and nothing is divided by a number that depends on the tree.
    """
    length = float(np.linalg.norm(gradient))
    differences = (estimates - factors[:, None] * gradient) / factors.mean()
    mean, variance = differences.mean(axis=0), differences.var(axis=0)
    across = mean - (mean @ gradient) / length**2 * gradient
    return Deviation(
        bias=float(np.linalg.norm(mean)) / length,
        across=float(np.linalg.norm(across)) / length,
        chance=math.sqrt(variance.sum() / len(estimates)) / length,
        errors=float((np.abs(mean) / np.sqrt(variance / len(estimates))).max()),
        variance=float(variance.sum()) / length**2,
    )


def limit(comparisons: int) -> float:
    """Standard errors that the largest of so many differences exceeds by chance with probability FALSE_ALARM."""
    return float(norm.isf(FALSE_ALARM / 2 / comparisons))


def main(config: Config) -> None:
    """Measure and print the table."""
    _, gradient = exact_gradient(POLICY)
    bound = limit(len(STRATEGIES) * len(ESTIMATORS) * gradient.size)
    table = Table(
        title=f"{config.num_estimates:,} trees a strategy, {config.num_generations} trajectories each, "
        f"{config.initial_generations} of them initial; bold above {bound:.1f} errors"
    )
    for name in ("branching", "roots / N", "estimator", "bias", "across", "chance", "errors", "variance / leaf"):
        table.add_column(name, justify="left" if name in ("branching", "estimator") else "right")
    for strategy in STRATEGIES:
        roots, found = measure(POLICY, strategy, tuple(ESTIMATORS), config)
        for name, row in found.items():
            table.add_row(
                *((strategy, f"{roots:.2f}") if name == next(iter(found)) else ("", "")),
                name,
                *(f"{share:.1%}" for share in (row.bias, row.across, row.chance)),
                f"{row.errors:.1f}",
                f"{row.variance / found['leaf'].variance:.2f}",
                style="bold" if row.errors > bound else "",
                end_section=name == list(found)[-1],
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
