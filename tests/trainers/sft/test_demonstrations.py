"""Demonstrations are, token by token, what a rollout of the same texts would be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forkgym.agents.building import load_policy
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.config import AgentConfig
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.envs.wordmath import WordMathEnv
from forkgym.tools.base import as_tool
from forkgym.trainers.config import RolloutConfig
from forkgym.trainers.evaluation import episodes
from forkgym.trainers.rollouts.rollout import TaskRef, roll_out
from forkgym.trainers.sft.demonstrations import (
    Demonstration,
    Script,
    act_out,
    after_opening,
    demonstration_of,
    message_end,
    stack,
)
from tests.agents.tiny import byte_tokenizer, make_model
from tests.trainers.small_trees import three_leaves

T, F = True, False


def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


class Sevens:
    """One task."""

    size = 1

    def __getitem__(self, index: int) -> Task:
        return Task("What is 3 + 4?", "7", uid="sevens/0", solution=(SolutionStep("a", "shout"), SolutionStep("7")))


def env_of(grammar: str) -> MathEnv:
    return MathEnv(taskset=Sevens(), tools=[as_tool(shout, inline=True)], grammar=grammar)


def solution_of(env: MathEnv) -> tuple[str, ...]:
    return tuple(env.render_step(step) for step in Sevens()[0].solution)


@pytest.mark.parametrize(
    ("leaf", "tokens", "written"),
    [
        ("t0d1", (1, 2, 3, 4, 5, 6), (F, F, T, T, F, T)),
        ("t2d1", (1, 2, 3, 4, 5, 7, 8), (F, F, T, T, F, T, T)),
        ("t1d1", (1, 2, 9, 5, 6), (F, F, T, F, T)),
    ],
)
def test_exactly_the_policys_tokens_are_written(leaf: str, tokens: tuple[int, ...], written: tuple[bool, ...]) -> None:
    demonstration = demonstration_of(three_leaves(), leaf)
    assert demonstration == Demonstration(tokens, written)
    assert demonstration.num_written == sum(written)


@pytest.mark.parametrize(("tokens", "written"), [((1, 2), (F, F)), ((1, 2), (T, T)), ((1, 2), (F,)), ((), ())])
def test_a_demonstration_without_a_prompt_or_a_turn_is_refused(
    tokens: tuple[int, ...], written: tuple[bool, ...]
) -> None:
    with pytest.raises(ValueError, match="a demonstration"):
        Demonstration(tokens, written)


def test_rows_are_padded_on_the_right() -> None:
    tokens_BT, written_BT, present_BT = stack(
        [Demonstration((1, 2, 3), (F, T, F)), Demonstration((4, 5), (F, T))], pad_token=9
    )
    assert tokens_BT.tolist() == [[1, 2, 3], [4, 5, 9]]
    assert written_BT.tolist() == [[F, T, F], [F, T, F]]
    assert present_BT.tolist() == [[T, T, T], [T, T, F]]
    assert tokens_BT.dtype == torch.long


def test_the_tokens_are_those_of_a_real_rollout_of_the_same_texts() -> None:
    policy = load_policy(AgentConfig())
    agent = policy.agent
    assert isinstance(agent, TransformersAgent)
    env = WordMathEnv(split="test")
    tasks = [TaskRef("wordmath", index) for index in range(12)]
    rollout = RolloutConfig(max_turn_tokens=64)
    sampled = roll_out(agent, {"wordmath": env}, tasks, episodes(rollout, 1, 0.0)).groups
    texts = [tuple(turn.text for turn in group.turns) for group in sampled]
    assert max(map(len, texts)) > 1
    end = message_end(policy.model, agent.codec)
    acted = act_out(
        env, agent.codec, end, [Script(task.index, turns) for task, turns in zip(tasks, texts, strict=True)]
    )
    for real, shown in zip(sampled, acted, strict=True):
        (leaf,) = real.trajectories
        assert demonstration_of(shown, shown.trajectories[0].leaf) == demonstration_of(real, leaf.leaf)
        assert shown.rewards == real.rewards


def test_a_turn_without_a_stop_string_ends_with_the_end_token_and_the_reply_does_not_repeat_it(
    shared_data: Path,
) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    codec = TokenizerCodec(tokenizer)
    end = message_end(make_model(vocabulary=6400), codec)
    assert end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    env = env_of("hermes")
    (group,) = act_out(env, codec, end, [Script(0, solution_of(env))])
    assert [turn.tokens[-1] for turn in group.turns] == [end, end]
    assert [turn.tokens.count(end) for turn in group.turns] == [1, 1]
    assert codec.decode(group.turns[0].tokens) == (
        '<tool_call>\n{"name": "shout", "arguments": {"text": "a"}}\n</tool_call><|im_end|>'
    )
    assert codec.decode(group.turns[0].observation_tokens) == (
        "\n<|im_start|>user\n<tool_response>\nA\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert codec.decode(group.turns[1].tokens) == "\\boxed{7}<|im_end|>"
    assert group.rewards == (1.0,)


def test_a_stop_string_needs_no_end_token() -> None:
    tokenizer = byte_tokenizer()
    codec = TokenizerCodec(tokenizer)
    env = env_of("arpo")
    (group,) = act_out(env, codec, 99, [Script(0, solution_of(env))])
    assert [codec.decode(turn.tokens) for turn in group.turns] == [
        "<shout>a</shout>",
        "<answer>\\boxed{7}</answer>",
    ]
    (cut_off,) = act_out(env, codec, 99, [Script(0, ("No call.",))])
    assert [turn.tokens for turn in cut_off.turns] == [(*codec.encode_turn("No call."), 99)] * 3
    assert cut_off.rewards == (0.0,)


THINKING = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        ("arpo", ["\n</think>\n\n<shout>a</shout>", "<answer>\\boxed{7}</answer>"]),
        (
            "hermes",
            [
                '\n</think>\n\n<tool_call>\n{"name": "shout", "arguments": {"text": "a"}}\n</tool_call><|end|>',
                "\n</think>\n\n\\boxed{7}<|end|>",
            ],
        ),
    ],
)
def test_a_thought_that_the_template_opens_is_closed(grammar: str, texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING
    codec = TokenizerCodec(tokenizer)
    env = env_of(grammar)
    (group,) = act_out(env, codec, message_end(make_model(), codec), [Script(0, solution_of(env))])
    assert [codec.decode(turn.tokens) for turn in group.turns] == texts
    assert group.rewards == (1.0,)


def test_a_thought_goes_on_where_the_template_began_it() -> None:
    assert after_opening("<think>\nAdd.\n</think>\n\n7", "<think>\n") == "Add.\n</think>\n\n7"
    assert after_opening("<think>Add.</think>7", "<think>\n") == "Add.</think>7"


def test_a_template_may_end_messages_with_another_token_than_the_tokenizer(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    own = tokenizer.eos_token = "<|endoftext|>"
    codec = TokenizerCodec(tokenizer)
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = make_model(vocabulary=6400)
    # Sampling goes on after the template's token: the policy is to write the one at which it stops.
    assert message_end(model, codec) == tokenizer.convert_tokens_to_ids(own)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [ends]
    assert message_end(model, codec) == ends
