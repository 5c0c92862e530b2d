"""Training steps of TRL's ``GRPOTrainer``: run by ``against_trl.py``, in a Python of TRL's own.

``python trl_steps.py WORK`` takes the work as JSON, prints TRL's version as JSON, and then, for each line that it
reads, takes one step and prints its seconds and its tokens as JSON. It imports nothing of this package.

A step lasts from ``on_step_begin`` to ``on_step_end``: rollout, rewards, forward, backward, optimizer; drawing the
batch and logging are not counted. A turn is ``turn_tokens`` tokens, sampled from the whole distribution: the end token
is one that the model has no logit for. With more than one turn, TRL's own tool loop runs. Its tokenizer reads every
message as a call of the one tool (``parse_response`` below, in the place of a template that would parse JSON), and
``max_tool_calling_iterations`` ends the episode, so that each has as many turns as the work says.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch

# A message is its words; the end token stands only where TRL looks for the end of an assistant's message.
TEMPLATE = (
    "{% for message in messages %}{{ message.content }} "
    "{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }} {% for key in call.function.arguments %}{{ key }} {{ call.function.arguments[key] }} "
    "{% endfor %}{% endfor %}"
    "{% if message.role == 'assistant' %}<end> {% endif %}{% endfor %}"
)


def make_tokenizer(size: int) -> Any:
    """One word a token, an end token past the model's vocabulary, and every message a call."""
    tokenizers, models, splitters, transformers = (
        import_module(name) for name in ("tokenizers", "tokenizers.models", "tokenizers.pre_tokenizers", "transformers")
    )

    class Tokenizer(transformers.PreTrainedTokenizerFast):  # type: ignore[misc, name-defined]
        """Reads a message without looking at it."""

        def parse_response(self, response: Sequence[int], **_: object) -> dict[str, Any]:
            text = self.decode(response)
            call = {"type": "function", "function": {"name": "lookup", "arguments": {"text": text}}}
            return {"role": "assistant", "content": text, "tool_calls": [call]}

    words = {f"w{index}": index for index in range(size)} | {"<end>": size}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106
    backend.pre_tokenizer = splitters.WhitespaceSplit()
    tokenizer = Tokenizer(tokenizer_object=backend, eos_token="<end>", pad_token="w0")  # noqa: S106
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = "every message is a call"  # that there is one makes TRL ask ``parse_response``
    return tokenizer


def mean_number(text: str, size: int) -> float:
    """The reward: the mean of the words' numbers, as a share of the vocabulary."""
    return statistics.fmean(int(word[1:]) for word in text.split()) / size


def make_trainer(work: dict[str, Any], folder: str, callbacks: list[Any]) -> Any:
    """A trainer whose every step has the work's tokens."""
    transformers, datasets, trl = (import_module(name) for name in ("transformers", "datasets", "trl"))
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**work["model"]))
    model.generation_config.eos_token_id = None
    with_tools, size = work["turns"] > 1, work["model"]["vocab_size"]
    reply = " ".join(f"w{index}" for index in work["reply"])

    def lookup(text: str) -> str:
        """Look a text up.

        Args:
            text: What to look up.
        """
        del text
        return reply

    def rewards(completions: Sequence[Any], **_: object) -> list[float]:
        return [mean_number(one[-1]["content"] if with_tools else one, size) for one in completions]

    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(size)}" for _ in range(work["prompt_tokens"])) for _ in range(256)]
    prompts: list[Any] = [[{"role": "user", "content": text}] for text in texts] if with_tools else texts
    rows = work["prompts"] * work["rollouts"]
    arguments = trl.GRPOConfig(
        output_dir=folder,
        max_steps=10_000,
        loss_type="grpo",
        beta=0.0,
        learning_rate=work["learning_rate"],
        per_device_train_batch_size=work["rows_at_once"],
        gradient_accumulation_steps=rows // work["rows_at_once"],
        num_generations=work["rollouts"],
        max_completion_length=work["turns"] * work["turn_tokens"] + (work["turns"] - 1) * len(work["reply"]),
        generation_kwargs={"max_new_tokens": work["turn_tokens"]},
        max_tool_calling_iterations=work["turns"] - 1 if with_tools else None,
        gradient_checkpointing=work["activation_checkpointing"],
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    return trl.GRPOTrainer(
        model,
        reward_funcs=rewards,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=make_tokenizer(size),
        callbacks=callbacks,
        tools=[lookup] if with_tools else None,
    )


def main() -> None:
    """Take a step for each line of standard input."""
    work: dict[str, Any] = json.loads(sys.argv[1])
    results, sys.stdout = sys.stdout, sys.stderr  # the trainer prints
    torch.set_num_threads(work["threads"])
    callback_class: Any = import_module("transformers").TrainerCallback

    class Steps(callback_class):  # type: ignore[misc]
        """Waits for a line before a step, and prints what it took."""

        begun = (0.0, 0.0)
        seconds = (0.0, 0.0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
            if not sys.stdin.readline():
                raise SystemExit
            self.begun = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            self.seconds = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: object) -> None:
            if "completions/mean_length" in logs:  # of policy tokens, tool replies not among them
                tokens = round(float(logs["completions/mean_length"]) * work["prompts"] * work["rollouts"])
                results.write(json.dumps({"wall": self.seconds[0], "cpu": self.seconds[1], "tokens": tokens}) + "\n")
                results.flush()

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(work, folder, [Steps()])
        if work["turns"] > 1:
            message = {"role": "tool", "name": "lookup", "content": " ".join(f"w{index}" for index in work["reply"])}
            if trainer._get_tool_suffix_ids([message]) != work["reply"]:  # noqa: SLF001
                raise RuntimeError(f"the tool's reply is not the tokens {work['reply']}")
        results.write(json.dumps({"trl": version("trl"), "torch": version("torch")}) + "\n")
        results.flush()
        trainer.train()


if __name__ == "__main__":
    main()
