"""From trees to padded batches: one row a trajectory, one micro-batch at a time."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from forkgym.trainers.mismatch import ROUNDING
from forkgym.trainers.types import Group, Sample, Trajectory


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples padded together on the right.

    Attributes:
        tokens_BT: Token ids; what the padding holds does not matter.
        loss_mask_BT: True on tokens that the policy sampled.
        advantages_BT: Advantage of each token.
        old_logprobs_BT: Log-prob of each token when it was sampled, nats.
    """

    tokens_BT: torch.Tensor
    loss_mask_BT: torch.Tensor
    advantages_BT: torch.Tensor
    old_logprobs_BT: torch.Tensor


def make_sample(group: Group, trajectory: Trajectory, advantages: Mapping[str, float]) -> Sample:
    """Lay a trajectory out in a row; every token of a turn gets the turn's advantage."""
    tokens = list(group.prompt_tokens)
    mask = [False] * len(tokens)
    values = [0.0] * len(tokens)
    logprobs = [0.0] * len(tokens)
    for turn in group.path(trajectory.leaf):
        seen = turn.observation_tokens if turn.uid != trajectory.leaf else ()
        tokens += [*turn.tokens, *seen]
        mask += [True] * len(turn.tokens) + [False] * len(seen)
        values += [advantages[turn.uid]] * len(turn.tokens) + [0.0] * len(seen)
        logprobs += [*turn.logprobs, *([0.0] * len(seen))]
    return Sample(tuple(tokens), tuple(mask), tuple(values), tuple(logprobs))


def merge_equal(samples: Sequence[Sample]) -> list[Sample]:
    """Add up the advantages of samples that are the same to the token.

    A loss that is linear in the log-prob is the same, and each sequence is computed once: a policy that has become
    certain writes the same trajectory many times. Of the log-probs at sampling the first are kept; where an engine gave
    others, by more than rounding, the importance weights differ and the samples stay apart.
    """
    merged: dict[tuple[tuple[int, ...], tuple[bool, ...]], list[Sample]] = {}
    for sample in samples:
        # The mask is part of the key: what the policy wrote here, a tool may have written there.
        alike = merged.setdefault((sample.tokens, sample.loss_mask), [])
        for place, known in enumerate(alike):
            if largest_gap(known, sample) <= ROUNDING:
                summed = tuple(map(operator.add, known.advantages, sample.advantages))
                alike[place] = replace(known, advantages=summed)
                break
        else:
            alike.append(sample)
    return [sample for alike in merged.values() for sample in alike]


def largest_gap(one: Sample, other: Sample) -> float:
    """Return the largest difference between two samples' log-probs at sampling, nats."""
    return max(abs(a - b) for a, b in zip(one.old_logprobs, other.old_logprobs, strict=True))


def micro_batches(samples: Sequence[Sample], most_tokens: int) -> list[list[Sample]]:
    """Put samples of similar length together, so that none has more than ``most_tokens`` with padding.

    A sample that is longer by itself is a micro-batch of its own.
    """
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda one: len(one.tokens), reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].tokens) <= most_tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def pad(samples: Sequence[Sample], pad_token: int, device: torch.device) -> Batch:
    """Pad samples to the longest of them."""
    length = max(len(sample.tokens) for sample in samples)
    shape = (len(samples), length)
    batch = Batch(
        tokens_BT=torch.full(shape, pad_token, dtype=torch.long),
        loss_mask_BT=torch.zeros(shape, dtype=torch.bool),
        advantages_BT=torch.zeros(shape),
        old_logprobs_BT=torch.zeros(shape),
    )
    for row, sample in enumerate(samples):
        size = len(sample.tokens)
        batch.tokens_BT[row, :size] = torch.tensor(sample.tokens)
        batch.loss_mask_BT[row, :size] = torch.tensor(sample.loss_mask)
        batch.advantages_BT[row, :size] = torch.tensor(sample.advantages)
        batch.old_logprobs_BT[row, :size] = torch.tensor(sample.old_logprobs)
    return Batch(
        *(
            tensor.to(device)
            for tensor in (
                batch.tokens_BT,
                batch.loss_mask_BT,
                batch.advantages_BT,
                batch.old_logprobs_BT,
            )
        )
    )
