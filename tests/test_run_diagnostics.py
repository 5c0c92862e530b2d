"""Diagnostics from the outside: what a run writes and says, and the page that tells what it means."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkgym.trainers.runs.diagnostics import RULES, Rule
from forkgym.trainers.runs.diagnostics_config import DiagnosticsConfig
from forkgym.trainers.runs.metrics import rollout_metrics
from forkgym.trainers.runs.reporting import Progress
from tests.test_scripts import load, metrics, train

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
GOES_OFF = {
    "below": "below {:g}",
    "above": "above {:g}",
    "below start": "below {:g} × start",
    "above start": "above {:g} × start",
    "rise": "above start + {:g}",
}
# Between them they have every part of the loss, several updates, and trajectories that share turns.
RUNS = (
    "--trainer.algorithm arpo --trainer.updates_per_rollout 2 --trainer.loss.kl_weight 0.1",
    "--trainer.algorithm ppo --trainer.loss.entropy_weight 0.1",
)


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table below a heading of the page."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    _, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def documented() -> dict[str, str]:
    """The meaning of each figure of the page."""
    return {name: meaning for names, meaning in rows("Figures") for name in re.findall(r"`([^`]+)`", names)}


def page_name(name: str) -> str:
    """How the page calls a figure of a run."""
    name = re.sub(r"^accuracy/.+", "accuracy/ENV_ID", name)
    return re.sub(r"^last/.+", "last/NAME", name)


def row(rule: Rule) -> list[str]:
    limit = GOES_OFF[rule.kind].format(getattr(DiagnosticsConfig(), rule.field))
    return [rule.name, rule.meaning, f"`{rule.figure}`", f"{limit} (`{rule.field}`)", rule.advice]


def test_the_page_lists_every_alarm() -> None:
    assert list(rows("Alarms")) == [row(rule) for rule in RULES]
    assert {page_name(rule.figure) for rule in RULES} <= set(documented())


def test_the_page_lists_every_figure_that_a_run_writes(tmp_path: Path) -> None:
    written: set[str] = set()
    for number, options in enumerate(RUNS):
        run = tmp_path / str(number)
        assert train("--run_dir", str(run), "--evaluation.num_tasks", "0", *options.split()) == 0
        written |= {page_name(name) for record in metrics(run) for name in record}
    page = documented()
    assert written - set(page) == set()
    # An engine's own figures are in no run of this test.
    assert {name for name in page if not name.startswith("agent/")} - written == set()
    assert all(meaning for meaning in page.values())


def without_signal(*arguments: Any) -> dict[str, float]:
    return {**rollout_metrics(*arguments), "groups/valid_fraction": 0.0}


def alarms(text: str) -> Sequence[str]:
    return re.findall(r"^step \d+: advantage collapse: groups/valid_fraction is 0,", text, re.MULTILINE)


def test_an_alarm_is_said_once_and_not_again_by_the_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: Progress, step: int, figures: object) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    monkeypatch.setattr("forkgym.trainers.loop.rollout_metrics", without_signal)
    run = tmp_path / "run"
    options = ("--run_dir", str(run), "--diagnostics.window", "2", "--evaluation.num_tasks", "0")
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupt)
        assert train(*options) == 130
    assert alarms(capsys.readouterr().err) == ["step 2: advantage collapse: groups/valid_fraction is 0,"]
    script = load("train_arpo")
    assert script.main(script.read_config(["--run_dir", str(run), "--resume"])) == 0
    assert alarms(capsys.readouterr().err) == []
    standing = [json.loads(line)["alarms"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert standing[0] == 0
    assert min(standing[1:]) >= 1


def test_groups_of_equal_rewards_are_no_alarm_where_a_critic_learns_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("forkgym.trainers.loop.rollout_metrics", without_signal)
    options = ("--diagnostics.window", "2", "--evaluation.num_tasks", "0", "--trainer.credit.baseline")
    assert train("--run_dir", str(tmp_path / "critic"), *options, "critic") == 0
    assert alarms(capsys.readouterr().err) == []
    assert train("--run_dir", str(tmp_path / "mean"), *options, "mean") == 0
    assert alarms(capsys.readouterr().err) == ["step 2: advantage collapse: groups/valid_fraction is 0,"]
