"""Activation checkpointing: compute a layer's activations once more in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let a model keep only the input of each layer for the backward pass, in place; it computes the same.

    Chen et al. 2016, arXiv:1604.06174: activations take memory for one layer at a time instead of for all, and a step
    about a third more time. Nothing changes without gradients, so sampling costs what it did.

    transformers does so in training mode alone, and the policy is trained in evaluation mode, as dropout would make it
    another one than that which sampled. Here a layer is in training mode for the moment in which it decides this: not
    what is inside it, which has its dropout switched off as before.

    Works with adapters as well: the checkpoints are not reentrant ones, which would need inputs with gradients.

    Args:
        model: A causal language model. What a layer reads beside its arguments, such as a plan for its attention, has
            to be the same in the backward pass.

    Raises:
        ValueError: Its layers have no such way.
    """
    found = list(checkpointing_layers(model))
    if not found or not model.supports_gradient_checkpointing:
        raise ValueError(f"gradient_checkpointing: {type(model).__name__} can't checkpoint its layers")
    models: Any = model
    if hasattr(models, "activation_checkpointing_enable"):
        models.activation_checkpointing_enable({"use_reentrant": False})
    else:  # the name before transformers 5.19
        models.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in found:
        drop_nothing(layer)
        # Functions of the module that they are given: a copy of the model has hooks that are about the copy.
        layer.register_forward_pre_hook(train_with_gradients)
        layer.register_forward_hook(evaluate)


def checkpointing_layers(model: torch.nn.Module) -> Iterator[GradientCheckpointingLayer]:
    """The layers that transformers can checkpoint."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield module


def drop_nothing(layer: torch.nn.Module) -> None:
    """Set dropout to 0 that a layer applies itself, by a number of its own; modules below it have their own mode."""
    for name, value in vars(layer).items():
        if "drop" in name and isinstance(value, float):
            setattr(layer, name, 0.0)


def train_with_gradients(layer: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
    """Be in training mode where gradients are taken."""
    del arguments
    layer.training = torch.is_grad_enabled()


def evaluate(layer: torch.nn.Module, arguments: tuple[Any, ...], output: object) -> None:
    """Be in evaluation mode."""
    del arguments, output
    layer.training = False
