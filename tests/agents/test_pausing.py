"""What agents do with their memory while the policy is updated; the vllm agent on an engine that is no real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from forkgym.agents.base import Request
from forkgym.agents.codec import ByteCodec
from forkgym.agents.config import VllmConfig
from forkgym.agents.probing import model_logprobs
from forkgym.agents.scripted import ScriptedAgent
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.agents.vllm import vllm_agent, vllm_engine
from forkgym.agents.vllm.vllm_agent import VllmAgent
from forkgym.agents.vllm.vllm_engine import Engine
from tests.agents.tiny import byte_tokenizer, complete, make_model


class FakeVllm:
    """vLLM's engine as far as memory and weights go; writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.engine_core = None
        self.model_config = SimpleNamespace(max_model_len=64)
        self.weights: dict[str, torch.Tensor] = {}

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", tags))

    def collective_rpc(self, function: Callable[[Any], None]) -> None:
        self.calls.append("weights")
        runner = SimpleNamespace(reload_weights=self.reload, get_model=torch.nn.Module)
        function(SimpleNamespace(model_runner=runner))

    def reload(self, weights_iterator: Any) -> None:
        self.weights = dict(weights_iterator)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    made = FakeVllm()

    def start(model: object, settings: dict[str, Any]) -> FakeVllm:
        made.calls.append(settings["enable_sleep_mode"])
        return made

    def leave(model: torch.nn.Module) -> None:
        """Have no layers to prepare."""

    monkeypatch.setattr(vllm_engine, "start_engine", start)
    monkeypatch.setattr(vllm_engine, "prepare_output_layers", leave)
    return made


def engine_on(device: str, config: VllmConfig) -> Engine:
    model = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    return Engine(cast(PreTrainedModel, model), 4, 8, config)


def test_on_a_gpu_the_engine_sleeps_and_wakes_for_weights_before_keys_and_values(fake: FakeVllm) -> None:
    engine = engine_on("cuda", VllmConfig())
    assert fake.calls == [True]
    model = make_model()
    engine.load(model)
    assert fake.calls[1:] == ["weights", "reset"]
    fake.calls.clear()
    for _ in range(2):  # a second time changes nothing
        engine.sleep()
        assert engine.asleep
    assert fake.calls == [("sleep", 2)]
    fake.calls.clear()
    engine.load(model)
    assert fake.calls == [("wake_up", ["weights"]), "weights", ("wake_up", ["kv_cache"]), "reset"]
    assert not engine.asleep
    assert set(fake.weights) == {name for name, _ in model.named_parameters()}


def test_where_it_does_not_sleep_nothing_is_asked_of_it(fake: FakeVllm) -> None:
    for device, config in (("cuda", VllmConfig(sleep=False)), ("cpu", VllmConfig()), ("cpu", VllmConfig(sleep=False))):
        fake.calls.clear()
        engine = engine_on(device, config)
        engine.sleep()
        engine.load(make_model())
        assert fake.calls == [False, "weights", "reset"]


def test_to_sleep_on_a_cpu_is_refused(fake: FakeVllm) -> None:
    with pytest.raises(ValueError, match=r"agent\.vllm\.sleep is true, expected a GPU"):
        engine_on("cpu", VllmConfig(sleep=True))
    assert fake.calls == []


def test_an_engine_in_each_of_several_processes_is_refused(fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"4 of those were launched; expected one, or agent\.kind vllm-server"):
        engine_on("cuda", VllmConfig())
    assert fake.calls == []


class FakeEngine:
    """An engine that sleeps, and scores as its newest weights do."""

    def __init__(self, model: PreTrainedModel, slots: int, num_logprobs: int, config: VllmConfig) -> None:
        self.model = model
        self.max_context = 64
        self.asleep = False

    def sleep(self) -> None:
        self.asleep = True

    def load(self, model: PreTrainedModel) -> None:
        self.model = model
        self.asleep = False

    def score(self, prompt: Sequence[int], count: int) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        tokens = (*prompt, *range(count))
        return tokens, model_logprobs(self.model, tokens)

    def add(self, name: str, request: Request, max_tokens: int) -> None:
        """Take a request."""

    def abort(self, names: Sequence[str]) -> None:
        """Forget requests."""


def test_the_vllm_agent_takes_requests_again_after_new_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_agent, "Engine", FakeEngine)
    model = make_model()
    agent = VllmAgent(model, byte_tokenizer())
    request = Request("x", (1, 2), 4, (), seed=0)
    agent.submit(request)
    with pytest.raises(RuntimeError, match="a pause while 1 requests run"):
        agent.pause()
    agent.abort("x")
    agent.pause()
    with pytest.raises(RuntimeError, match="request x: the engine sleeps, expected load_weights before it"):
        agent.submit(request)
    agent.load_weights(model, 1)
    agent.submit(request)
    agent.abort("x")


def test_the_embedded_agent_frees_its_cache_and_samples_the_same_afterwards() -> None:
    model = make_model()
    agent = TransformersAgent(model, byte_tokenizer(), slots=2)
    request = Request("x", tuple(range(5, 25)), 12, (), seed=0)
    first = complete(agent, request)
    agent.submit(Request("y", (1, 2), 4, (), seed=0))
    with pytest.raises(RuntimeError, match="a pause while 1 requests run"):
        agent.pause()
    agent.abort("y")
    layers: list[Any] = agent._model._cache.layers
    assert all(layer.keys is not None for layer in layers)
    agent.pause()
    assert all(layer.keys is None and layer.values is None for layer in layers)
    follows = Request("z", request.tokens + first.tokens + (9,), 6, (), seed=1, continues="x")
    continued = complete(agent, follows)
    agent.release("z")
    agent.pause()
    agent.load_weights(model, 0)
    fresh = complete(agent, Request("z", follows.tokens, 6, (), seed=1))
    assert continued.tokens == fresh.tokens


def test_a_scripted_agent_has_nothing_to_let_go_of() -> None:
    agent = ScriptedAgent(["a"], ByteCodec())
    agent.submit(Request("x", (1,), 4, (), seed=0))
    with pytest.raises(RuntimeError, match="a pause while 1 requests run"):
        agent.pause()
    agent.step()
    agent.release("x")
    agent.pause()
