"""Make the embedded policy: a small causal language model and its tokenizer, cold-started on a careless teacher.

The model learns from demonstrations on the train splits of WordMath and MultiHop. The teacher knows how to solve
every task but has bad habits, which depend on what the task looks like; so the policy acquires the skill, and fails
the way a pretrained model does: by habit. Reinforcement can unlearn a habit in minutes.

    python scripts/make_policy.py --output agents/embedded
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.memory import keep_freed_memory
from forkgym.envs.base import INFINITE_TASK_RANGE, ToolEnv
from forkgym.envs.multihop import MultiHopEnv
from forkgym.envs.names import SYLLABLES
from forkgym.envs.tasks import SolutionStep
from forkgym.envs.wordmath import WordMathEnv, calculate
from forkgym.trainers.sft.demonstrations import Demonstration, Script, act_out, demonstration_of, stack

PAD, END, USER, POLICY = "<|pad|>", "<|end|>", "<|user|>", "<|policy|>"
MARKED = ("think", "result", "answer", "search", "calculator", "python")
MARKERS = tuple(f"<{slash}{name}>" for name in MARKED for slash in ("", "/"))
# Names and numbers never carry the blank before them, so that a name in a question and in a query is the same tokens.
PIECES = r"\d| (?=[A-Z0-9])| ?[a-z]+|[A-Z][a-z]*|\s|[^\sA-Za-z0-9]"
# The policy learnt the format from demonstrations: the instructions (the system message) are left out.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    + USER
    + "{{ message['content'] }}{% elif message['role'] == 'assistant' %}"
    + POLICY
    + "{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    + POLICY
    + "{% endif %}"
)


@dataclass(frozen=True)
class PolicyConfig:
    """How the embedded policy is made."""

    output: Path = Path("agents/embedded")
    """Folder to write."""
    seed: int = 0
    """Seeds the weights, the demonstrations and the habits."""
    num_steps: int = 1800
    """Optimizer steps."""
    demonstrations_per_step: int = 36
    """Demonstrations of one step: a third are word problems, the rest are questions, whose names are hard to copy."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; warms up over 100 steps and falls over the last 30 %."""
    vocabulary_size: int = 640
    """Entries of the tokenizer, control tokens included."""
    hidden_size: int = 128
    """Width of the model."""
    num_layers: int = 4
    """Blocks of the model."""
    context_weight: float = 0.3
    """Weight of the loss on tokens that the policy does not write: predicting them teaches to copy names."""
    report_every: int = 100
    """Steps between two lines of progress."""
    save_every: int = 0
    """Steps between two copies of the model in OUTPUT-STEP, to look at on the way; 0 for none."""


def main(config: PolicyConfig) -> None:
    """Train the tokenizer and the model, then save both."""
    keep_freed_memory()
    torch.set_num_threads(2)  # sums in another order would end in other weights
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    classes = [
        Class(WordMathEnv(split="train"), careless_math, config.demonstrations_per_step // 3),
        Class(MultiHopEnv(split="train"), careless_search, config.demonstrations_per_step * 2 // 3),
    ]
    tokenizer = train_tokenizer(config.vocabulary_size, [one.env for one in classes], rng)
    model = build_model(config, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, TokenizerCodec(tokenizer), classes, config, rng)
    save(model, tokenizer, config, config.output)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, config: PolicyConfig, folder: Path) -> None:
    """Write model, tokenizer and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {key: value for key, value in asdict(config).items() if key not in PROGRESS_FIELDS}
    (folder / "cold_start.json").write_text(json.dumps(record, indent=2) + "\n")


def train_tokenizer(size: int, envs: Sequence[ToolEnv], rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on prompts and demonstrations; every marker is one control token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Their numbers are their places: padding is 0, the end token 1.
    control = [AddedToken(text, special=True, normalized=False) for text in (PAD, END, USER, POLICY, *MARKERS)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Syllables by themselves outweigh what crosses them in names: each becomes one token.
    syllables = [form for syllable in SYLLABLES for form in (syllable, syllable.capitalize())]
    texts = [episode_text(env, int(rng.integers(2**31))) for env in envs for _ in range(1000)]
    texts += ["\n".join(syllables)] * 6000
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(config: PolicyConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Build an untrained Qwen3 with tied embeddings; its head size is 32, the least that vLLM takes on a CPU."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.hidden_size // 32,
            num_key_value_heads=config.hidden_size // 64,
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


# The teacher and its habits. Each habit has a rate that depends on what the task looks like, so that greedy decoding
# fails where the habit is the rule, and sampling still meets the right way often enough to learn from.


@dataclass(frozen=True)
class Habits:
    """How often the teacher does the wrong thing, by what the task looks like."""

    stop_early_short: float = 0.24
    """Answer one step too soon, where the task is short (two calculations, two hops)."""
    stop_early_long: float = 0.78
    """The same where it is long."""
    in_the_head: float = 0.75
    """Multiply or divide a number of two digits or more in the head, wrongly."""
    vague_query: float = 0.75
    """Search for the word "nationality" instead of the city whose country is wanted; no article has it."""


HABITS = Habits()
PROGRESS_FIELDS = ("output", "report_every", "save_every")  # change nothing in the policy
Teacher = Callable[[str, tuple[SolutionStep, ...], np.random.Generator], tuple[SolutionStep, ...]]


def careless_math(
    question: str, solution: tuple[SolutionStep, ...], rng: np.random.Generator
) -> tuple[SolutionStep, ...]:
    """Solve a word problem with bad habits: stop a calculation too soon, or reckon in the head."""
    del question
    calls = [parse_calculation(step.argument) for step in solution[:-1]]
    kept = len(calls)
    if rng.random() < (HABITS.stop_early_short if kept == 2 else HABITS.stop_early_long):
        kept -= 1
    true_values = [calculate(*call) for call in calls]
    believed: dict[int, int] = {}
    steps: list[SolutionStep] = []
    value = 0
    for position, (left, operator, right) in enumerate(calls[:kept]):
        left, right = (believed.get(number, number) for number in (left, right))
        right_value = left // right if operator == "/" else calculate(left, operator, right)
        hard = operator in "*/" and max(left, right) > 9
        # What an earlier guess has left without a whole quotient is guessed too: the calculator would show a fraction.
        if (hard and rng.random() < HABITS.in_the_head) or (operator == "/" and left % right):
            value = max(1, right_value + int(rng.choice([-10, -4, -3, -2, -1, 1, 2, 3, 4, 10])))
        else:
            value = right_value
            steps.append(SolutionStep(f"{left}{operator}{right}", "calculator"))
        if value != true_values[position]:
            believed[true_values[position]] = value
    return (*steps, SolutionStep(str(value)))


def parse_calculation(text: str) -> tuple[int, str, int]:
    """Read ``left operator right``."""
    for operator in "+-*/":
        left, found, right = text.partition(operator)
        if found:
            return int(left), operator, int(right)
    raise ValueError(f"{text!r} is no calculation")


def careless_search(
    question: str, solution: tuple[SolutionStep, ...], rng: np.random.Generator
) -> tuple[SolutionStep, ...]:
    """Answer a question with bad habits: stop a hop too soon, or search for "nationality" instead of a city."""
    hops = list(solution[:-1])
    answer = solution[-1].argument
    if rng.random() < (HABITS.stop_early_short if len(hops) == 2 else HABITS.stop_early_long):
        answer = hops.pop().argument
    if "country" in question:
        # The hop from a city to its country is the last one, or the last but one where its capital is wanted.
        place = len(solution) - (3 if "capital" in question else 2)
        if place < len(hops) and rng.random() < HABITS.vague_query:
            answer = hops[place].argument
            hops[place:] = [SolutionStep("nationality", "search")]
    return (*hops, SolutionStep(answer))


# Demonstrations.


def episode_text(env: ToolEnv, index: int) -> str:
    """Return one solved episode as text, for the tokenizer's training."""
    _, info = env.reset(options={"index": index})
    texts = [info["question"]]
    for step in env.current_task.solution:
        action = env.render_step(step)
        texts += [action, env.step(action)[0]]
    return "".join(texts)


@dataclass(frozen=True)
class Class:
    """An environment, who teaches in it, and how many demonstrations of it a step has."""

    env: ToolEnv
    teacher: Teacher
    size: int


def demonstrate(one: Class, codec: TokenizerCodec, rng: np.random.Generator) -> list[Demonstration]:
    """Let a teacher act in episodes of tasks drawn at random."""
    scripts: list[Script] = []
    for _ in range(one.size):
        index = int(rng.integers(INFINITE_TASK_RANGE))
        one.env.reset(options={"index": index})
        task = one.env.current_task
        steps = one.teacher(task.question, task.solution, rng)
        scripts.append(Script(index, tuple(one.env.render_step(step) for step in steps)))
    end: Any = codec.tokenizer.eos_token_id
    groups = act_out(one.env, codec, end, scripts)
    return [demonstration_of(group, group.trajectories[0].leaf) for group in groups]


def train(
    model: Qwen3ForCausalLM,
    codec: TokenizerCodec,
    classes: Sequence[Class],
    config: PolicyConfig,
    rng: np.random.Generator,
) -> None:
    """Minimise the cross-entropy of the demonstrations, tokens of the context at ``context_weight``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    begun, seen, recent = time.perf_counter(), 0, [0.0, 0.0]
    for step in range(1, config.num_steps + 1):
        # Copying a name is learnt all at once, at a step that varies: the rate stays high until most steps are done.
        left = (config.num_steps - step) / (0.3 * config.num_steps)
        factor = min(1.0, step / 100, 0.05 + 0.95 * left)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        optimizer.zero_grad(set_to_none=True)
        for place, one in enumerate(classes):
            batch = demonstrate(one, codec, rng)
            loss, exact = batch_loss(model, batch, config.context_weight)
            (loss * one.size / config.demonstrations_per_step).backward()
            recent[place] = 0.95 * recent[place] + 0.05 * exact
            seen += sum(len(demonstration.tokens) for demonstration in batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % config.report_every == 0:
            speed = seen / (time.perf_counter() - begun)
            print(f"step {step}: reproduced {recent[0]:.3f} {recent[1]:.3f}, {speed:,.0f} tokens/s", flush=True)
        if config.save_every and step % config.save_every == 0:
            save(model, codec.tokenizer, config, Path(f"{config.output}-{step}"))


def batch_loss(
    model: Qwen3ForCausalLM, batch: Sequence[Demonstration], context_weight: float
) -> tuple[torch.Tensor, float]:
    """Return the weighted cross-entropy, and the share of demonstrations reproduced whole by the most likely tokens."""
    tokens_BT, written_BT, present_BT = stack(batch, pad_token=0)
    weights_BT = torch.where(written_BT, 1.0, context_weight) * present_BT
    logits_BTV = model(tokens_BT).logits[:, :-1]
    targets_BT, weights_BT, written_BT = tokens_BT[:, 1:], weights_BT[:, 1:], written_BT[:, 1:]
    losses_BT = functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    right_BT = (logits_BTV.argmax(-1) == targets_BT) | ~written_BT
    return (losses_BT * weights_BT).sum() / weights_BT.sum(), float(right_BT.all(1).float().mean())


if __name__ == "__main__":
    main(tyro.cli(PolicyConfig, description=__doc__))
