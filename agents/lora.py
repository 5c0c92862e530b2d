"""Train low-rank adapters in place of a model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forkgym.agents.config import LoraConfig

ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the output's
SEED = 0  # of the adapters' first values, so that every process and every resumed run begins with the same


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Put adapters into a model, in place: ``y = W x + (alpha / rank) B A x``, of which only A and B are trained.

    Hu et al. 2021, arXiv:2106.09685. B begins with zeros, so that at first nothing changes. The adapters are in float32
    whatever the model is in: their steps are too small for half precision. There is no dropout, as the policy that is
    trained must be the one that sampled.

    Args:
        model: A plain model; stays of its own class.
        config: Rank 1 or more.

    Raises:
        ValueError: The model has no module of a name that is asked for, or one that can't take an adapter.
    """
    import peft  # takes a second

    targets = list(config.target_modules)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        base_model_name_or_path=model.name_or_path,
        task_type="CAUSAL_LM",
    )
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        try:
            peft.inject_adapter_in_model(settings, model)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"agent.lora.target_modules is {targets}, expected names of linear layers of {type(model).__name__}, "
                f"or {ALL_LINEAR} ({reason})"
            ) from error
    model.train(training)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
