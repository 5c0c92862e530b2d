"""What vLLM's engine is started with, be it in this process or in a server: its arguments, environment and config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forkgym.agents.config import VllmConfig
from forkgym.agents.slot_model import longest_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_CACHE_GIB = 1.0
CPU_BLOCK = 32  # tokens, the least that its kernels take; only whole blocks are shared, and by default they are 128

# Read when vllm is imported.
ENVIRONMENT: Mapping[str, str] = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
# By default it ties its process, with all that a trainer runs, to cores of its choice.
CPU_ENVIRONMENT: Mapping[str, str] = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How large an engine is, and where it runs.

    Attributes:
        dtype: Of the weights, such as ``float32``.
        on_cpu: Whether it runs without a GPU.
        slots: Most sequences that are decoded at once.
        max_context: Longest sequence in tokens; None for what the model and the cache allow.
        num_logprobs: Most likely tokens whose log-probs can be asked for.
        threads: CPU threads, on a CPU (servers only).
        gpus: That the model is spread over (servers only).
        nccl: Whether weights come by NCCL (servers only).
    """

    dtype: str
    on_cpu: bool
    slots: int
    max_context: int | None
    num_logprobs: int
    threads: int = 1
    gpus: int = 1
    nccl: bool = False


def settings_for(model: PreTrainedModel, slots: int, num_logprobs: int, config: VllmConfig) -> EngineSettings:
    """The settings of an engine that samples in a trained model's place."""
    return EngineSettings(
        dtype=str(model.dtype).removeprefix("torch."),
        on_cpu=model.device.type == "cpu",
        slots=slots,
        max_context=None if config.max_context is None else longest_context(model, config.max_context),
        num_logprobs=num_logprobs,
    )


def is_eager(settings: EngineSettings, config: VllmConfig) -> bool:
    """Whether the model runs as it is, neither compiled nor captured."""
    return settings.on_cpu if config.eager is None else config.eager


def engine_arguments(settings: EngineSettings, config: VllmConfig) -> dict[str, str | int | float | bool]:
    """The arguments of an engine, by the names that vLLM's `EngineArgs` has for them.

    What is not there is left to vLLM.
    """
    arguments: dict[str, str | int | float | bool] = {
        "skip_tokenizer_init": True,  # tokens travel, not text
        "load_format": "dummy",  # every weight comes from the trainer
        "generation_config": "vllm",  # not the model's, which may ask for top-p or top-k
        "dtype": settings.dtype,
        "logprobs_mode": "processed_logprobs",  # those of the sampling distribution
        "max_logprobs": settings.num_logprobs,
        "max_num_seqs": settings.slots,
        "max_model_len": -1 if settings.max_context is None else settings.max_context,
        "gpu_memory_utilization": config.memory_fraction,
        "enable_prefix_caching": True,
        # On a CPU vLLM fails where it fills the cache of a seeded request in pieces.
        "enable_chunked_prefill": not settings.on_cpu,
        "disable_log_stats": True,
    }
    cache_gib = CPU_CACHE_GIB if settings.on_cpu and config.cache_gib is None else config.cache_gib
    if cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
    if settings.on_cpu:
        arguments["block_size"] = CPU_BLOCK
    if is_eager(settings, config):
        arguments["enforce_eager"] = True
    return arguments


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the config of a model, from which an engine can make one with other weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
