"""That agents learn: the main job itself, for `make nightly`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_scripts import load


def gains(run: Path) -> dict[str, float]:
    """Points of greedy accuracy gained, by environment."""
    results = json.loads((run / "evaluation.json").read_text())
    return {
        env_id: 100 * (results["after"][env_id]["accuracy"] - before["accuracy"])
        for env_id, before in results["before"].items()
    }


def train(run: Path, *arguments: str) -> dict[str, float]:
    script = load("train_arpo")
    assert script.main(script.read_config(["--run_dir", str(run), *arguments])) == 0
    return gains(run)


@pytest.mark.slow
def test_the_main_job_gains(tmp_path: Path) -> None:
    assert min(train(tmp_path / "run").values()) >= 12


@pytest.mark.slow
def test_with_shuffled_rewards_it_does_not(tmp_path: Path) -> None:
    assert max(train(tmp_path / "run", "--trainer.credit.shuffle_rewards", "true").values()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["gpg", "arpo", "grpo"])
def test_the_other_algorithms_gain_too(tmp_path: Path, algorithm: str) -> None:
    assert min(train(tmp_path / "run", "--trainer.algorithm", algorithm).values()) >= 12
