"""The embedded policy: made from a seed, and neither hopeless nor finished."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from forkgym.agents.building import load_policy
from forkgym.agents.config import AgentConfig
from forkgym.agents.loading import load_tokenizer, model_location
from forkgym.envs.config import EnvConfig, make_held_out_envs
from forkgym.trainers.config import EvaluationConfig, RolloutConfig
from forkgym.trainers.evaluation import evaluate
from tests.test_scripts import load


def test_markers_are_single_tokens_and_names_are_syllables() -> None:
    tokenizer = load_tokenizer("embedded")
    for name in ("think", "search", "calculator", "python", "result", "answer"):
        for tag in (f"<{name}>", f"</{name}>"):
            assert len(tokenizer(tag, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.tokenize("Kalomi is 12") == ["Ka", "lo", "mi", "Ġis", "Ġ", "1", "2"]


def test_the_same_seed_makes_the_same_policy(tmp_path: Path) -> None:
    script = load("make_policy")
    weights: list[dict[str, torch.Tensor]] = []
    for name in ("first", "second"):
        script.main(script.PolicyConfig(output=tmp_path / name, num_steps=2, demonstrations_per_step=4))
        weights.append(safetensors.torch.load_file(tmp_path / name / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    shipped = Path(model_location("embedded")) / "tokenizer.json"
    assert (tmp_path / "first" / "tokenizer.json").read_text() == shipped.read_text()


@pytest.mark.slow
def test_it_knows_the_format_and_fails_often() -> None:
    agent = load_policy(AgentConfig()).agent
    envs = make_held_out_envs(EnvConfig(), None, None)
    results = evaluate(agent, envs, EvaluationConfig(), RolloutConfig().for_agent(AgentConfig()), 1.0)
    for result in results.values():
        assert 0.25 <= result["accuracy"] <= 0.45
        assert 0.25 <= result["accuracy/sampled"] <= 0.45
        assert result["reward/format"] > 0.95


@pytest.mark.slow
def test_it_fails_most_of_what_is_harder() -> None:
    agent = load_policy(AgentConfig()).agent
    envs = make_held_out_envs(EnvConfig(difficulty=3), None, None)
    results = evaluate(agent, envs, EvaluationConfig(num_tasks=200), RolloutConfig().for_agent(AgentConfig()), 1.0)
    assert results["forkgym/WordMath-v0"]["accuracy"] <= 0.05
    assert results["forkgym/MultiHop-v0"]["accuracy"] <= 0.25
