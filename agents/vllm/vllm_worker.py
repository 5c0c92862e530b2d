"""What a vLLM server's workers can do besides sampling: take weights from a file.

vLLM mixes the class into its own worker (``--worker-extension-cls``); its methods are called by name.
"""

from __future__ import annotations

from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from forkgym.agents.vllm.vllm_engine import prepare_output_layers

# What a file or a tensor in it that the model has no place for raises in vLLM's loaders.
UNUSABLE = (OSError, SafetensorError, AssertionError, AttributeError, KeyError, RuntimeError, ValueError)


class WeightReceiver:
    """Mixed into vLLM's worker, whose ``model_runner`` it works on."""

    model_runner: Any

    def take_weights(self, path: str) -> str | None:
        """Load the model's weights from a safetensors file.

        Returns:
            What was wrong; None for nothing. An exception would reach the caller as one of no certain type.
        """
        try:
            self.model_runner.reload_weights(weights_iterator=iter(safetensors.torch.load_file(path).items()))
            prepare_output_layers(self.model_runner.get_model())
        except UNUSABLE as error:
            return f"{type(error).__name__}: {error}"
        return None
