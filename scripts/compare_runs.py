"""Print what runs have gained as a Markdown table: accuracy before and after, and the mean over the runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Arguments:
    """Which runs to compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""


def main(arguments: Arguments) -> None:
    """Read each run's evaluation and print the table."""
    evaluations = {run.name: json.loads((run / "evaluation.json").read_text()) for run in arguments.runs}
    print("| run | environment | greedy before | greedy after | gain | sampled before | sampled after | gain |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, evaluation in evaluations.items():
        for env_id in evaluation["before"]:
            before, after = evaluation["before"][env_id], evaluation["after"][env_id]
            print(f"| {name} | {env_id} | {' | '.join(cells(before, after))} |")
    if len(evaluations) > 1:
        for env_id in next(iter(evaluations.values()))["before"]:
            print(f"| **mean** | {env_id} | {' | '.join(mean_cells(list(evaluations.values()), env_id))} |")


def cells(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Greedy accuracy with its interval, then sampled accuracy, and the gain of each in points."""
    greedy = [f"{percent(one['accuracy'])} [{', '.join(map(percent, one['interval']))}]" for one in (before, after)]
    sampled = [percent(one["accuracy/sampled"]) for one in (before, after)]
    return [*greedy, gain(before, after, "accuracy"), *sampled, gain(before, after, "accuracy/sampled")]


def mean_cells(evaluations: Sequence[dict[str, Any]], env_id: str) -> list[str]:
    """The means over runs of what ``cells`` shows, without intervals."""
    mean = {
        when: {
            name: statistics.fmean(evaluation[when][env_id][name] for evaluation in evaluations)
            for name in ("accuracy", "accuracy/sampled")
        }
        for when in ("before", "after")
    }
    shown: list[str] = []
    for name in ("accuracy", "accuracy/sampled"):
        shown += [
            percent(mean["before"][name]),
            percent(mean["after"][name]),
            gain(mean["before"], mean["after"], name),
        ]
    return shown


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f}"


def gain(before: dict[str, Any], after: dict[str, Any], name: str) -> str:
    """The difference in points, with its sign, rounded as at the end of a run."""
    return f"{100 * after[name] - 100 * before[name]:+.1f}"


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
