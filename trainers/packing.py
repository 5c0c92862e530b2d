"""From trees to rows of tokens, and from rows to tensors that are padded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from forkgym.trainers.algorithms.segments import Begins
from forkgym.trainers.types import Group, Row, Sample, Trajectory


@dataclass(frozen=True, slots=True)
class Batch:
    """What the loss needs of samples, padded together on the right; what the padding holds does not matter.

    Attributes:
        mask_BT: True on tokens that the policy sampled.
        segments_BT: Number of each token's segment in its row, -1 where nothing was sampled.
        advantages_BT: Advantage of each token.
        weights_BT: Weight of each token's term.
        old_logprobs_BT: Log-prob of each token when it was sampled, nats.
        targets_BT: What a value head should say before each token; empty where there is none.
    """

    mask_BT: torch.Tensor
    segments_BT: torch.Tensor
    advantages_BT: torch.Tensor
    weights_BT: torch.Tensor
    old_logprobs_BT: torch.Tensor
    targets_BT: torch.Tensor


def make_row(group: Group, trajectory: Trajectory, begins: Mapping[str, Begins]) -> Row:
    """Lay a trajectory out in a row.

    Args:
        group: Its tree.
        trajectory: One of the tree's.
        begins: Where segments begin in each turn, see `segment_begins`. The first sampled token begins one anyway.
    """
    tokens = list(group.prompt_tokens)
    mask = [False] * len(tokens)
    segments = [-1] * len(tokens)
    logprobs = [0.0] * len(tokens)
    starts: list[int] = []
    last = -1
    for turn in group.path(trajectory.leaf):
        seen = turn.observation_tokens if turn.uid != trajectory.leaf else ()
        size = len(turn.tokens)
        if size or seen:
            starts.append(len(tokens))
        numbers = begins[turn.uid].cumsum() + last
        if last < 0 and size and numbers[0] < 0:
            numbers = numbers + 1
        last = int(numbers[-1]) if size else last
        nothing = len(seen)
        tokens += [*turn.tokens, *seen]
        mask += [True] * size + [False] * nothing
        segments += [*numbers.tolist(), *([-1] * nothing)]
        logprobs += [*turn.logprobs, *([0.0] * nothing)]
    return Row(tuple(tokens), tuple(mask), tuple(starts), tuple(segments), tuple(logprobs))


def pad(samples: Sequence[Sample], device: torch.device) -> Batch:
    """Pad samples to the longest of them."""
    length = max(len(sample.row.tokens) for sample in samples)
    shape = (len(samples), length)
    with_targets = any(sample.targets for sample in samples)
    batch = Batch(
        mask_BT=torch.zeros(shape, dtype=torch.bool),
        segments_BT=torch.full(shape, -1, dtype=torch.long),
        advantages_BT=torch.zeros(shape),
        weights_BT=torch.zeros(shape),
        old_logprobs_BT=torch.zeros(shape),
        targets_BT=torch.zeros(shape if with_targets else (0, 0)),
    )
    for place, sample in enumerate(samples):
        row, size = sample.row, len(sample.row.tokens)
        batch.mask_BT[place, :size] = torch.tensor(row.loss_mask)
        batch.segments_BT[place, :size] = torch.tensor(row.segments)
        batch.advantages_BT[place, :size] = torch.tensor(sample.advantages)
        batch.weights_BT[place] = sample.weight
        batch.old_logprobs_BT[place, :size] = torch.tensor(row.old_logprobs)
        if with_targets:
            batch.targets_BT[place, :size] = torch.tensor(sample.targets)
    return Batch(*(getattr(batch, one.name).to(device) for one in fields(batch)))
