"""The vllm-server agent against servers without vLLM: what it asks of them, and what it does when they fail."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forkgym.agents.base import Completion, FinishReason, FirstTokens, Request
from forkgym.agents.config import VllmConfig, VllmServerConfig
from forkgym.agents.errors import AgentFailure
from forkgym.agents.vllm.vllm_server import VllmServerAgent
from tests.agents.fake_vllm import DEADLINE_S, FakeServer, fake_server
from tests.agents.tiny import byte_tokenizer, completions, full_measures, make_model

TOKENIZER = byte_tokenizer()
MODEL = make_model()
REQUEST = Request("x", tuple(range(40, 60)), 12, (), seed=3)


@dataclass
class Setup:
    """An agent and its two servers."""

    agent: VllmServerAgent
    servers: list[FakeServer]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    with ExitStack() as stack:
        servers = [stack.enter_context(fake_server(monkeypatch)) for _ in range(2)]
        agent = make_agent([server.url for server in servers])
        stack.callback(agent.close)
        yield Setup(agent, servers)


def make_agent(urls: list[str], model: PreTrainedModel = MODEL, **engine: Any) -> VllmServerAgent:
    config = VllmServerConfig(answer_timeout_s=0.5)
    return VllmServerAgent(model, TOKENIZER, urls, config=config, engine=VllmConfig(**engine))


def drive(agent: VllmServerAgent, requests: list[Request]) -> list[Any]:
    for request in requests:
        agent.submit(request)
    return finish(agent, {request.uid for request in requests})


def finish(agent: VllmServerAgent, uids: set[str]) -> list[Any]:
    events: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S
    while not uids <= completions(events).keys():
        assert time.monotonic() < deadline, f"no completion of {uids - completions(events).keys()}"
        events += agent.step()
    return events


def run(agent: VllmServerAgent, requests: list[Request]) -> dict[str, Completion]:
    found = completions(drive(agent, requests))
    for uid in found:
        agent.release(uid)
    return found


def check_measures(request: Request, completion: Completion, model: PreTrainedModel = MODEL) -> None:
    logprobs, entropies = full_measures(model, request.tokens, completion.tokens, request.temperature or 1.0)
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
    assert completion.entropies == pytest.approx(entropies, abs=1e-4)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_turns_are_sampled_from_the_models_weights(setup: Setup, temperature: float) -> None:
    requests = [replace(REQUEST, uid=f"r{seed}", seed=seed, temperature=temperature) for seed in range(6)]
    found = run(setup.agent, requests)
    for request in requests:
        check_measures(request, found[request.uid])
        assert len(found[request.uid].tokens) == 12
        assert found[request.uid].finish_reason is FinishReason.TURN_TOKENS
    assert setup.agent.figures() == {
        "probe_gap": setup.agent.probe_gap,
        "entropy_error": 0.0,  # of 262 tokens every log-prob is asked for
        "resumed_turns": 0.0,
        "servers": 2.0,
    }
    assert setup.agent.probe_gap < 1e-4


def test_the_same_seed_gives_the_same_turn_and_another_another(setup: Setup) -> None:
    first, again = run(setup.agent, [REQUEST])["x"], run(setup.agent, [REQUEST])["x"]
    assert first == again
    assert run(setup.agent, [replace(REQUEST, seed=4)])["x"].tokens != first.tokens


def test_entropies_of_a_few_log_probs_say_how_far_off_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkgym.agents.vllm.sampled_model.ALL_LOGPROBS", 100)
    with fake_server(monkeypatch) as server:
        agent = make_agent([server.url], top_logprobs=50)
        completion = run(agent, [REQUEST])["x"]
        agent.close()
    _, entropies = full_measures(MODEL, REQUEST.tokens, completion.tokens)
    gaps = [abs(one - other) for one, other in zip(completion.entropies, entropies, strict=True)]
    assert 1e-4 < max(gaps) <= agent.entropy_error


def test_a_turn_ends_at_the_token_that_completes_a_stop_string(setup: Setup) -> None:
    agent = setup.agent
    for seed in range(8):
        free = run(agent, [replace(REQUEST, max_tokens=40, seed=seed)])["x"]
        piece = max(free.text.split("\ufffd"), key=len)
        stop = piece[len(piece) // 2 :][:2] or "</a>"  # of whole tokens, or parts of one or two
        if stop not in free.text:
            continue
        stopped = run(agent, [replace(REQUEST, max_tokens=40, seed=seed, stop=(stop,))])["x"]
        count = next(count for count in range(1, 41) if stop in agent.codec.decode(free.tokens[:count]))
        assert stopped.tokens == free.tokens[:count]
        assert (stopped.finish_reason, stopped.text) == (FinishReason.STOP, agent.codec.decode(free.tokens[:count]))
    # What the servers sampled after a stop string, before they were told, is broken off.
    wait_for(lambda: not any(server.engine.running for server in setup.servers))


def test_the_end_token_ends_a_turn_and_is_no_text(setup: Setup) -> None:
    end = TOKENIZER.eos_token_id
    assert isinstance(end, int)
    found = run(setup.agent, [replace(REQUEST, uid=str(seed), seed=seed, max_tokens=60) for seed in range(12)])
    ended = [one for one in found.values() if one.finish_reason is FinishReason.END]
    assert ended
    for completion in ended:
        assert completion.tokens[-1] == end not in completion.tokens[:-1]
        assert completion.text == setup.agent.codec.decode(completion.tokens[:-1])


def test_first_tokens_are_reported_while_the_turn_goes_on(setup: Setup) -> None:
    for server in setup.servers:
        server.engine.hold_at = 4
    setup.agent.submit(replace(REQUEST, report_after=4))
    events: list[Any] = []
    while not events:
        events += setup.agent.step()
    assert [type(event) for event in events] == [FirstTokens]
    for server in setup.servers:
        server.engine.hold_at = None
    completion = completions(finish(setup.agent, {"x"}))["x"]
    assert events[0].entropies == completion.entropies[:4]


def test_a_context_that_fills_the_servers_limit_ends_that_turn_alone(setup: Setup) -> None:
    long = Request("long", (7,) * 90, 20, (), seed=0)
    full = Request("full", (7,) * 96, 20, (), seed=0)
    found = run(setup.agent, [long, full, REQUEST])
    assert (len(found["long"].tokens), found["long"].finish_reason) == (6, FinishReason.CONTEXT)
    assert (found["full"].tokens, found["full"].finish_reason) == ((), FinishReason.CONTEXT)
    assert found["x"].finish_reason is FinishReason.TURN_TOKENS


def test_turns_go_to_the_server_with_the_fewest_and_stay_where_their_context_is(setup: Setup) -> None:
    agent, engines = setup.agent, [server.engine for server in setup.servers]
    prompts = [tuple(range(10 * group, 10 * group + 9)) for group in range(4)]
    first = [Request(f"{group}/{one}", prompts[group], 3, (), seed=one) for group in range(4) for one in range(3)]
    done = completions(drive(agent, first))
    for group in range(4):  # the turns of a task are together, and the tasks are spread
        assert sorted(engine.prompts.count(prompts[group]) for engine in engines) == [0, 3]
    assert [len(engine.prompts) for engine in engines] == [7, 7]  # a score and 6 turns of each
    following = [
        Request(f"{one.uid}/next", one.tokens + done[one.uid].tokens + (5,), 3, (), seed=0, continues=one.uid)
        for one in first
    ]
    run(agent, following)
    for group in range(4):
        home = next(engine for engine in engines if prompts[group] in engine.prompts)
        for one in following[3 * group : 3 * group + 3]:
            assert one.tokens in home.prompts


def test_an_aborted_turn_is_never_reported_and_its_server_told(setup: Setup) -> None:
    for server in setup.servers:
        server.engine.hold_at = 2
    setup.agent.submit(replace(REQUEST, uid="gone"))
    setup.agent.step()
    wait_for(lambda: any(REQUEST.tokens in server.engine.prompts for server in setup.servers))
    setup.agent.abort("gone")
    setup.agent.step()
    wait_for(lambda: any(server.engine.aborted for server in setup.servers))
    for server in setup.servers:
        server.engine.hold_at = None
    assert {event.uid for event in drive(setup.agent, [REQUEST])} == {"x"}
    with pytest.raises(ValueError, match="gone: expected a finished turn"):
        setup.agent.abort("gone")


@pytest.mark.parametrize("begun", [0, 5])
def test_what_a_server_that_dies_was_sampling_is_sampled_by_another(setup: Setup, begun: int) -> None:
    agent, engines = setup.agent, [server.engine for server in setup.servers]
    requests = [
        Request(f"r{seed}", (*REQUEST.tokens, seed), 12, (), seed=seed, report_after=begun) for seed in range(6)
    ]
    undisturbed = run(agent, requests)
    for engine in engines:
        engine.hold_at = begun
        engine.prompts.clear()
    for request in requests:
        agent.submit(request)
    events: list[Any] = []
    # Where first tokens are asked for they arrive; all turns wait then.
    while len(events) < (6 if begun else 0) or any(len(engine.prompts) < 3 for engine in engines):
        events += agent.step()
    engines[0].dead = True
    for engine in engines:
        engine.hold_at = None
    events += finish(agent, {request.uid for request in requests})
    found = completions(events)
    assert len([event for event in events if isinstance(event, FirstTokens)]) == (6 if begun else 0)
    assert len([event for event in events if isinstance(event, Completion)]) == 6
    for request in requests:
        check_measures(request, found[request.uid])
        assert len(found[request.uid].tokens) == 12
        assert found[request.uid].tokens[:begun] == undisturbed[request.uid].tokens[:begun]
        if not begun:  # the same seed once more
            assert found[request.uid] == undisturbed[request.uid]
    moved = engines[1].prompts[3:]
    assert len(moved) == 3
    assert all(len(prompt) == 21 + begun for prompt in moved)  # what has arrived is not sampled again
    assert (agent.figures()["resumed_turns"], agent.figures()["servers"]) == (3.0, 1.0)


def test_no_server_left_is_said_with_the_reasons(setup: Setup) -> None:
    for server in setup.servers:
        server.engine.hold_at = 1
    setup.agent.submit(REQUEST)
    setup.agent.step()
    for server in setup.servers:
        server.engine.dead = True
    with pytest.raises(AgentFailure, match=r"no vLLM server is left \(http://127.0.0.1:\d+: status 500: dead; http"):
        finish(setup.agent, {"x"})
    setup.agent.abort("x")  # as a rollout does that fails


def test_a_server_that_is_silent_for_too_long_is_asked_anew_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkgym.agents.vllm.vllm_routes.BEAT_S", 0.05)
    with fake_server(monkeypatch) as server:
        config = VllmServerConfig(answer_timeout_s=5, timeout_s=1.0)
        agent = VllmServerAgent(MODEL, TOKENIZER, [server.url], config=config)
        time.sleep(1.5)  # longer than the silence that is allowed: signs of life come where there is nothing to do
        server.engine.hold_at = 1
        agent.submit(REQUEST)
        with pytest.raises(AgentFailure, match="no vLLM server is left .*it was silent for too long"):
            finish(agent, {"x"})
        assert server.engine.prompts.count(REQUEST.tokens) == 3
        agent.close()


def test_a_server_that_is_back_gets_the_next_weights_before_it_is_used(setup: Setup) -> None:
    agent, (first, second) = setup.agent, setup.servers
    first.engine.dead = True
    agent.load_weights(MODEL, 1)
    assert agent.figures()["servers"] == 1
    run(agent, [replace(REQUEST, uid=str(seed)) for seed in range(4)])
    first.engine.dead = False
    first.engine.prompts.clear()
    run(agent, [replace(REQUEST, uid=str(seed)) for seed in range(4)])
    assert not first.engine.prompts  # its weights are of version 0
    agent.load_weights(MODEL, 2)
    assert agent.figures()["servers"] == 2
    assert run(agent, [REQUEST])["x"].version == 2
    assert second.engine.resets == 3


def test_new_weights_are_sampled_from_at_once(setup: Setup) -> None:
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    setup.agent.load_weights(model, 1)
    requests = [replace(REQUEST, uid=str(seed), tokens=(*REQUEST.tokens, seed)) for seed in range(4)]
    found = run(setup.agent, requests)
    for request in requests:
        check_measures(request, found[request.uid], model)
        assert found[request.uid].version == 1


def test_one_server_with_stale_weights_stops_the_run(setup: Setup) -> None:
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    setup.servers[1].engine.stale = True
    words = rf"vLLM server {setup.servers[1].url} does not sample from the trained weights \(version 1\)"
    with pytest.raises(AgentFailure, match=words):
        setup.agent.load_weights(model, 1)


def test_another_trainer_on_the_same_server_is_noticed(setup: Setup) -> None:
    for server in setup.servers:
        server.engine.hold_at = 1
    setup.agent.submit(REQUEST)
    setup.agent.step()
    other = make_agent([server.url for server in setup.servers])
    for server in setup.servers:
        server.engine.hold_at = None
    with pytest.raises(AgentFailure, match="it has the weights"):
        finish(setup.agent, {"x"})
    other.close()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("protocol", 9, "with protocol 9, expected protocol 1"),
        ("worker_extension", "", "another --worker-extension-cls: , expected forkgym.agents"),
        ("dtype", "bfloat16", "another --dtype: bfloat16, expected float32"),
        ("logprobs_mode", "raw_logprobs", "another --logprobs-mode: raw_logprobs, expected processed_logprobs"),
        ("max_logprobs", 20, "another --max-logprobs: 20, expected 262 or more"),
        ("logits_processors", ["x"], "another --logits-processors"),
        ("chunked_prefill", True, "another --enable-chunked-prefill: on, expected off on a CPU"),
        ("tokenizer", "0" * 16, "its tokenizer numbers tokens otherwise"),
        (
            "model",
            {"model_type": "qwen2"},
            "another model: model_type is 'qwen2', and that of the trained one is 'qwen3'",
        ),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, words: str
) -> None:
    with fake_server(monkeypatch) as server:
        server.about[name] = value
        with pytest.raises(ValueError, match=f"vLLM server {server.url}: .*{words}.*; start it with the line that"):
            make_agent([server.url])


def test_a_server_without_our_routes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(monkeypatch) as server:
        server.plain = True
        with pytest.raises(ValueError, match="it was not started for training; start it with the line that"):
            make_agent([server.url])


def test_a_server_that_nobody_runs_is_named() -> None:
    with pytest.raises(ValueError, match=r"vLLM server http://127.0.0.1:9: it did not answer in time"):
        make_agent(["http://127.0.0.1:9"])


def test_a_server_that_has_a_secret_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKGYM_SERVER_KEY", "one")
    with fake_server(monkeypatch) as server:
        make_agent([server.url]).close()
        monkeypatch.setenv("FORKGYM_SERVER_KEY", "two")
        with pytest.raises(ValueError, match="status 401: it asks for the key that FORKGYM_SERVER_KEY held"):
            make_agent([server.url])


def test_weights_of_another_shape_and_while_turns_run_are_refused(setup: Setup) -> None:
    with pytest.raises(ValueError, match=r"weights of version 1 don't fit the agent's model: \S+ is another"):
        setup.agent.load_weights(make_model(num_hidden_layers=2), 1)
    setup.agent.submit(REQUEST)
    with pytest.raises(RuntimeError, match="while 1 requests run, expected none"):
        setup.agent.load_weights(MODEL, 1)
    with pytest.raises(ValueError, match="temperature is 3, expected 0, or 0.01 to 2"):
        setup.agent.submit(replace(REQUEST, uid="y", temperature=3))
    finish(setup.agent, {"x"})
