"""Scripted agents and oracles."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from forkgym.agents.base import Completion, FinishReason, FirstTokens, Request
from forkgym.agents.codec import ByteCodec, TokenizerCodec
from forkgym.agents.scripted import NoSolution, OracleAgent, ScriptedAgent
from forkgym.envs.tasks import Task
from tests.agents.tiny import byte_tokenizer, complete, completions, drive

CODEC = ByteCodec()
TURNS = (
    "<calculator>2+3</calculator>",
    "<think>double it</think><calculator>5*2</calculator>",
    "<answer>\\boxed{10}</answer>",
)


def ask(uid: str, text: str, continues: str | None = None, **settings: object) -> Request:
    fields: dict[str, object] = {"stop": ("</calculator>", "</answer>"), "seed": 0, "solution": TURNS, **settings}
    return Request(uid, CODEC.encode_turn(text), 200, continues=continues, **fields)  # type: ignore[arg-type]


def test_replies_by_turn_and_the_last_again() -> None:
    agent = ScriptedAgent(["one</answer>", "two"])
    first = complete(agent, ask("a", "Q"))
    assert first == Completion(
        "a", CODEC.encode_turn("one</answer>"), "one</answer>", (0.0,) * 12, (0.0,) * 12, FinishReason.STOP, 0
    )
    second = complete(agent, ask("b", "Qone</answer>R", "a"))
    assert (second.text, second.finish_reason) == ("two", FinishReason.END)
    assert complete(agent, ask("c", "Qone</answer>RtwoR", "b")).text == "two"


def test_replies_by_function() -> None:
    agent = ScriptedAgent(lambda request, turn: f"{request.uid} at {turn}")
    assert complete(agent, ask("a", "Q")).text == "a at 0"
    assert complete(agent, ask("b", "Qa at 0", "a")).text == "b at 1"
    assert complete(agent, ask("c", "other")).text == "c at 0"


def test_a_reply_ends_at_the_first_stop_string_and_at_the_limit() -> None:
    agent = ScriptedAgent(["x</answer>y</calculator>"])
    assert complete(agent, ask("a", "Q")).text == "x</answer>"
    short = complete(agent, Request("b", (1,), 4, ("</answer>",), seed=0))
    assert (short.text, short.tokens, short.finish_reason) == ("x</a", tuple(b"x</a"), FinishReason.TURN_TOKENS)


def test_a_branch_takes_its_turn_from_its_context() -> None:
    agent = ScriptedAgent(lambda request, turn: f"{turn}!")
    complete(agent, ask("a", "Q"))
    complete(agent, ask("b", "Q0!R", "a"))
    # Two turns that continue nothing: beside "b", and after it.
    assert complete(agent, ask("c", "Q0!R")).text == "1!"
    assert complete(agent, ask("d", "Q0!R1!R")).text == "2!"
    assert complete(agent, ask("e", "Q")).text == "0!"


def test_events() -> None:
    agent = ScriptedAgent(["abc"], entropy=lambda request, turn, position: turn + position / 10)
    requests = [ask("long", "Q", report_after=2), ask("short", "Q", report_after=3), ask("silent", "Q")]
    events = drive(agent, requests)
    assert [(event.uid, type(event)) for event in events] == [
        ("long", FirstTokens),
        ("short", FirstTokens),
        ("short", Completion),
        ("silent", Completion),
        ("long", Completion),
    ]
    assert events[0] == FirstTokens("long", (0.0, 0.1))
    assert events[1] == FirstTokens("short", (0.0, 0.1, 0.2))
    assert completions(events)["long"].entropies == (0.0, 0.1, 0.2)
    assert completions(drive(agent, [ask("next", "Qabc", "long")]))["next"].entropies == (1.0, 1.1, 1.2)


def test_oracle_takes_the_steps_of_the_solution() -> None:
    agent = OracleAgent(CODEC)
    context, before = "Q", None
    for turn, expected in enumerate((*TURNS, TURNS[-1])):
        completion = complete(agent, ask(str(turn), context, before))
        assert (completion.text, completion.finish_reason) == (expected, FinishReason.STOP)
        context, before = f"{context}{completion.text}R", str(turn)


def test_oracle_without_a_solution() -> None:
    agent = OracleAgent(CODEC)
    with pytest.raises(NoSolution, match="task 'u' has no solution"):
        agent.submit(ask("a", "Q", task=Task("Q", "A", uid="u"), solution=()))
    with pytest.raises(NoSolution, match="request a has no solution"):
        agent.submit(ask("a", "Q", solution=()))
    assert list(agent.step()) == []


def test_life_of_turns() -> None:
    agent = ScriptedAgent(["x"])
    agent.submit(ask("a", "Q"))
    with pytest.raises(ValueError, match="another live request"):
        agent.submit(ask("a", "Q"))
    with pytest.raises(ValueError, match="turn a: expected a finished turn"):
        agent.release("a")
    with pytest.raises(RuntimeError, match="while 1 requests run"):
        agent.load_weights(torch.nn.Linear(1, 1), 1)
    agent.abort("a")
    assert list(agent.step()) == []
    agent.load_weights(torch.nn.Linear(1, 1), 1)
    assert complete(agent, ask("a", "Q")).version == 1
    agent.release("a")
    for request in (ask("b", "Qx", "a"), ask("b", "Qx", "unknown")):
        with pytest.raises(ValueError, match="expected a finished turn"):
            agent.submit(request)
    with pytest.raises(ValueError, match="turn unknown"):
        agent.abort("unknown")
    with pytest.raises(ValueError, match="replies is empty"):
        ScriptedAgent([])


def test_vocabulary_size_is_the_codecs() -> None:
    assert ScriptedAgent(["x"]).vocabulary_size == 256
    assert ScriptedAgent(["x"], TokenizerCodec(byte_tokenizer())).vocabulary_size == 262


def test_scripts_need_no_torch() -> None:
    code = "import sys, forkgym.agents.scripted; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
