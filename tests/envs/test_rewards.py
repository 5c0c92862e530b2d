"""Attempts to earn a reward without an answer: whole episodes, from the corpus and with tools that print the answer."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import forkgym.envs
from forkgym.envs.base import ToolEnv
from forkgym.envs.math_env import MathEnv, VerifiedMathEnv
from forkgym.envs.search_env import SearchQAEnv
from forkgym.envs.tasks import SolutionStep, StopReason, Task
from forkgym.envs.verification.verify_process import shared_process
from forkgym.tools.base import Tool, as_tool

MakeEnv = Callable[..., gym.Env[str, str]]

ENV_IDS = [env_id for env_id, _, _ in forkgym.envs.ENVS]
KINDS: dict[str, type[ToolEnv]] = {"qa": SearchQAEnv, "math": VerifiedMathEnv, "gsm8k": MathEnv}


class OneTask:
    size = 1

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def __getitem__(self, index: int) -> Task:
        return Task("The question?", self.answer, uid=f"one/{index}")


def canned_tool(name: str, outputs: Iterator[str]) -> Tool:
    """A tool that returns what the corpus says its tools returned."""

    def canned(text: str) -> str:
        """Return the next output."""
        return next(outputs, "")

    return as_tool(canned, name=name, inline=True)


def play(row: dict[str, Any], kind: type[ToolEnv] | None = None, *, in_answer: bool = False) -> dict[str, Any]:
    """Play the policy's turns until the episode ends; return the last ``info``, with the sum of all rewards."""
    segments: list[list[str]] = row["input"]["segments"]
    results = (text.removeprefix("<result>").removesuffix("</result>") for author, text in segments if author == "tool")
    tools = [canned_tool(name, results) for name in ("python", "search")]
    env = (kind or KINDS[row["input"]["task"]])(taskset=OneTask(row["input"]["gold"]), tools=tools)
    env.reset(seed=0)
    total, info = 0.0, {"accuracy": 0.0}
    for author, text in segments:
        if author == "policy":
            action = f"<answer>{text}</answer>" if in_answer else text
            _, reward, terminated, truncated, step_info = env.step(action)
            total += reward
            info = {"accuracy": 0.0, **step_info}
            if terminated or truncated:
                break
    return {**info, "total": total}


@pytest.fixture(scope="module")
def corpus(shared_attacks: Path) -> dict[str, dict[str, Any]]:
    lines = (shared_attacks / "reward.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_corpus_of_attempts(corpus: dict[str, dict[str, Any]], bounded_memory: None) -> None:
    shared_process().compare("x", "x")  # it has started before anything is timed
    wrong: list[str] = []
    for name, row in corpus.items():
        expect = row["expect"]
        begun_s = time.monotonic()
        outcome = play(row)
        took_s = time.monotonic() - begun_s
        masked = outcome.get("stop_reason") == StopReason.TOOL_FAILURE
        if masked != expect.get("masked", False):
            wrong.append(f"{name}: it ended with {outcome.get('stop_reason')}, expected {expect}")
        if outcome["accuracy"] != (expect["correct"] or 0):
            wrong.append(f"{name}: accuracy is {outcome['accuracy']}, expected {expect}")
        if outcome["total"] > expect.get("max_total", 1.0):
            wrong.append(f"{name}: the reward is {outcome['total']}, expected {expect}")
        if outcome.get("reward/f1", 0.0) > expect.get("max_f1", 1.0):
            wrong.append(f"{name}: F1 is {outcome['reward/f1']}, expected {expect}")
        if expect.get("official_em") and outcome["reward/official_exact_match"] != 1.0:
            wrong.append(f"{name}: the official exact match is not reported")
        if took_s > expect.get("max_wall_s", 3.0):
            wrong.append(f"{name}: took {took_s:.1f} s, expected {expect}")
    assert wrong == []
    assert len(corpus) == 22


@pytest.mark.parametrize("kind", [MathEnv, VerifiedMathEnv])
def test_both_ways_to_score_mathematics_withstand_it(corpus: dict[str, dict[str, Any]], kind: type[ToolEnv]) -> None:
    rows = [row for row in corpus.values() if row["input"]["task"] != "qa" and row["expect"]["correct"] is not None]
    assert len(rows) >= 14
    for row in rows:
        assert play(row, kind)["accuracy"] == row["expect"]["correct"], row["id"]


def test_a_timeout_of_grading_is_counted(corpus: dict[str, dict[str, Any]]) -> None:
    outcome = play(corpus["reward-verifier_crash"])
    assert (outcome["stop_reason"], outcome["reward/grading_timeout"]) == (StopReason.ANSWERED, 1.0)
    assert play(corpus["reward-wrong"])["reward/grading_timeout"] == 0.0


def test_a_gold_that_nothing_can_be_held_against_is_masked(corpus: dict[str, dict[str, Any]]) -> None:
    # Sources of tasks leave such rows out, see test_competition.py; this is a taskset of somebody's own.
    outcome = play(corpus["reward-gold_unparsable"])
    assert (outcome["stop_reason"], outcome["total"]) == (StopReason.TOOL_FAILURE, 0.0)
    assert "'see solution'" in outcome["failure"]


def test_a_list_of_guesses_inside_an_answer(corpus: dict[str, dict[str, Any]]) -> None:
    # Outside the markers, as the corpus has them, neither earns anything. Inside, the last number counts where only
    # numbers are compared: a list of guesses is one guess, its last. As mathematics it is no expression.
    spray, contradiction = corpus["reward-gsm_spray"], corpus["reward-gsm_first"]
    assert play(spray, MathEnv, in_answer=True)["accuracy"] == 1.0
    assert play(contradiction, MathEnv, in_answer=True)["accuracy"] == 0.0
    assert play(spray, VerifiedMathEnv, in_answer=True)["accuracy"] == 0.0
    assert play(contradiction, VerifiedMathEnv, in_answer=True)["accuracy"] == 0.0


# Tools that print the answer.


@pytest.mark.parametrize("grammar", ["arpo", "search_r1", "hermes"])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_what_a_tool_prints_earns_nothing(make_env: MakeEnv, env_id: str, grammar: str) -> None:
    printed: list[str] = []

    def parrot(text: str) -> str:
        """Print the answer."""
        return printed[-1]

    env = make_env(env_id, tools=[as_tool(parrot, inline=True)], grammar=grammar, max_turns=4).unwrapped
    assert isinstance(env, ToolEnv)
    env.reset(options={"index": 0})
    gold = env.current_task.answer
    answer = env.render_step(SolutionStep(gold))
    call = env.render_step(SolutionStep("?", tool="parrot"))
    for text in (
        gold,
        f"#### {gold}",
        rf"\boxed{{{gold}}}",
        answer,
        f"{''.join(env.markers)}{answer}#### {gold}{call}",
    ):
        printed.append(text)
        env.reset(options={"index": 0})
        steps = [env.step(call) for _ in range(4)]
        # Rewards, whether terminated, whether truncated.
        assert [step[1:4] for step in steps] == [(0.0, False, False)] * 3 + [(0.0, False, True)], text
        info = steps[-1][4]
        assert (info["accuracy"], info["stop_reason"], info["tool_calls"]) == (0.0, StopReason.TURN_LIMIT, 3.0)
        # Nor does an answer that only points to it.
        env.reset(options={"index": 0})
        env.step(call)
        _, reward, _, _, info = env.step(env.render_step(SolutionStep("as the tool says")))
        assert (info["stop_reason"], info["accuracy"], reward) == (StopReason.ANSWERED, 0.0, 0.0), text
