"""An agent behind a chat endpoint: whole episodes, where turns end, and the life of requests."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager

import gymnasium as gym
import pytest
import torch

from forkgym.agents import chat_endpoint
from forkgym.agents.base import Completion, FinishReason, Request
from forkgym.agents.building import load_policy, make_agent
from forkgym.agents.config import AgentConfig, OpenAIConfig
from forkgym.agents.conversation import ConversationCodec
from forkgym.agents.errors import AgentFailure
from forkgym.agents.openai_agent import NoNativeTools, OpenAIAgent, cut_at_stop, stops_to_send, stripped_stop
from forkgym.envs.grammar import Prompt
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tasks import StopReason, Task
from forkgym.trainers.config import EvaluationConfig, RolloutConfig
from forkgym.trainers.evaluation import evaluate
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group
from tests.agents.chat_server import Body, ChatServer, Raw, Respond, said, serving, wrong

CODEC = ConversationCodec()
PROMPT = CODEC.encode_prompt(Prompt("Be good.", "Well?"))
STOPS = ("</calculator>", "</answer>")


class Sums:
    """Task i: 3 + i."""

    size = 8

    def __getitem__(self, index: int) -> Task:
        return Task(f"What is 3 + {index}?", str(3 + index), uid=f"sums/{index}")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "FIRST_PAUSE_S", 0.001)


@contextmanager
def agent_of(
    respond: Respond, *, native: bool = False, slots: int = 8, retries: int = 2
) -> Generator[tuple[OpenAIAgent, ChatServer]]:
    with serving(respond) as server:
        config = OpenAIConfig(base_url=server.url, native_tools=native, timeout_s=20, retries=retries)
        agent = OpenAIAgent("m", slots=slots, config=config)
        try:
            yield agent, server
        finally:
            agent.close()


def ask(uid: str = "a", *, stop: tuple[str, ...] = (), continues: str | None = None, seed: int = 0) -> Request:
    return Request(uid, PROMPT, 50, stop, seed, continues=continues)


def finish(agent: OpenAIAgent, *requests: Request) -> list[Completion]:
    for request in requests:
        agent.submit(request)
    done: list[Completion] = []
    while len(done) < len(requests):
        for event in agent.step():
            assert isinstance(event, Completion)
            done.append(event)
    return done


def complete(reply: Raw, stop: tuple[str, ...] = (), *, native: bool = False) -> Completion:
    with agent_of(lambda _: reply, native=native) as (agent, _):
        (completion,) = finish(agent, ask(stop=stop))
    return completion


def grow(agent: OpenAIAgent, grammar: str, tasks: int = 1) -> tuple[Group, ...]:
    envs: dict[str, gym.Env[str, str]] = {"sums": MathEnv(taskset=Sums(), tools=["calculator"], grammar=grammar)}
    settings = RolloutSettings(RolloutConfig(num_generations=1, initial_generations=1), "none", 0.0, seed=(0,))
    return roll_out(agent, envs, [TaskRef("sums", index) for index in range(tasks)], settings).groups


def solve(body: Body) -> Raw:
    """A model that asks the calculator, then answers with the last number it has seen, in the prompt's grammar."""
    instructions, last = body["messages"][0]["content"], body["messages"][-1]
    number = re.findall(r"\d+", last["content"])[-1]
    first = len(body["messages"]) == 2
    if "tools" in body:
        call = ("call-1", "calculator", json.dumps({"expression": f"3 + {number}"}))
        return said(None, "tool_calls", [call]) if first else said(f"\\boxed{{{number}}}")
    if "<tool_call>" in instructions:
        arguments = json.dumps({"expression": f"3 + {number}"})
        call_text = f'<tool_call>\n{{"name": "calculator", "arguments": {arguments}}}\n</tool_call>'
        return said(call_text if first else f"\\boxed{{{number}}}")
    # The stop string is not in the reply, as with every endpoint.
    assert body["stop"] == ["</calculator>", "</answer>"]
    return said(f"<think>hm</think><calculator>3 + {number}" if first else f"<answer>\\boxed{{{number}}}")


def test_an_episode_of_tags() -> None:
    with agent_of(solve) as (agent, server):
        (group,) = grow(agent, "arpo")
    assert group.rewards == (1.0,)
    assert [(turn.text, turn.finish_reason) for turn in group.turns] == [
        ("<think>hm</think><calculator>3 + 0</calculator>", FinishReason.STOP),
        ("<answer>\\boxed{3}</answer>", FinishReason.STOP),
    ]
    first, second = server.bodies
    assert {name: first[name] for name in ("model", "temperature", "top_p", "max_tokens")} == {
        "model": "m",
        "temperature": 0.0,
        "top_p": 1,
        "max_tokens": 512,
    }
    assert "tools" not in first
    assert 0 <= first["seed"] < 2**31
    assert first["seed"] != second["seed"]
    assert first["messages"][1] == {"role": "user", "content": "What is 3 + 0?"}
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "<think>hm</think><calculator>3 + 0</calculator>"},
        {"role": "user", "content": "<result>3</result>"},
    ]


@pytest.mark.parametrize(
    ("grammar", "native", "result"),
    [
        ("search_r1", False, {"role": "user", "content": "<information>3</information>"}),
        ("hermes", False, {"role": "user", "content": "<tool_response>\n3\n</tool_response>"}),
        ("hermes", True, {"role": "tool", "tool_call_id": "call-1", "content": "3"}),
    ],
)
def test_evaluation_in_other_grammars(grammar: str, native: bool, result: dict[str, str]) -> None:
    envs: dict[str, gym.Env[str, str]] = {"sums": MathEnv(taskset=Sums(), tools=["calculator"], grammar=grammar)}
    with agent_of(solve, native=native) as (agent, server):
        results = evaluate(agent, envs, EvaluationConfig(), RolloutConfig(), 1.0)["sums"]
    assert (results["accuracy"], results["accuracy/sampled"], results["num_tasks"]) == (1.0, 1.0, 8)
    assert (results["tool_calls/mean"], results["turns/mean"]) == (1.0, 2.0)
    assert result in [body["messages"][-1] for body in server.bodies]
    assert {("tools" in body, "stop" in body) for body in server.bodies} == {(native, grammar == "search_r1")}


def test_native_calls_side_by_side_and_a_malformed_one() -> None:
    replies = {
        2: said("", "tool_calls", [("", "calculator", "{"), ("", "calculator", '{"expression": "1"}')]),
        5: said(
            "Again.",
            "tool_calls",
            [("x", "calculator", '{"expression": "1"}'), ("y", "calculator", '{"expression": "2"}')],
        ),
        8: said("\\boxed{3}"),
    }
    with agent_of(lambda body: replies[len(body["messages"])], native=True) as (agent, server):
        (group,) = grow(agent, "hermes")
    assert [turn.error for turn in group.turns] == ["not_json", "", ""]
    assert [turn.tools for turn in group.turns] == [(), ("calculator", "calculator"), ()]
    assert group.rewards == (1.0,)
    *_, asked, first, second, spoken, one, two = server.bodies[-1]["messages"]
    ids = [call["id"] for call in asked["tool_calls"]]
    assert len(set(ids)) == 2
    assert ids == [first["tool_call_id"], second["tool_call_id"]]
    assert first["content"] == second["content"] != ""
    assert asked["tool_calls"][0]["function"]["arguments"] == '{"malformed": "{"}'
    assert spoken["content"] == "Again."
    assert [one, two] == [
        {"role": "tool", "tool_call_id": "x", "content": "1"},
        {"role": "tool", "tool_call_id": "y", "content": "2"},
    ]


def test_arguments_as_an_object() -> None:
    reply = {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": "<"}}}]}}]}
    completion = complete(Raw(200, json.dumps(reply).encode()), native=True)
    assert completion.text == '<tool_call>\n{"name": "f", "arguments": {"a": "\\u003c"}}\n</tool_call>'
    # Where calls are text, those beside it are not asked for, and not taken.
    assert complete(Raw(200, json.dumps(reply).encode())).text == ""


def test_native_tools_need_a_grammar_of_messages() -> None:
    with agent_of(solve, native=True) as (agent, server):
        with pytest.raises(NoNativeTools, match=r"turns of this grammar end at </calculator>"):
            grow(agent, "arpo")
        assert server.bodies == []


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (said("<calculator>1", stop_reason="</calculator>"), "<calculator>1</calculator>", FinishReason.STOP),
        # What the server says counts, and not the tags.
        (said("<answer>1", stop_reason="</calculator>"), "<answer>1</calculator>", FinishReason.STOP),
        (said("<answer>1", stop_reason=151645), "<answer>1</answer>", FinishReason.STOP),
        (said("<calculator>1</calculator> and"), "<calculator>1</calculator>", FinishReason.STOP),
        (said("Goodbye."), "Goodbye.", FinishReason.END),
        (said("<calculator>1", "length"), "<calculator>1", FinishReason.TURN_TOKENS),
        (said("<answer>1</answer>2", "length"), "<answer>1</answer>", FinishReason.STOP),
        (said(None, "length"), "", FinishReason.TURN_TOKENS),
        (said(None, "content_filter"), "", FinishReason.END),
        (said("\ud800\x00\x1b[2J<answer>"), "?\x00\x1b[2J<answer></answer>", FinishReason.STOP),
    ],
)
def test_where_a_turn_ends(reply: Raw, text: str, reason: FinishReason) -> None:
    completion = complete(reply, STOPS)
    assert (completion.text, completion.finish_reason) == (text, reason)
    assert CODEC.decode(completion.tokens) == text
    assert all(map(math.isnan, (*completion.logprobs, *completion.entropies)))


def test_stop_strings() -> None:
    tools = tuple(f"</t{number}>" for number in range(5))
    assert stops_to_send((*tools, "STOP", "</answer>")) == ["</t2>", "</t3>", "</t4>", "</answer>"]
    assert cut_at_stop("abSTOPc</t1>", (*tools, "STOP")) == "abSTOP"
    assert cut_at_stop("", ("x",)) is None
    assert stripped_stop("<t1>a</t1", None, tools) == "</t1>"
    assert stripped_stop("<t1>a <answer>b", None, ["</t1>", "</answer>"]) == "</answer>"
    assert stripped_stop("a</t1>", None, []) == ""


def test_a_context_that_is_too_long_ends_its_trajectory_alone() -> None:
    def respond(body: Body) -> Raw:
        long = "3 + 1?" in body["messages"][1]["content"]
        return wrong(400, "This model's maximum context length is 8 tokens.") if long else solve(body)

    with agent_of(respond) as (agent, _):
        groups = grow(agent, "arpo", tasks=3)
    reasons = [group.trajectories[0].stop_reason for group in groups]
    assert reasons == [StopReason.ANSWERED, StopReason.CONTEXT_LIMIT, StopReason.ANSWERED]
    assert groups[1].turns[0].tokens == ()


def test_requests_run_side_by_side_and_are_reported_in_order() -> None:
    together = threading.Barrier(3)

    def respond(body: Body) -> Raw:
        together.wait(timeout=20)
        return said(f"seed {body['seed']}")

    with agent_of(respond, slots=3) as (agent, server):
        done = finish(agent, *(ask(str(number), seed=number) for number in range(6)))
        assert list(agent.step()) == []
    assert sorted(one.text for one in done) == [f"seed {number}" for number in range(6)]
    assert server.most == 3  # at once; the rest waited


def test_events_of_a_step_are_in_the_order_of_submission() -> None:
    first_may_go = threading.Event()

    def respond(body: Body) -> Raw:
        if body["seed"] == 0:
            first_may_go.wait(timeout=20)
        return said("x")

    with agent_of(respond) as (agent, _):
        for number in range(2):
            agent.submit(ask(str(number), seed=number))
        agent._live["1"].future.result(timeout=20)
        first_may_go.set()
        agent._live["0"].future.result(timeout=20)
        uids: list[str] = []
        while len(uids) < 2:
            uids += [event.uid for event in agent.step()]
    assert uids == ["0", "1"]


def test_a_failure_ends_the_rollout_and_breaks_off_the_rest() -> None:
    never = threading.Event()

    def respond(body: Body) -> Raw:
        if "3 + 1?" in body["messages"][1]["content"]:
            return wrong(404, "no such model")
        never.wait(timeout=20)
        return said("x")

    with agent_of(respond) as (agent, _):
        with pytest.raises(AgentFailure, match="status 404"):
            grow(agent, "arpo", tasks=3)
        assert list(agent.step()) == []
        never.set()
        with pytest.raises(ValueError, match="turn 0/t0d0: expected a finished turn"):
            agent.abort("0/t0d0")


def test_life_of_turns() -> None:
    with agent_of(lambda _: said("x")) as (agent, _):
        (first,) = finish(agent, ask("a"))
        with pytest.raises(ValueError, match="another live request"):
            agent.submit(ask("a"))
        with pytest.raises(ValueError, match="does not begin with that of 'a'"):
            agent.submit(ask("b", continues="a"))
        with pytest.raises(ValueError, match="it continues 'z', expected a finished turn"):
            agent.submit(ask("b", continues="z"))
        with pytest.raises(ValueError, match="report_after is 5, expected 0: a chat endpoint tells"):
            agent.submit(Request("b", PROMPT, 5, (), 0, report_after=5))
        with pytest.raises(ValueError, match="beginning of a message"):
            agent.submit(Request("b", PROMPT[:-1], 5, (), 0))
        context = PROMPT + first.tokens + CODEC.encode_turn("") + PROMPT[-1:]
        finish(agent, Request("b", context, 5, (), 0, continues="a"))
        with pytest.raises(ValueError, match="turn a: expected a finished turn"):
            agent.release("a")
        agent.release("b")
        agent.submit(ask("b"))
        agent.abort("b")
        assert [one.uid for one in finish(agent, ask("b"))] == ["b"]  # the same uid, asked anew
        with pytest.raises(ValueError, match="slots is 0"):
            OpenAIAgent("m", slots=0)


def test_an_agent_that_nobody_knows_any_more_leaves_no_thread() -> None:
    may_go = threading.Event()

    def respond(body: Body) -> Raw:
        may_go.wait(timeout=20)
        return said("x")

    with serving(respond) as server:
        agent = OpenAIAgent("m", config=OpenAIConfig(base_url=server.url))
        agent.submit(ask())
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "chat-endpoint")
        del agent
        assert not thread.is_alive()
        may_go.set()


def test_it_works_inside_a_running_event_loop() -> None:
    async def inside(agent: OpenAIAgent) -> str:
        return finish(agent, ask())[0].text

    with agent_of(lambda _: said("x")) as (agent, _):
        assert asyncio.run(inside(agent)) == "x"


def test_it_cannot_train() -> None:
    with agent_of(solve) as (agent, _), pytest.raises(ValueError, match="cannot be loaded: a chat endpoint tells"):
        agent.load_weights(torch.nn.Linear(1, 1), 1)
    with pytest.raises(ValueError, match="takes no weights, so it can be evaluated but not trained"):
        load_policy(AgentConfig(kind="openai", model="m"))


def test_extra_fields() -> None:
    extra = '{"max_tokens": null, "max_completion_tokens": 7, "seed": 3}'
    with serving(lambda _: said("x")) as server:
        agent = OpenAIAgent("m", config=OpenAIConfig(base_url=server.url, extra=extra))
        finish(agent, ask())
        agent.close()
    (body,) = server.bodies
    assert (body["max_completion_tokens"], body["seed"]) == (7, 3)
    assert "max_tokens" not in body


def test_made_from_settings() -> None:
    with pytest.raises(ValueError, match=r"agent\.model is not given"):
        make_agent(AgentConfig(kind="openai"))
    with serving(lambda _: said("x")) as server:
        agent = make_agent(AgentConfig(kind="openai", model="m", openai=OpenAIConfig(base_url=server.url)))
        assert isinstance(agent, OpenAIAgent)
        assert finish(agent, ask())[0].text == "x"
        assert (agent.vocabulary_size, dict(agent.figures())) == (2**33, {})
        agent.close()
