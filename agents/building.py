"""Make an agent from its settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forkgym.agents.base import Agent
from forkgym.agents.codec import ByteCodec
from forkgym.agents.config import AgentConfig
from forkgym.agents.loading import EMBEDDED, load_model, load_tokenizer
from forkgym.agents.scripted import OracleAgent
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.envs.grammar import resolve_grammar


@dataclass(frozen=True, slots=True)
class Policy:
    """A model in this process, its tokenizer, and the agent that samples from it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    agent: TransformersAgent


def use_threads(config: AgentConfig) -> None:
    """Give PyTorch the CPU threads that are asked for; for programs. The bits of a result depend on their number."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif config.model == EMBEDDED:
        torch.set_num_threads(1)


def load_policy(config: AgentConfig) -> Policy:
    """Load a model that can be trained, and an agent that shares its weights.

    Raises:
        ValueError: The kind of agent has no model to train, or the model or its tokenizer can't be used.
    """
    if config.kind != "transformers":
        raise ValueError(f"agent.kind {config.kind!r} has no model to train; expected transformers")
    tokenizer = load_tokenizer(config.model)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    model = load_model(config.model, dtype)
    return Policy(model, tokenizer, TransformersAgent(model, tokenizer, slots=config.slots))


def make_agent(config: AgentConfig, grammar: str) -> Agent:
    """Make an agent for evaluation.

    Args:
        config: Which one.
        grammar: In which an oracle writes.

    Raises:
        ValueError: As ``load_policy``; or the grammar is unknown.
    """
    if config.kind == "oracle":
        return OracleAgent(ByteCodec(), resolve_grammar(grammar))
    return load_policy(config).agent
