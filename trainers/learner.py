"""What a step changes and measures with: the model, its optimizer, a value head, the policy that it started from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType
from torch.optim.lr_scheduler import LambdaLR

from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.master_weights import adamw
from forkgym.trainers.memory_saving import checkpoint_activations
from forkgym.trainers.reference import Reference
from forkgym.trainers.schedule import rise_and_fall

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


PATIENCE = timedelta(hours=6)  # of other processes while the first one measures accuracy
DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True, slots=True)
class Learner:
    """What a step changes, and what it measures with.

    Attributes:
        accelerator: Names the device and the other processes.
        model: A causal language model.
        optimizer: Over the model's trainable parameters, and the value head's.
        pad_token: Fills up short rows; never trained on.
        temperature: At which the tokens were sampled; the loss takes log-probs under the same distribution.
        value_head: For the critic: from hidden states [N, hidden] to values [N, 1].
        reference: The policy at the start of the run, for the KL term.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: Optimizer
    pad_token: int
    temperature: float
    value_head: torch.nn.Module | None = None
    reference: Reference | None = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All that is trained."""
        parts = [self.model] if self.value_head is None else [self.model, self.value_head]
        return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]

    def forget_gradients(self) -> None:
        """Free the memory of the gradients."""
        for parameter in self.parameters:
            parameter.grad = None


def make_learner(
    model: torch.nn.Module, pad_token: int, temperature: float, config: TrainerConfig
) -> tuple[Learner, LambdaLR]:
    """Prepare a model for training: AdamW without weight decay, linear warm-up, then a linear fall.

    Raises:
        ValueError: See `make_accelerator`.
    """
    accelerator = make_accelerator()
    model.to(accelerator.device)
    if config.gradient_checkpointing:
        checkpoint_activations(cast("PreTrainedModel", model))
    optimizer = adamw(model, config.learning_rate)
    value_head = make_value_head(model) if config.settings.baseline == "critic" else None
    if value_head is not None:
        settings = {"params": list(value_head.parameters()), "lr": config.loss.value_learning_rate}
        optimizer.add_param_group(settings)

    def factor(step: int) -> float:
        return rise_and_fall(step, config.warmup_steps, config.num_steps - 1, config.final_learning_rate)

    reference = Reference.of(model) if config.loss.kl_weight > 0 else None
    learner = Learner(accelerator, model, optimizer, pad_token, temperature, value_head, reference)
    return learner, LambdaLR(optimizer, factor)


def make_accelerator() -> Accelerator:
    """Name the device and the other processes, as ``accelerate launch`` and its environment say.

    The precision is the model's own, and a step's batches are all of its rollout, whatever is set for accelerate.

    Raises:
        ValueError: The processes would share the model out, or the devices are of another kind: their gradients are
            not those that `processes` adds up.
    """
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if accelerator.distributed_type not in DISTRIBUTED:
        raise ValueError(
            f"accelerate's distributed type is {accelerator.distributed_type.value}, expected one of "
            f"{', '.join(kind.value for kind in DISTRIBUTED)}: each process holds the whole model"
        )
    return accelerator


class ValueHead(torch.nn.Linear):
    """One number a hidden state, in float32 whatever the model is in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """From hidden states [N, hidden] to values [N, 1]."""
        return super().forward(input.to(self.weight.dtype))


def make_value_head(model: torch.nn.Module) -> ValueHead:
    """A linear layer on the hidden states that says 0 at first, so that the first advantages are the returns."""
    config = cast("PreTrainedModel", model).config.get_text_config()
    head = ValueHead(int(config.hidden_size), 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head.to(next(model.parameters()).device)
