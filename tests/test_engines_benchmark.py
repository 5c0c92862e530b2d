"""The benchmark of engines gives each of them the same work."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from forkgym.agents.base import Request
from forkgym.agents.transformers_agent import TransformersAgent
from tests.agents.tiny import make_model

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks" / "engines.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_engines", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def small(program: ModuleType) -> Any:
    """Two prompts, two turns after each and one after each of those: 2 x (2 + 2) turns of 3 tokens."""
    return program.Work("small", [[5, 6], [7, 8]], (2, 1), 3, [9])


def test_tokens_are_counted_over_all_levels(program: ModuleType) -> None:
    assert small(program).tokens == 24
    single, linear, branching = program.make_works(0)
    assert single.tokens == 8 * 8 * 128
    assert linear.tokens == 4 * 4 * 4 * 64
    assert branching.tokens == 4 * (2 + 4 + 8 + 16) * 64


def test_no_prompt_comes_twice(program: ModuleType) -> None:
    prompts = [
        tuple(prompt) for repetition in range(3) for work in program.make_works(repetition) for prompt in work.prompts
    ]
    assert len(set(prompts)) == len(prompts)


class Noting(TransformersAgent):
    """Remembers what was asked for."""

    requests: list[Request]

    def submit(self, request: Request) -> None:
        """Remember the request."""
        self.requests = [*getattr(self, "requests", []), request]
        super().submit(request)


def test_an_agent_gets_every_turn_with_what_was_before_it(program: ModuleType) -> None:
    model = make_model(vocabulary=60)
    agent = Noting(model, program.endless_tokenizer(60), slots=4)
    program.agent_runner(agent)(small(program), 0)
    contexts = [request.tokens for request in agent.requests]
    assert sorted(map(len, contexts)) == [2] * 4 + [2 + 3 + 1] * 4
    assert {context[:2] for context in contexts} == {(5, 6), (7, 8)}
    assert all(context[5:] in ((), (9,)) for context in contexts)
    assert sum(request.max_tokens for request in agent.requests) == 24
    assert len({request.seed for request in agent.requests}) == 8


def test_bare_calls_get_the_same(program: ModuleType) -> None:
    waiting: list[tuple[str, int]] = []
    contexts: list[tuple[int, ...]] = []

    def add(name: str, context: tuple[int, ...], limit: int, seed: int) -> None:
        contexts.append(context)
        waiting.extend([(name, 1)] * limit)

    def step() -> Sequence[Any]:
        name, token = waiting.pop(0)
        return [(name, [token], None)]

    program.bare_runner(add, step)(small(program), 0)
    assert sorted(contexts) == [(5, 6)] * 2 + [(5, 6, 1, 1, 1, 9)] * 2 + [(7, 8)] * 2 + [(7, 8, 1, 1, 1, 9)] * 2
    assert not waiting


def test_generate_gets_a_batch_for_each_level(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(vocabulary=60)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    shapes: list[tuple[int, int]] = []
    generate: Any = model.generate

    def noting(ids: Any, **settings: Any) -> Any:
        shapes.append(tuple(ids.shape))
        return generate(ids, **settings)

    monkeypatch.setattr(model, "generate", noting)
    program.generate_runner(model)(small(program), 0)
    assert shapes == [(4, 2), (4, 6)]
