"""A model in a checkpoint's folder: weights that `from_pretrained` reads, and adapters apart from them.

    config.json  model.safetensors  ...                           the plain model, adapters merged in: to sample from
    adapter/adapter_config.json  adapter_model.safetensors       the adapters alone, as peft reads them: to go on with

With adapters, a run goes on from the base model that it was begun with; the merged weights then only show that it is
the same one. They could not be taken apart again exactly.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
import torch

from forkgym.agents.served_weights import PEFT_MODEL, each_served_weight, served_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter"
ADAPTER_TENSORS = "adapter_model.safetensors"  # peft's name
ACTIVE = "default"  # peft's name for the adapters where none is given
# Merged weights of the same base and the same adapters differ between machines by rounding, at most so much.
RELATIVE, ABSOLUTE = 2**-7, 1e-5


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether peft has put adapters into a model."""
    return hasattr(model, "peft_config")


def write_model(folder: Path, model: PreTrainedModel) -> None:
    """Write a model's weights, and its adapters where it has any, into a folder."""
    if not has_adapters(model):
        model.save_pretrained(folder)
        return
    import peft

    model.save_pretrained(folder, state_dict=dict(served_weights(model)))
    inside = folder / ADAPTER
    configs = cast("dict[str, peft.PeftConfig]", model.peft_config)
    configs[ACTIVE].save_pretrained(str(inside))
    # No embeddings: peft would look on the hub whether they have been resized.
    tensors: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    named = {PEFT_MODEL + name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(named, inside / ADAPTER_TENSORS)


def restore_weights(folder: Path, model: PreTrainedModel) -> None:
    """Give a model the weights in a folder; one with adapters keeps its base weights and takes the adapters.

    Raises:
        ValueError: The saved model has other weights, shapes or adapters; or was trained on top of another base.
    """
    # In the widest type of the weights, so that nothing is rounded where a model mixes types.
    dtype = functools.reduce(torch.promote_types, (p.dtype for p in model.parameters() if p.is_floating_point()))
    # Its class reads them: names in files may differ from those in the model.
    saved = type(model).from_pretrained(folder, dtype=dtype)
    if has_adapters(model) != (folder / ADAPTER).is_dir():
        found = "adapters" if has_adapters(model) else "no adapters"
        raise ValueError(f"checkpoint {folder} holds another model: this one has {found}, see agent.lora.rank")
    if has_adapters(model):
        restore_adapters(folder, model)
        check_base(folder, model, saved)
        return
    state = saved.state_dict()
    check_shapes(folder, shapes_of(state), shapes_of(model.state_dict()))
    model.load_state_dict(state)


def restore_adapters(folder: Path, model: PreTrainedModel) -> None:
    """Copy saved adapters into a model.

    Raises:
        ValueError: They have other layers or ranks.
    """
    import peft

    tensors = safetensors.torch.load_file(folder / ADAPTER / ADAPTER_TENSORS)
    named = {name.removeprefix(PEFT_MODEL): tensor for name, tensor in tensors.items()}
    own: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    check_shapes(folder, shapes_of(named), shapes_of(own))
    for name, tensor in own.items():
        tensor.copy_(named[name])


def check_base(folder: Path, model: PreTrainedModel, saved: PreTrainedModel) -> None:
    """Raise ValueError where a model with the adapters of a folder is not the one whose merged weights are there."""
    expected = dict(saved.named_parameters())
    for name, weight in each_served_weight(model):
        there = expected[name].detach().to(weight.dtype)
        if there.shape != weight.shape or not torch.allclose(weight.cpu(), there, RELATIVE, ABSOLUTE):
            raise ValueError(
                f"checkpoint {folder} was trained on top of another model than {model.name_or_path!r}: with the saved "
                f"adapters {name} is another there, expected the agent.model that the run was begun with"
            )


def shapes_of(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_shapes(folder: Path, saved: dict[str, tuple[int, ...]], own: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError where a model's weights are not those that were saved, in name or shape."""
    for name in sorted(own.keys() | saved.keys()):
        if saved.get(name) != own.get(name):
            raise ValueError(
                f"checkpoint {folder} holds another model: {name} has shape {saved.get(name)} there, "
                f"{own.get(name)} here"
            )
