"""The comparison that finds an engine with other weights than those that are trained."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forkgym.agents.errors import AgentFailure
from forkgym.agents.probing import check_probe, model_logprobs, probe_prompt
from tests.agents.tiny import full_measures, make_model


def test_the_prompt_has_tokens_of_the_vocabulary_and_leaves_room() -> None:
    assert len(probe_prompt(262, 4096)) == 32
    assert probe_prompt(262, 4096)[:4] == (7, 38, 131, 24)  # 7 + 31 n², modulo 262
    assert len(probe_prompt(262, 10)) == 5


def test_log_probs_are_the_models_in_evaluation_mode() -> None:
    model = make_model(attention_dropout=0.5)
    tokens = probe_prompt(262, 96)
    expected, _ = full_measures(model, tokens[:1], tokens[1:])
    model.train()
    assert model_logprobs(model, tokens).tolist() == pytest.approx(expected, abs=1e-5)
    assert model.training


def test_a_difference_above_the_tolerance_stops_the_run() -> None:
    ours, theirs = np.array([-1.0, -2.0], np.float32), np.array([-1.0, -2.002], np.float32)
    assert check_probe(ours, theirs, 0.01, "vLLM", 3) == pytest.approx(0.002, abs=1e-5)
    with pytest.raises(AgentFailure, match=r"weights \(version 3\).* differ by 0.002 nats .* expected at most 0.001"):
        check_probe(ours, theirs, 0.001, "vLLM", 3)


def test_no_number_is_within_the_tolerance() -> None:
    with pytest.raises(AgentFailure, match="nan"):
        check_probe(np.array([-1.0], np.float32), np.array([math.nan], np.float32), 0.001, "vLLM", 3)
