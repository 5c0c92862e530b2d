"""A thought that a chat template opens is part of the policy's message, for whoever reads that."""

from __future__ import annotations

import pytest

from forkgym.agents.codec import ByteCodec, TokenizerCodec
from forkgym.agents.scripted import ScriptedAgent
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tasks import Task
from forkgym.tools.base import as_tool
from forkgym.trainers.config import RolloutConfig
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out
from tests.agents.tiny import byte_tokenizer


def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


class Sevens:
    """One task."""

    size = 1

    def __getitem__(self, index: int) -> Task:
        return Task("What is 3 + 4?", "7", uid="sevens/0")


CALL, ANSWER = "<shout>a</shout>", "<answer>7</answer>"
THINKING_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)
SAID = '<tool_call>{"name": "shout", "arguments": {"text": "a"}}</tool_call>'


@pytest.mark.parametrize(
    ("grammar", "replies", "errors"),
    [
        # In hermes each turn is a message, which the template begins; elsewhere only the first turn is.
        ("hermes", ["7", SAID, f"{SAID}</think>{SAID}", "No.</think>7"], ["unclosed", "unclosed", "", ""]),
        ("arpo", [CALL, CALL, ANSWER], ["in_thought", "", ""]),
        ("arpo", ["a</think>" + CALL, ANSWER], ["", ""]),
    ],
)
def test_a_thought_that_the_template_opened_belongs_to_the_message(
    grammar: str, replies: list[str], errors: list[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING_TEMPLATE
    codec = TokenizerCodec(tokenizer)
    assert codec.opening == "<think>\n"
    settings = RolloutSettings(RolloutConfig(num_generations=1, initial_generations=1), "none", 1.0, seed=(0,))
    env = MathEnv(taskset=Sevens(), tools=[as_tool(shout, inline=True)], grammar=grammar)
    (group,) = roll_out(ScriptedAgent(replies, codec), {"sevens": env}, [TaskRef("sevens", 0)], settings).groups
    assert [turn.error for turn in group.turns] == errors
    assert [turn.text for turn in group.turns] == replies  # what was sampled, and no more
    assert group.rewards == (1.0,)
    assert ByteCodec().opening == ""
