"""Settings of the vllm agent, and what a user reads who has no vLLM."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from forkgym.agents.config import AgentConfig, VllmConfig
from forkgym.agents.vllm.sampled_model import logprobs_to_ask
from forkgym.agents.vllm.vllm_agent import VllmAgent
from tests.agents.tiny import byte_tokenizer, make_model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VllmConfig(memory_fraction=1.0), "memory_fraction is 1.0, expected above 0 and below 1"),
        (lambda: VllmConfig(cache_gib=0.0), "cache_gib is 0.0, expected a number above 0"),
        (lambda: VllmConfig(max_context=15), "max_context is 15, expected at least 16"),
        (lambda: VllmConfig(top_logprobs=0), "top_logprobs is 0, expected at least 1"),
        (lambda: VllmConfig(probe_tolerance=-1.0), "probe_tolerance is -1.0, expected a number above 0"),
        (lambda: AgentConfig(kind="vllm", temperature=0.005), "temperature is 0.005, expected 0.01 to 2"),
        (lambda: AgentConfig(kind="vllm", temperature=3.0), "temperature is 3.0, expected 0.01 to 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_of_a_small_vocabulary_every_log_prob_is_asked_for() -> None:
    assert logprobs_to_ask(640, VllmConfig()) == 640
    assert logprobs_to_ask(151_936, VllmConfig(top_logprobs=20)) == 20
    assert logprobs_to_ask(1_100, VllmConfig(top_logprobs=2_000)) == 1_100


def test_a_missing_vllm_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if there were none
    with pytest.raises(ValueError, match=r"vLLM, which is not installed: pip install forkgym\[vllm\]"):
        VllmAgent(make_model(), byte_tokenizer())
