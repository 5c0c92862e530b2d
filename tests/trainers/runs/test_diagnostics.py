"""Each known failure raises its alarm, once, and a run that is well raises none."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forkgym.agents.base import FinishReason
from forkgym.trainers.algorithms.config import CreditConfig
from forkgym.trainers.algorithms.mismatch import mismatch_metrics
from forkgym.trainers.algorithms.objective import outside
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.runs.diagnostics import RULES, WATCHED, Alarm, Watch, rules_for, watch_from
from forkgym.trainers.runs.diagnostics_config import DiagnosticsConfig
from forkgym.trainers.runs.metrics import rollout_metrics
from forkgym.trainers.runs.run_folder import json_text
from forkgym.trainers.types import Group, Turn
from tests.test_scripts import load
from tests.trainers.small_trees import trajectory, turn

Metrics = Mapping[str, float | None]
MARKERS = ("<think>", "</think>", "<search>", "</search>")
TEXT = "<think>a</think><search>b</search>"
HEALTHY_RUN = Path(__file__).with_name("default_run.csv")


def tree(rewards: Sequence[float] = (1, 0), change: Callable[[Turn], Turn] = lambda one: one) -> Group:
    """A turn of two tokens that called a tool, above two of four tokens with these rewards; one of six that earned 0.

    prompt 1 ─┬─ t0d0 ─┬─ t0d1   reward 1
              │        └─ t2d1   reward 0
              └─ t1d0            reward 0
    """
    turns = (
        replace(turn("t0d0", None, (3,) * 2, seen=(5,)), text=TEXT, tools=("search",)),
        replace(turn("t1d0", None, (4,) * 6), text=TEXT),
        replace(turn("t0d1", "t0d0", (6,) * 4, reward=rewards[0]), text=TEXT),
        replace(turn("t2d1", "t0d0", (7,) * 4, reward=rewards[1]), text=TEXT),
    )
    ends = (trajectory("t0d1", rewards[0]), trajectory("t1d0", 0.0), trajectory("t2d1", rewards[1]))
    return Group("toy", "toy/0", "?", "!", (1,), tuple(change(one) for one in turns), ends)


def of_length(one: Turn, length: int) -> Turn:
    """The turn with as many tokens."""
    return replace(one, tokens=(3,) * length, logprobs=(-1.0,) * length, entropies=(0.5,) * length)


def with_short_leaves(one: Turn) -> Turn:
    return of_length(one, 1) if one.parent else one


def deepened() -> Group:
    """The tree with two more turns of six tokens at the end of each trajectory."""
    group = tree()
    turns, ends = list(group.turns), list[str]()
    for one in group.trajectories:
        index, depth = one.leaf.split("d")
        parent = one.leaf
        for later in (1, 2):
            uid = f"{index}d{int(depth) + later}"
            turns.append(replace(turn(uid, parent, (8,) * 6), text=TEXT))
            parent = uid
        ends.append(parent)
    found = tuple(replace(one, leaf=leaf) for one, leaf in zip(group.trajectories, ends, strict=True))
    return replace(group, turns=tuple(turns), trajectories=found)


def measured(*groups: Group) -> Metrics:
    return rollout_metrics(groups, MARKERS)


def mismatched(*weights: float) -> Metrics:
    """A step whose tokens the trainer makes this many times as likely as the engine did."""
    return {**measured(tree()), **mismatch_metrics(torch.tensor(weights, dtype=torch.float64).log())}


def clipped(name: str, *ratios: float) -> Metrics:
    """A step whose tokens have these ratios and positive advantages, with a clip range of 0.8 to 1.2."""
    ratios_BT = torch.tensor([ratios])
    share = outside(ratios_BT.log(), (0.2, 0.2), torch.ones_like(ratios_BT)).double().mean()
    return {**measured(tree()), name: float(share)}


WELL = measured(tree())
# The alarms that a failure raises, a step before it, and a step with it.
FAILURES: list[tuple[tuple[str, ...], Metrics, Metrics]] = [
    # One group of six has a signal, 0.17.
    (("advantage collapse",), WELL, measured(tree(), *[tree((0, 0))] * 5)),
    (("segmentation drift, malformed",), WELL, measured(tree(change=lambda one: replace(one, error="unclosed")))),
    (
        ("segmentation drift, lost",),
        WELL,
        measured(tree(change=lambda one: replace(one, finish_reason=FinishReason.TURN_TOKENS))),
    ),
    # Two markers a turn instead of four.
    (
        ("segmentation drift, avoided",),
        WELL,
        measured(tree(change=lambda one: replace(one, text="b</think><search>"))),
    ),
    # Both steps have the advantages 2/3, -1/3, -1/3 and s^2 = 1/2 of two leaves on two tokens: T s^2 = 1. Their squares
    # about the mean sum up to 3 where leaves have four tokens, noise 1/3, and to 5/4 where they have one, noise 0.8.
    (("calibration variance",), WELL, measured(tree(change=with_short_leaves))),
    (
        ("entropy collapse",),
        WELL,
        measured(tree(change=lambda one: replace(one, entropies=(0.04,) * len(one.tokens)))),
    ),
    (
        ("length growth, turn", "length growth, trajectory"),
        WELL,
        measured(tree(change=lambda one: of_length(one, 3 * len(one.tokens)))),
    ),
    # 18 tokens a trajectory instead of 6, 5.2 a turn instead of 4.
    (("length growth, trajectory",), WELL, measured(deepened())),
    (("tool use lost",), WELL, measured(tree(change=lambda one: replace(one, tools=())))),
    (("clip share",), clipped("clip/fraction", 1.1, 0.5, 0.9, 1.3), clipped("clip/fraction", 1.1, 1.5)),
    (("clip share, last update",), clipped("last/clip/fraction", 1.0), clipped("last/clip/fraction", 1.1, 1.5)),
    # 12^2 / (4 * 84) = 0.43
    (("effective sample size",), mismatched(1, 1, 1, 1), mismatched(9, 1, 1, 1)),
]


def said(steps: Sequence[Metrics], config: DiagnosticsConfig) -> list[tuple[int, Alarm]]:
    """The alarms that begin or end in a run of these steps, with the step's number."""
    watch, found = Watch(config), list[tuple[int, Alarm]]()
    for number, metrics in enumerate(steps, start=1):
        watch, alarms = watch.after(metrics)
        found += [(number, alarm) for alarm in alarms]
    return found


@pytest.mark.parametrize(("names", "well", "failed"), FAILURES, ids=[", ".join(names) for names, _, _ in FAILURES])
def test_a_failure_is_said_once_and_so_is_its_end(names: tuple[str, ...], well: Metrics, failed: Metrics) -> None:
    found = said([*[well] * 4, *[failed] * 4, *[well] * 4], DiagnosticsConfig(window=2))
    begun = {alarm.rule.name: step for step, alarm in found if not alarm.is_over}
    over = {alarm.rule.name: step for step, alarm in found if alarm.is_over}
    assert len(found) == 2 * len(names)
    assert set(begun) == set(over) == set(names)
    # With the first step that fails, or once both steps of the window do.
    assert set(begun.values()) <= {5, 6}
    assert set(over.values()) <= {9, 10}


def test_every_rule_is_tested() -> None:
    assert {name for names, _, _ in FAILURES for name in names} == {rule.name for rule in RULES}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("trainer", "missing"),
    [
        (TrainerConfig(), set[str]()),
        (TrainerConfig(algorithm="arpo-gpg", credit=CreditConfig(baseline="others")), set[str]()),
        (TrainerConfig(algorithm="arpo", credit=CreditConfig(calibrate=False)), {"calibration variance"}),
        (TrainerConfig(algorithm="arpo-gpg", credit=CreditConfig(baseline="none")), {"advantage collapse"}),
        (TrainerConfig(algorithm="arpo-gpg", credit=CreditConfig(baseline="greedy")), {"advantage collapse"}),
        (TrainerConfig(algorithm="ppo"), {"advantage collapse", "calibration variance"}),
        (
            TrainerConfig(algorithm="arpo-gpg", credit=CreditConfig(baseline="critic")),
            {"advantage collapse", "calibration variance"},
        ),
    ],
)
def test_alarms_that_are_untrue_of_an_algorithm_are_left_out(trainer: TrainerConfig, missing: set[str]) -> None:
    rules = rules_for(trainer.settings)
    assert {rule.name for rule in RULES} - {rule.name for rule in rules} == missing
    watch = watch_from(DiagnosticsConfig(window=1), [], rules)
    _, alarms = watch.after({"groups/valid_fraction": 0.0, "calibration/noise": 9.0})
    assert {alarm.rule.name for alarm in alarms} == {"advantage collapse", "calibration variance"} - missing


def test_a_run_that_stays_as_it_is_raises_nothing() -> None:
    assert said([WELL] * 30, DiagnosticsConfig()) == []
    # A step that fails among many that do not is chance.
    failed = measured(tree(change=lambda one: replace(one, error="unclosed")))
    assert said([*[WELL] * 12, failed, *[WELL] * 12], DiagnosticsConfig()) == []


def test_the_default_job_raises_nothing() -> None:
    """Replays what `scripts/train_arpo.py` measured with its defaults, seed 0."""
    with HEALTHY_RUN.open(newline="", encoding="utf-8") as file:
        steps = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert len(steps) == 200
    judged = {name for step in steps for name in step} & WATCHED
    assert judged == WATCHED - {"clip/fraction", "last/clip/fraction"}  # it has no ratio
    assert said(steps, DiagnosticsConfig()) == []


def test_the_sentence_says_the_figure_its_limit_and_what_to_try() -> None:
    ((step, alarm),) = said([{"entropy/mean": 0.5}] * 2 + [{"entropy/mean": 0.04}] * 2, DiagnosticsConfig(window=2))
    assert step == 4
    assert alarm.sentence == (
        "entropy collapse: entropy/mean is 0.04, the mean over 2 steps, below its limit 0.05 (diagnostics.min_entropy "
        f"against the start of the run): {alarm.rule.meaning}; try: {alarm.rule.advice}"
    )
    (*_, (_, alarm)) = said([{"clip/fraction": 0.4}, {"clip/fraction": 0.1}], DiagnosticsConfig(window=1))
    assert alarm.sentence == "clip share is over: clip/fraction is 0.1, the mean over 1 steps"


def test_an_alarm_stands_until_the_figure_is_better_by_a_tenth() -> None:
    one = DiagnosticsConfig(window=1)
    shares = (0.51, 0.49, 0.51, 0.49, 0.54, 0.56, 0.54, 0.49)
    found = said([{"mismatch/effective_sample_size": share} for share in shares], one)
    assert [(step, alarm.is_over) for step, alarm in found] == [(2, False), (6, True), (8, False)]
    clipped_shares = (0.29, 0.31, 0.28, 0.31, 0.26, 0.29)
    found = said([{"clip/fraction": share} for share in clipped_shares], one)
    assert [(step, alarm.is_over) for step, alarm in found] == [(2, False), (5, True)]


def test_the_start_is_the_first_steps_of_the_run() -> None:
    # It falls by a half every other step; the limit stays 0.1 * (8 + 4) / 2 = 0.6.
    entropies = (8.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5)
    found = said([{"entropy/mean": entropy} for entropy in entropies], DiagnosticsConfig(window=2))
    assert [(step, alarm.value, round(alarm.limit, 9)) for step, alarm in found] == [(8, 0.5, 0.6)]


def test_what_was_never_there_cannot_be_lost() -> None:
    steps = [{"tool_calls/mean": 0.0, "markers/turn_mean": 0.0, "entropy/mean": 0.0}] * 5
    assert said(steps, DiagnosticsConfig(window=2)) == []


@pytest.mark.parametrize("nothing", [{}, {"clip/fraction": None}, {"clip/fraction": math.nan}])
def test_a_figure_is_judged_where_half_of_the_steps_have_it(nothing: Metrics) -> None:
    steps = [nothing, nothing, nothing, {"clip/fraction": 0.9}]
    assert said(steps, DiagnosticsConfig(window=4)) == []
    found = said([*steps, {"clip/fraction": 0.9}, nothing, nothing, nothing], DiagnosticsConfig(window=4))
    assert [(step, alarm.is_over) for step, alarm in found] == [(5, False)]  # and it stands while nobody knows better


def test_nothing_is_judged_before_the_window_is_full() -> None:
    found = said([{"clip/fraction": 0.9}] * 5, DiagnosticsConfig(window=3))
    assert [step for step, _ in found] == [3]


def test_no_window_is_no_alarms() -> None:
    assert said([failed for _, _, failed in FAILURES], DiagnosticsConfig(window=0)) == []


def test_a_run_that_is_resumed_says_what_it_would_have_said() -> None:
    steps = [metrics for _, well, failed in FAILURES for metrics in (well, failed, failed)]
    steps[4] = {**steps[4], "entropy/mean": math.inf}
    kept: list[Metrics] = [json.loads(json_text(step)) for step in steps]  # as the run's folder keeps them
    config = DiagnosticsConfig(window=3)
    whole = said(steps, config)
    assert len(whole) > 5
    for resumed in range(len(steps) + 1):
        watch = watch_from(config, kept[:resumed])
        assert watch == watch_from(config, steps[:resumed])
        found: list[tuple[int, Alarm]] = []
        for number, metrics in enumerate(steps[resumed:], start=resumed + 1):
            watch, alarms = watch.after(metrics)
            found += [(number, alarm) for alarm in alarms]
        assert found == [(step, alarm) for step, alarm in whole if step > resumed]


def test_every_setting_that_an_alarm_names_exists() -> None:
    config = load("train_arpo").TrainConfig()
    named = {name for rule in RULES for name in re.findall(r"\b(?:trainer|rollout|env|agent)\.[\w.]+", rule.advice)}
    assert len(named) > 5
    for name in sorted(named):
        section: object = config
        for part in name.split("."):
            assert hasattr(section, part), name
            section = getattr(section, part)
    assert {rule.field for rule in RULES} | {"window"} == {one.name for one in fields(DiagnosticsConfig)}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("window", -1, "0 or more"),
        ("max_growth", 0.5, "at least 1"),
        ("max_calibration_noise", math.nan, "0 or more"),
        ("min_entropy", 1.5, "0 to 1"),
        ("min_effective_sample_size", math.nan, "0 to 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"diagnostics.{name} is {value}, expected {expected}")):
        replace(DiagnosticsConfig(), **{name: value})
