"""Make an agent from its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forkgym.agents.base import Agent
from forkgym.agents.codec import ByteCodec
from forkgym.agents.config import AgentConfig
from forkgym.agents.loading import EMBEDDED, load_model, load_tokenizer
from forkgym.agents.lora import add_adapters
from forkgym.agents.openai_agent import CANNOT_TRAIN, OpenAIAgent
from forkgym.agents.scripted import OracleAgent
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.agents.vllm.serving import make_server_agent
from forkgym.agents.vllm.vllm_agent import VllmAgent


@dataclass(frozen=True, slots=True)
class Policy:
    """A model in this process, its tokenizer, and the agent that samples with its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    agent: Agent


def use_threads(config: AgentConfig) -> None:
    """Give PyTorch the CPU threads that are asked for; for programs. The bits of a result depend on their number."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif config.model == EMBEDDED:
        torch.set_num_threads(1)


def own_device() -> torch.device:
    """The GPU of this process among those of the machine, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # as torchrun and Accelerate launch processes


def load_policy(config: AgentConfig) -> Policy:
    """Load a model that can be trained, and an agent that samples with its weights.

    Raises:
        ValueError: The kind of agent has no model to train, the model or its tokenizer can't be used, or what the agent
            needs is not installed.
    """
    if config.kind == "openai":
        raise ValueError(f"agent.kind 'openai': {CANNOT_TRAIN}")
    if config.kind not in ("transformers", "vllm", "vllm-server"):
        raise ValueError(
            f"agent.kind {config.kind!r} has no model to train; expected transformers, vllm or vllm-server"
        )
    tokenizer = load_tokenizer(config.model)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    model = load_model(config.model, dtype)
    if config.lora.rank:
        add_adapters(model, config.lora)
    torch.nn.Module.to(model, own_device())  # an engine in this process shares the device, and is set up for it
    if config.kind == "vllm":
        return Policy(model, tokenizer, VllmAgent(model, tokenizer, slots=config.slots, config=config.vllm))
    if config.kind == "vllm-server":
        return Policy(model, tokenizer, make_server_agent(model, tokenizer, config))
    return Policy(model, tokenizer, TransformersAgent(model, tokenizer, slots=config.slots))


def make_agent(config: AgentConfig) -> Agent:
    """Make an agent for evaluation.

    Args:
        config: Which one.

    Raises:
        ValueError: As ``load_policy``; or an endpoint's model is not named, or its key cannot be sent.
    """
    if config.kind == "oracle":
        return OracleAgent(ByteCodec())
    if config.kind == "openai":
        if config.model == EMBEDDED:
            raise ValueError("agent.model is not given, expected the name of a model that the endpoint serves")
        return OpenAIAgent(config.model, slots=config.slots, config=config.openai)
    return load_policy(config).agent
