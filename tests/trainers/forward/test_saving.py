"""What the backward pass of a forward over trees keeps, and the peak of memory that this makes."""

from __future__ import annotations

import weakref
from itertools import accumulate
from typing import Any, cast

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from forkgym.trainers.forward.forwards import micro_batches
from forkgym.trainers.forward.measures import ForwardSettings
from forkgym.trainers.forward.saving import once_a_position
from tests.trainers.forward.small_rows import VOCABULARY, Tokens, measure, qwen3, row

POSITIONS = torch.tensor([0, 1, 2, 1, 2])  # a prompt of one token, and two turns of two below it


def test_tables_of_the_position_are_not_held_by_the_graph() -> None:
    table_UD = POSITIONS[:, None].float() + torch.tensor([0.5, 10.0])
    held = weakref.ref(table_UD.untyped_storage())
    states_UD = torch.ones(5, 2, requires_grad=True)
    with once_a_position(POSITIONS):
        total = (states_UD * table_UD[None]).sum() + (states_UD * table_UD[None]).sum()
    del table_UD
    assert held() is None
    total.backward()
    assert states_UD.grad is not None
    expected = [[1.0, 20.0], [3.0, 22.0], [5.0, 24.0], [3.0, 22.0], [5.0, 24.0]]  # twice the table
    assert states_UD.grad.tolist() == expected


def test_other_constants_are_kept_as_they_are() -> None:
    # Equal but for one of the two tokens at position 2.
    mask_U = torch.tensor([1.0, 2.0, 3.0, 2.0, 4.0])
    states_U = torch.ones(5, requires_grad=True)
    with once_a_position(POSITIONS):
        total = (states_U * mask_U).exp().sum()
    total.backward()
    assert states_U.grad is not None
    torch.testing.assert_close(states_U.grad, mask_U * mask_U.exp())


def leaves(prompt: int, turn: int, count: int) -> list[Tokens]:
    """Rows that share a prompt of so many tokens, 0 for rows that share nothing, with a turn each."""
    return [row([1] * prompt or [leaf], ([2 + leaf] * turn, [])) for leaf in range(count)]


def peak_bytes(model: PreTrainedModel, rows: list[Tokens], name: str) -> int:
    """Most bytes of tensors at a time in forward and backward of micro-batches of 4 rows' tokens."""
    parts = micro_batches(rows, 4 * len(rows[0].tokens), name)
    # All logits of so small a vocabulary would be kept, and in a part of a tree more tokens are sampled ones.
    settings = ForwardSettings(chunk_logits=16 * VOCABULARY)

    def step() -> None:
        model.zero_grad()
        for part in parts:
            measure(name, model, [rows[number] for number in part], settings).logprobs_BT.mean().backward()

    step()  # the check of the model is over, and there are gradients
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events: list[Any] = cast("Any", profiler).profiler.kineto_results.events()
    changes: list[tuple[int, int]] = [(one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes)))


@pytest.mark.parametrize("rows", [leaves(0, 300, 8), leaves(200, 100, 20), leaves(100, 200, 4)])
def test_the_peak_is_at_most_that_of_padded_rows_of_the_same_tokens(rows: list[Tokens]) -> None:
    model = qwen3()
    assert peak_bytes(model, rows, "tree") < peak_bytes(model, rows, "padded")
