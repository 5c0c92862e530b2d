"""A model's weights as an inference engine takes them: under the names of the plain model, adapters merged in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

BASE = ".base_layer."  # peft's name for what stands below an adapter
PEFT_MODEL = "base_model.model."  # what peft's own wrapper of a whole model puts before each name


def served_weights(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return every weight under the name that it has in the plain model, detached; tied ones once.

    Weights without an adapter are the model's own tensors, no copies. One with LoRA adapters is a new tensor, ``W +
    sum of scaling B A`` (Hu et al. 2021, arXiv:2106.09685, section 4.1), added in float32 and rounded once to W's own
    type. W itself is never written to, so that nothing adds up from call to call.

    Args:
        model: A plain model, or one with LoRA adapters by peft: wrapped (`peft.get_peft_model`) or not
            (`peft.inject_adapter_in_model`).

    Raises:
        ValueError: It has adapters whose sum is no weight of the plain model, or that are merged in already.
    """
    return list(each_served_weight(model))


def each_served_weight(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Do as `served_weights`, one weight after the other, so that only one merged copy needs memory at a time.

    Raises:
        ValueError: As there.
    """
    for name, parameter, layer in plain_parameters(model):
        weight = parameter.detach()
        yield name, weight if layer is None else merged(weight, layer)


def served_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that `served_weights` returns, by name; nothing is merged for it.

    Raises:
        ValueError: As there.
    """
    return {name: tuple(parameter.shape) for name, parameter, _ in plain_parameters(model)}


def plain_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter, LoraLayer | None]]:
    """The parameters of the plain model under the names they have there, with the adapters of each.

    Raises:
        ValueError: See `served_weights`.
    """
    # Both of peft's ways leave this mark; without it the import, which takes a second, is not needed.
    layers = lora_layers(model) if hasattr(model, "peft_config") else {}
    adapters = {f"{path}.{name}" for path, layer in layers.items() for name in adapter_names(layer)}
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        if name in adapters:
            continue
        path, _, rest = name.rpartition(BASE)
        layer = layers.get(path) if rest == "weight" else None
        if layer is not None and uses[id(parameter)] > 1:
            raise ValueError(f"{name} has an adapter and is tied to another weight, expected one or the other")
        yield name.replace(BASE, ".").removeprefix(PEFT_MODEL if layers else ""), parameter, layer


def lora_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    """The layers with LoRA adapters by their path.

    Raises:
        ValueError: See `served_weights`.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[str, LoraLayer] = {}
    for path, module in cast("Iterator[tuple[str, torch.nn.Module]]", model.named_modules()):
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            if not isinstance(module, LoraLayer):
                raise ValueError(f"{path} is peft's {type(module).__name__}, expected adapters of LoRA alone")
            check_mergeable(path, module)
            found[path] = module
    return found


def check_mergeable(path: str, layer: LoraLayer) -> None:
    """Raise ValueError where a layer computes something else than ``(W + sum of scaling B A) x``."""
    if layer.merged:
        raise ValueError(f"{path}: its adapters are merged into it, expected them apart from the base weight")
    if layer.lora_variant:
        raise ValueError(f"{path}: {sorted(layer.lora_variant)} is a variant of LoRA such as DoRA, expected plain LoRA")
    if any(layer.lora_bias.values()):
        raise ValueError(f"{path}: its adapter has a bias, expected plain LoRA")


def adapter_names(layer: LoraLayer) -> list[str]:
    """The names, in the layer, of the adapters' own parameters."""
    module = cast(torch.nn.Module, layer)
    return [name for name, _ in module.named_parameters() if not name.startswith("base_layer.")]


def merged(weight: torch.Tensor, layer: LoraLayer) -> torch.Tensor:
    """A new tensor: a base weight with the active adapters of its layer."""
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    if not layer.disable_adapters:
        methods: Any = layer
        with torch.no_grad():
            for adapter in layer.active_adapters:
                if adapter in layer.scaling:
                    delta: torch.Tensor = methods.get_delta_weight(adapter)
                    total += delta
    return total.to(weight.dtype)
