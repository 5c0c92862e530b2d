"""The policy at the start of a run, which a KL term holds the trained one close to."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


@dataclass(frozen=True, slots=True)
class Reference:
    """A frozen policy. Where adapters alone are trained it is the model without them, and needs no copy.

    Attributes:
        model: The copy, or the trained model itself.
        adapters: The trained model's layers with adapters; empty where there is a copy.
    """

    model: torch.nn.Module
    adapters: tuple[BaseTunerLayer, ...]

    @staticmethod
    def of(model: torch.nn.Module) -> Reference:
        """Freeze a model as it is now; to be called before the first step."""
        adapters = tuple(module for module in model.modules() if isinstance(module, BaseTunerLayer))
        frozen = model if adapters else copy.deepcopy(model).requires_grad_(False).eval()
        return Reference(frozen, adapters)

    @contextmanager
    def as_it_was(self) -> Generator[torch.nn.Module]:
        """The model with the weights it had; until the context ends, where it is the trained one."""
        for layer in self.adapters:
            layer.enable_adapters(False)
        try:
            yield self.model
        finally:
            for layer in self.adapters:
                layer.enable_adapters(True)
