"""What a model says of sampled tokens, and models that are small enough for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from forkgym.trainers.algorithms.config import SegmentConfig
from forkgym.trainers.algorithms.segments import segment_begins
from forkgym.trainers.forward.forwards import FORWARDS
from forkgym.trainers.forward.measures import ForwardSettings
from forkgym.trainers.packing import make_row
from forkgym.trainers.types import Group, Row

PAD = 0


def tiny_qwen(vocabulary: int, seed: int = 0) -> Qwen3ForCausalLM:
    """Two layers with random weights."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )


def rows_of(groups: Sequence[Group]) -> list[Row]:
    """Each trajectory in a row, in order, with turns as segments."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for group in groups:
        begins = segment_begins(group, "turn", SegmentConfig(), rng)
        rows += [make_row(group, one, begins) for one in group.trajectories]
    return rows


@torch.no_grad()
def row_logprobs(model: torch.nn.Module, groups: Sequence[Group], temperature: float = 1.0) -> torch.Tensor:
    """How far a model's log-probs are from those that the tokens were sampled with, nats.

    Returns:
        One gap a sampled token of each trajectory, [N], in the order of the rows.
    """
    rows = rows_of(groups)
    model.eval()
    logprobs_BT = FORWARDS["padded"](model, rows, ForwardSettings(temperature=temperature), PAD).logprobs_BT
    gaps: list[torch.Tensor] = []
    for row, logprobs_T in zip(rows, logprobs_BT, strict=True):
        size = len(row.tokens)
        gaps.append((logprobs_T[:size].cpu() - torch.tensor(row.old_logprobs))[torch.tensor(row.loss_mask)])
    return torch.cat(gaps)


@torch.no_grad()
def sampled_by_model(model: torch.nn.Module, groups: Sequence[Group]) -> list[Group]:
    """The same trees with the log-probs that the model gives their tokens, as if it had sampled them."""
    found: list[Group] = []
    for group in groups:
        rows = rows_of([group])
        logprobs_BT = FORWARDS["padded"](model, rows, ForwardSettings(), PAD).logprobs_BT
        by_uid: dict[str, tuple[float, ...]] = {}
        for one, logprobs_T in zip(group.trajectories, logprobs_BT, strict=True):
            at = len(group.prompt_tokens)
            for node in group.path(one.leaf):
                by_uid[node.uid] = tuple(float(log) for log in logprobs_T[at : at + len(node.tokens)])
                at += len(node.tokens) + len(node.observation_tokens)
        found.append(replace(group, turns=tuple(replace(one, logprobs=by_uid[one.uid]) for one in group.turns)))
    return found
