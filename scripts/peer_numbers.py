"""What TRL and verl make of a few tokens: writes the numbers that ``tests/trainers/test_peers.py`` compares ours with.

Run in an interpreter that has both, with a CPU build of PyTorch; this package is not needed there. The file names the
versions that made it. verl's own requirements are for GPUs, so it goes without them:

    python -m venv PEERS
    PEERS/bin/pip install trl==1.16.0 "ray[default]" hydra-core tensordict codetiming torchdata cachetools orjson peft
    PEERS/bin/pip install pybind11 pylatexenc && PEERS/bin/pip install --no-deps verl==0.9.1
    PEERS/bin/python scripts/peer_numbers.py

All numbers are computed in float64. Losses come with their gradient to each token's log-prob.

- verl: the functions of ``verl.trainer.ppo.core_algos`` and ``rollout_corr_helper`` are called as they are.
- TRL: its losses are methods, so a real ``GRPOTrainer`` is built over a model of a few hundred weights, and three of
  its methods are replaced, those that need a model or an environment: ``_generate`` returns the tokens, masks and
  rollout log-probs from below, ``_calculate_rewards`` the rewards, ``_get_per_token_logps_and_entropies`` the
  log-probs. ``_generate_and_score_completions`` and ``_compute_loss`` are TRL's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

COMMAND = "python scripts/peer_numbers.py"
OUTPUT = Path(__file__).parents[1] / "tests" / "trainers" / "peer_numbers.json"

# Two groups of three trajectories, up to five tokens each: policy tokens, and observations (0 between two 1).
MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 1, 1], [1, 0, 0, 0, 0]]
LENGTHS = [5, 4, 2, 4, 5, 1]
GROUPS = [0, 0, 0, 1, 1, 1]
REWARDS = [1.0, 0.0, 0.0, 0.5, 0.0, 1.1]
GREEDY = [0.0, 0.0, 0.0, 0.6, 0.6, 0.6]
# log pi now and before the first update: ratios from 0.15 to 7.4, on good and on bad trajectories.
LOGPROBS = [
    [-0.5, -1.2, -0.1, -2.0, -0.7],
    [-1.1, -0.3, 0.0, -0.4, 0.0],
    [-2.2, -0.9, 0.0, 0.0, 0.0],
    [-0.6, -1.5, -0.2, -0.8, 0.0],
    [-1.3, 0.0, -0.4, -2.5, -0.9],
    [-0.35, 0.0, 0.0, 0.0, 0.0],
]
BEFORE = [
    [-0.6, -0.9, -2.1, -0.1, -0.7],
    [-1.0, -1.7, 0.0, -0.75, 0.0],
    [-2.1, -2.9, 0.0, 0.0, 0.0],
    [-0.9, -1.45, -0.3, -0.5, 0.0],
    [-1.35, 0.0, -2.0, -0.6, -0.95],
    [-0.85, 0.0, 0.0, 0.0, 0.0],
]
# The same as the engine had it (above 2 times less likely in places), and under the reference policy.
ROLLOUT = [
    [-0.7, -0.85, -2.05, -1.2, -0.7],
    [-1.3, -1.6, 0.0, -0.5, 0.0],
    [-1.9, -3.3, 0.0, 0.0, 0.0],
    [-0.8, -1.55, -1.4, -0.5, 0.0],
    [-1.25, 0.0, -2.2, -0.9, -0.65],
    [-0.45, 0.0, 0.0, 0.0, 0.0],
]
REFERENCE = [
    [-0.55, -1.0, -0.3, -1.4, -0.9],
    [-1.0, -0.5, 0.0, -0.6, 0.0],
    [-2.0, -1.3, 0.0, 0.0, 0.0],
    [-0.7, -1.4, -0.25, -1.1, 0.0],
    [-1.2, 0.0, -0.9, -1.8, -0.8],
    [-0.5, 0.0, 0.0, 0.0, 0.0],
]
VALUES = [
    [0.2, 0.3, 0.5, 0.6, 0.9],
    [0.4, 0.1, 0.0, 0.2, 0.0],
    [0.3, 0.1, 0.0, 0.0, 0.0],
    [0.5, 0.4, 0.6, 0.3, 0.0],
    [0.1, 0.0, 0.2, 0.3, 0.1],
    [0.7, 0.0, 0.0, 0.0, 0.0],
]
MOST_TOKENS = 10
GAE_LAMBDA = 0.8
# Rewards of two groups of four, for GPG's accurate gradient estimation.
GPG_REWARDS = {
    "two mixed": [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    "mixed and wrong": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "mixed and right": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
    "mixed and wrong, -1 or 1": [1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0],
    "mixed and wrong, floor": [1.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
}

Result = dict[str, Any]


def tensor(numbers: Sequence[Any]) -> torch.Tensor:
    """Float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def numbers(values: torch.Tensor) -> Any:
    """As JSON has them, without the last digits' rounding."""
    if values.ndim == 0:
        return round(values.item(), 12)
    return [numbers(value) for value in values.detach()]


# TRL.


class ToyTrainer:
    """A ``GRPOTrainer`` that is given its tokens, rewards and log-probs.

    Args:
        given: Of the policy that is trained; a leaf, so that it has a gradient.
        as_engine: Treat the rollout as vLLM's, whose log-probs are corrected for.
        settings: Of the ``GRPOConfig``.
    """

    def __init__(self, given: torch.Tensor, *, as_engine: bool, settings: Mapping[str, Any]) -> None:
        transformers, datasets, trl = (import_module(name) for name in ("transformers", "datasets", "trl"))
        config = transformers.Qwen3Config(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = trl.GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=len(MASK),
                num_generations=3,
                num_iterations=2,  # so that the log-probs before the first update are asked for
                max_completion_length=MOST_TOKENS,
                report_to=[],
                use_cpu=True,
                bf16=False,
                **{"beta": 0.0, **settings},
            )
        beta, arguments.beta = arguments.beta, 0.0  # or a reference model would be loaded from a hub
        self.trainer = trl.GRPOTrainer(
            transformers.Qwen3ForCausalLM(config),
            reward_funcs=no_rewards,
            args=arguments,
            train_dataset=datasets.Dataset.from_list([{"prompt": "w1"}] * 2),
            processing_class=word_tokenizer(16),
        )
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.use_vllm = as_engine
        self.trainer.beta, self.trainer.ref_model = beta, object()
        self.given = given
        self.trainer._generate = self.generate  # noqa: SLF001
        self.trainer._calculate_rewards = self.rewards  # noqa: SLF001
        self.trainer._get_per_token_logps_and_entropies = self.logprobs  # noqa: SLF001

    def generate(self, prompts: Sequence[str]) -> tuple[Any, ...]:
        """TRL's order: prompts, completions, tool masks, completions again, the engine's log-probs, and no images."""
        tokens = [[5] * length for length in LENGTHS]
        masks = [mask[:length] for mask, length in zip(MASK, LENGTHS, strict=True)]
        engine = [logprobs[:length] for logprobs, length in zip(ROLLOUT, LENGTHS, strict=True)]
        return [[1]] * len(prompts), tokens, masks, [""] * len(prompts), engine, {}, None, []

    def rewards(self, *_: Any) -> torch.Tensor:
        """Of one reward function, [trajectories, 1]."""
        return tensor(REWARDS)[:, None]

    def logprobs(self, model: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Log-probs and entropies: with a gradient of the policy that is trained, else of another."""
        if torch.is_grad_enabled():
            return self.given, torch.zeros_like(self.given), None
        found = tensor(REFERENCE if model is self.trainer.ref_model else BEFORE)
        return found, torch.zeros_like(found), None

    def score(self) -> dict[str, Any]:
        """What the loss takes."""
        inputs: dict[str, Any] = self.trainer._generate_and_score_completions([{"prompt": "w1"}] * len(MASK))  # noqa: SLF001
        return inputs

    def loss(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Of one micro-batch."""
        found: torch.Tensor = self.trainer._compute_loss(self.trainer.model, inputs)  # noqa: SLF001
        return found


def no_rewards(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward function, which there has to be."""
    return [0.0] * len(completions)


def word_tokenizer(size: int) -> Any:
    """One word a token."""
    tokenizers, models, transformers = (
        import_module(name) for name in ("tokenizers", "tokenizers.models", "transformers")
    )
    words = {"<end>": 0} | {f"w{index}": index for index in range(1, size)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w1"))  # noqa: S106
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")  # noqa: S106


TRL_CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "grpo": (False, {"loss_type": "grpo"}),
    "bnpo": (False, {"loss_type": "bnpo"}),
    "dapo": (False, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": (False, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "cispo": (False, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "gspo": (
        False,
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "gspo, wide": (False, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.5}),
    "grpo, delta 3": (False, {"loss_type": "grpo", "delta": 3.0}),
    "grpo, k3": (False, {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}),
    "grpo, k3, weighted": (False, {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True}),
    "dapo, token_truncate 2": (
        True,
        {
            "loss_type": "dapo",
            "epsilon_high": 0.28,
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 2.0,
        },
    ),
}


def trl_numbers() -> dict[str, Result]:
    """Every case on the whole batch, and one in two micro-batches."""
    found: dict[str, Result] = {}
    for name, (as_engine, settings) in TRL_CASES.items():
        given = tensor(LOGPROBS).requires_grad_()
        toy = ToyTrainer(given, as_engine=as_engine, settings=settings)
        inputs = toy.score()
        loss = toy.loss(inputs)
        (gradient,) = torch.autograd.grad(loss, given)
        found[name] = {"settings": settings, "advantages": numbers(inputs["advantages"])}
        found[name] |= {"loss": numbers(loss), "gradient": numbers(gradient)}
        if as_engine:
            found[name]["importance_weights"] = numbers(inputs["importance_sampling_ratio"])
    for name in ("grpo", "bnpo", "dapo"):
        found[f"{name}, two micro-batches"] = in_two_micro_batches(TRL_CASES[name][1])
    return found


def in_two_micro_batches(settings: Mapping[str, Any]) -> Result:
    """The two groups one after the other, as TRL splits a batch with ``gradient_accumulation_steps=2``."""
    whole = tensor(LOGPROBS)
    toy = ToyTrainer(whole, as_engine=False, settings={**settings, "gradient_accumulation_steps": 2})
    inputs = toy.score()
    toy.trainer.current_gradient_accumulation_steps = 2
    losses: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    for half in (slice(0, 3), slice(3, 6)):
        toy.given = whole[half].clone().requires_grad_()
        per_row = {"num_items_in_batch": inputs["num_items_in_batch"]}
        per_row |= {key: value[half] for key, value in inputs.items() if key not in per_row}
        loss = toy.loss(per_row)
        gradients += list(torch.autograd.grad(loss, toy.given))
        losses.append(loss)
    return {
        "settings": dict(settings),
        "loss": numbers(torch.stack(losses).sum()),
        "gradient": numbers(torch.cat(gradients)),
    }


# verl.


def verl_numbers() -> dict[str, Result]:
    """Its advantages, losses, aggregations, weights and KL estimates."""
    algos, correction, workers, settings = (
        import_module(name)
        for name in (
            "verl.trainer.ppo.core_algos",
            "verl.trainer.ppo.rollout_corr_helper",
            "verl.workers.config",
            "verl.trainer.config",
        )
    )
    numpy = import_module("numpy")
    mask, groups = tensor(MASK), numpy.array(GROUPS)
    at_end = torch.zeros_like(mask)
    for row, length in enumerate(LENGTHS):
        at_end[row, length - 1] = REWARDS[row]

    def advantages(function: str, *arguments: Any, **options: Any) -> torch.Tensor:
        found: torch.Tensor = getattr(algos, function)(at_end.clone(), *arguments, **options)[0]
        return found

    by_group = {"response_mask": mask, "index": groups}
    scaled = advantages("compute_grpo_outcome_advantage", **by_group)
    found = {
        "advantages/grpo": numbers(scaled),
        "advantages/dr_grpo": numbers(
            advantages("compute_grpo_outcome_advantage", **by_group, norm_adv_by_std_in_grpo=False)
        ),
        "advantages/rloo": numbers(advantages("compute_rloo_outcome_advantage", **by_group)),
        "advantages/remax": numbers(advantages("compute_remax_outcome_advantage", tensor(GREEDY), mask)),
    }
    whitened, returns = algos.compute_reinforce_plus_plus_outcome_advantage(
        at_end.clone(), mask, config=settings.AlgoConfig(gamma=1.0)
    )
    found |= {"returns/reinforce_plus_plus": numbers(returns), "advantages/reinforce_plus_plus": numbers(whitened)}
    whitened, returns = algos.compute_gae_advantage_return(at_end, tensor(VALUES), mask, 1.0, GAE_LAMBDA)
    found |= {"returns/gae": numbers(returns * mask), "advantages/gae": numbers(whitened * mask)}
    for name, rewards in GPG_REWARDS.items():
        one = torch.ones(len(rewards), 1, dtype=torch.float64)
        groups_of_four = numpy.arange(len(rewards)) // 4
        scores, _ = algos.compute_gpg_outcome_advantage(tensor(rewards)[:, None], one, groups_of_four)
        found[f"advantages/gpg, {name}"] = numbers(scores[:, 0])

    log_ratios = tensor(BEFORE) - tensor(ROLLOUT)
    weights, _ = correction.compute_rollout_correction_weights(log_ratios, mask, "token", 2.0)
    found["importance_weights"] = numbers(weights)
    for kind in ("k1", "k2", "k3"):
        found[f"kl/{kind}"] = numbers(algos.kl_penalty(tensor(LOGPROBS), tensor(REFERENCE), kind) * mask)

    def loss(kind: str, mode: str, rollout_weights: torch.Tensor | None = None, **options: Any) -> Result:
        actor = workers.ActorConfig(strategy="fsdp", rollout_n=3, ppo_micro_batch_size_per_gpu=6, **options)
        actor.global_batch_info["loss_scale_factor"] = MOST_TOKENS
        given = tensor(LOGPROBS).requires_grad_()
        value, _ = algos.get_policy_loss_fn(kind)(
            tensor(BEFORE), given, scaled, mask, mode, actor, rollout_is_weights=rollout_weights
        )
        (gradient,) = torch.autograd.grad(value, given)
        return {"options": options, "mode": mode, "loss": numbers(value), "gradient": numbers(gradient)}

    for mode in ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
        found[f"loss/gpg, {mode}"] = loss("gpg", mode)
        found[f"loss/vanilla, {mode}"] = loss("vanilla", mode)
    return found | {
        "loss/vanilla, c 1e9": loss("vanilla", "token-mean", clip_ratio_c=1e9),
        "loss/vanilla, weighted": loss("vanilla", "token-mean", weights),
        "loss/gpg, weighted": loss("gpg", "token-mean", weights),
        "loss/gspo": loss("gspo", "seq-mean-token-mean", clip_ratio_low=0.5, clip_ratio_high=0.5),
        "loss/cispo": loss("cispo", "token-mean", clip_ratio_high=4.0),
        "loss/cispo, nothing clipped below": loss("cispo", "token-mean", clip_ratio_low=1.0, clip_ratio_high=4.0),
    }


INPUTS = ("MASK", "LENGTHS", "GROUPS", "REWARDS", "GREEDY", "LOGPROBS", "BEFORE", "ROLLOUT", "REFERENCE", "VALUES")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output: Path = parser.parse_args().output
    torch.set_default_dtype(torch.float64)
    makers: dict[str, Callable[[], Any]] = {"trl": trl_numbers, "verl": verl_numbers}
    here = globals()
    document = {
        "command": COMMAND,
        "versions": {name: version(name) for name in ("trl", "verl", "torch", "transformers")},
        "python": sys.version.split()[0],
        "inputs": {name.lower(): here[name] for name in INPUTS}
        | {"most_tokens": MOST_TOKENS, "gae_lambda": GAE_LAMBDA, "gpg_rewards": GPG_REWARDS},
        **{name: make() for name, make in makers.items()},
    }
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
