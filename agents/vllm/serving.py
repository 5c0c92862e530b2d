"""Make the vllm-server agent from its settings: with servers that run already, or with some of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from forkgym.agents.config import AgentConfig
from forkgym.agents.vllm.engine_settings import settings_for
from forkgym.agents.vllm.sampled_model import logprobs_to_ask
from forkgym.agents.vllm.vllm_launch import LaunchedServers, server_gpus
from forkgym.agents.vllm.vllm_server import VllmServerAgent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_server_agent(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: AgentConfig
) -> VllmServerAgent:
    """Make the agent; each of several training processes has servers of its own.

    Args:
        model: Trained in this process.
        tokenizer: Its tokenizer.
        config: Of the agent.

    Raises:
        ValueError: See `VllmServerAgent`, `LaunchedServers` and `server_gpus`; or there are fewer addresses than
            training processes.
    """
    servers: Sequence[str] | LaunchedServers = own_addresses(config.server.urls)
    if not servers:
        servers = launch(model, config)
    return VllmServerAgent(model, tokenizer, servers, config=config.server, engine=config.vllm)


def own_addresses(urls: Sequence[str]) -> Sequence[str]:
    """Those of the addresses that are for this training process, which is one of ``WORLD_SIZE``.

    Raises:
        ValueError: There are some, but not one for each process.
    """
    world, rank = variable("WORLD_SIZE", 1), variable("RANK", 0)
    if urls and len(urls) < world:
        raise ValueError(
            f"agent.server.urls has {len(urls)} addresses for {world} training processes, expected one each at least"
        )
    return urls[rank::world]


def launch(model: PreTrainedModel, config: AgentConfig) -> LaunchedServers:
    """Start servers for a model."""
    num_logprobs = logprobs_to_ask(int(model.config.get_text_config().vocab_size), config.vllm)
    settings = replace(
        settings_for(model, config.slots, num_logprobs, config.vllm),
        threads=torch.get_num_threads(),
        gpus=config.server.gpus,
        nccl=config.server.transfer == "nccl",
    )
    variables: list[dict[str, str]] = [{} for _ in range(config.servers)]
    if not settings.on_cpu:
        trainers, rank = variable("LOCAL_WORLD_SIZE", 1), variable("LOCAL_RANK", 0)
        gpus = server_gpus(config.servers, config.server.gpus, trainers, rank, visible_gpus())
        variables = [{"CUDA_VISIBLE_DEVICES": one} for one in gpus]
    return LaunchedServers(model, variables, settings, config.vllm)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    return [str(one) for one in range(torch.cuda.device_count())]


def variable(name: str, default: int) -> int:
    """A number that launchers of training processes put into the environment."""
    return int(os.environ.get(name, default))
