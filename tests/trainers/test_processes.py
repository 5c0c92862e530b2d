"""Two processes take the step that one takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.processes import add_up_gradients, gathered, interleaved
from forkgym.trainers.rollouts.collection import Collector
from forkgym.trainers.rollouts.rollout import TaskRef
from forkgym.trainers.types import RewardError
from tests.trainers.logprobs import PAD
from tests.trainers.rollouts.test_collection import collector_of, rule
from tests.trainers.rollouts.test_collection import settings as rollout_settings
from tests.trainers.rollouts.test_rollout import PayingEnv
from tests.trainers.test_update import (
    CLIPPED,
    CRITIC,
    EVERYTHING,
    LINEAR,
    compared_learner,
    eight_rows,
    gradient,
    model_of,
    settings,
    step,
    weights,
)

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
DEADLINE_S = 300.0  # a machine with other work may be slow; nobody waits for it otherwise

# Of eight rows: a part for each, four and four, and one part, so that a process has none.
CASES: Mapping[str, TrainerConfig] = {
    "linear, a part a row": replace(LINEAR, micro_batch_tokens=1),
    "linear, one part": LINEAR,
    "linear, tree": replace(LINEAR, forward="tree", micro_batch_tokens=30),
    "clipped, two parts": replace(CLIPPED, micro_batch_tokens=56),
    "clipped, one part": CLIPPED,
    "everything, tree": replace(EVERYTHING, forward="tree", micro_batch_tokens=30),
    "critic, two parts": replace(CRITIC, micro_batch_tokens=56),
    "a gradient that is cut": settings("gpg", max_grad_norm=0.01, micro_batch_tokens=1),
}


def take_step(config: TrainerConfig) -> dict[str, Any]:
    """One step of a fresh learner: its last gradient, the weights after it, and what it reports."""
    learner = compared_learner(config)
    outcome = dict(step(eight_rows(), config, learner))
    return {"gradient": gradient(learner), "weights": weights(learner), "outcome": outcome}


def take_half_step() -> dict[str, Any]:
    """The same of a model in half precision, whose gradients are in float32; all rows in one part."""
    learner, _ = make_learner(model_of(2).to(torch.bfloat16), PAD, 1.0, LINEAR)
    outcome = dict(step(eight_rows(), LINEAR, learner))
    return {"gradient": gradient(learner), "weights": weights(learner), "outcome": outcome}


def roll_trees(accelerator: Accelerator, count: int) -> list[list[str]]:
    """The task of each tree of a rollout, and of each of the greedy ones with its reward."""
    collector = Collector(collector_of().agent, collector_of().envs, accelerator)
    tasks = [TaskRef("loud", index) for index in range(1, count + 1)]
    found = collector.collect(tasks, rollout_settings(), rule(0.5, 20))
    greedy = collector.greedy_rewards(found.tasks, rollout_settings())
    return [
        [group.task_uid for group in found.groups],
        [f"shout/{task.index}" for task in found.tasks],
        [str(float(task.index % 2 == 0)) for task in found.tasks],
        [str(reward) for reward in greedy],
        [group.task_uid for group in (*found.replaced, *found.spare)],
    ]


def refusal(accelerator: Accelerator) -> str:
    """What is said of the second of two tasks, which the second process rolls out: its reward is no number."""
    collector = Collector(collector_of().agent, {"loud": PayingEnv(float("nan"))}, accelerator)
    try:
        collector.roll_out([TaskRef("loud", index) for index in range(2)], rollout_settings())
    except RewardError as error:
        return str(error)
    return ""


def work(folder: str) -> None:
    """What each of the processes runs."""
    accelerator = Accelerator()
    own, count = accelerator.process_index, accelerator.num_processes
    assert count == PROCESSES
    orders = {size: interleaved(accelerator, list(range(size))[own::count], size) for size in range(6)}
    one = torch.nn.Parameter(torch.zeros(2))
    one.grad = torch.tensor([1.0, 10.0]) if own == 0 else None  # the other had nothing to do
    add_up_gradients(accelerator, [one])
    everybodys = gathered(accelerator, [f"{own}{letter}" for letter in "ab"])
    found = {
        "orders": orders,
        "sum": one.grad,
        "gathered": everybodys,
        "half": take_half_step(),
        "trees": [roll_trees(accelerator, size) for size in (1, 2, 5)],
        "refusal": refusal(accelerator),
        "steps": {name: take_step(config) for name, config in CASES.items()},
    }
    torch.save(found, Path(folder) / f"{own}.pt")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def by_process(tmp_path_factory: pytest.TempPathFactory) -> Sequence[dict[str, Any]]:
    """What each of two processes found, on loopback."""
    folder = tmp_path_factory.mktemp("processes")
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    code = f"from tests.trainers.test_processes import work; work({str(folder)!r})"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        errors = [child.communicate(timeout=DEADLINE_S)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * PROCESSES, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradient_of_one(by_process: Sequence[dict[str, Any]], name: str) -> None:
    alone = take_step(CASES[name])
    assert float(alone["gradient"].abs().max()) > 1e-4
    for found in by_process:
        together = found["steps"][name]
        torch.testing.assert_close(together["gradient"], alone["gradient"], rtol=0.0, atol=1e-6)
        torch.testing.assert_close(together["weights"], alone["weights"], rtol=0.0, atol=1e-6)
        assert together["outcome"] == pytest.approx(alone["outcome"], abs=1e-5)
    first, second = (found["steps"][name]["weights"] for found in by_process)
    assert torch.equal(first, second)  # to the bit, or they would part over the steps


def test_half_precision_adds_up_in_float32(by_process: Sequence[dict[str, Any]]) -> None:
    alone = take_half_step()
    for found in by_process:
        assert found["half"]["gradient"].dtype == torch.float32
        torch.testing.assert_close(found["half"]["gradient"], alone["gradient"], rtol=0.0, atol=1e-6)
        assert torch.equal(found["half"]["weights"], alone["weights"])


def test_trees_are_shared_out_and_reach_both_in_order(by_process: Sequence[dict[str, Any]]) -> None:
    first, second = (found["trees"] for found in by_process)
    assert first == second
    for size, (trees, tasks, expected, greedy, _) in zip((1, 2, 5), first, strict=True):
        assert trees == tasks
        assert greedy == expected
        assert len(trees) == size
    valid = [sum(int(uid.removeprefix("shout/")) % 3 == 0 for uid in trees) for trees, *_ in first]
    assert valid[0] == 1
    assert valid[1] >= 1
    assert valid[2] >= 3


def test_what_one_process_refuses_all_refuse(by_process: Sequence[dict[str, Any]]) -> None:
    said = "task shout/1: turn t0d0 of trajectory t0 was paid nan, expected a finite number"
    assert [found["refusal"] for found in by_process] == [said] * PROCESSES


def test_results_stand_in_the_order_of_the_items(by_process: Sequence[dict[str, Any]]) -> None:
    for found in by_process:
        assert found["orders"] == {size: list(range(size)) for size in range(6)}
        assert found["gathered"] == ["0a", "0b", "1a", "1b"]
        assert found["sum"].tolist() == [1.0, 10.0]


def test_alone_nothing_travels() -> None:
    accelerator = Accelerator()
    assert interleaved(accelerator, ["a", "b", "c"], 3) == ["a", "b", "c"]
    parameter = torch.nn.Parameter(torch.zeros(2))
    add_up_gradients(accelerator, [parameter])
    assert parameter.grad is None
