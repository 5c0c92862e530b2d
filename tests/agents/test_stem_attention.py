"""Attention in two parts, against the softmax over everything."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forkgym.agents.slots import Stems
from forkgym.agents.stem_attention import STEMS, StemPlan, plan_stems, stem_attention, weigh

LAYER = cast("Any", SimpleNamespace(layer_idx=1))


def test_weigh_by_hand() -> None:
    # Scores log 1 and log 3, so weights 1/4 and 3/4 of the values 8 and 4; exp(log-normaliser) = 4.
    query = torch.tensor([[[1.0]]])
    key = torch.tensor([[[0.0], [math.log(3)]]])
    value = torch.tensor([[[8.0], [4.0]]])
    output, logs = weigh(query, key, value)
    assert output.item() == pytest.approx(0.25 * 8 + 0.75 * 4)
    assert logs.item() == pytest.approx(math.log(4))
    hidden = torch.tensor([[[0.0, torch.finfo(torch.float32).min]]])
    output, logs = weigh(query, key, value, hidden)
    assert (output.item(), logs.item()) == (8, 0)


def test_rows_are_sorted_by_stem() -> None:
    stems = Stems((3, 9), 2, np.array([0, 1]), np.array([0, 1, 0]))
    plan = plan_stems(stems, [(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4))])
    # The first stem has rows 0 and 2, the second row 1 and a filling.
    assert plan.rows.tolist() == [0, 2, 1, 0]
    assert plan.places.tolist() == [0, 2, 1]


@pytest.mark.parametrize("scaling", [None, 0.5])
def test_two_parts_equal_the_whole(scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    stem_of_row, length, columns = np.array([1, 0, 1, 1, 0]), 7, 4
    stem_keys, stem_values = draw(2, 2, length, 8), draw(2, 2, length, 8)
    query, keys, values = draw(5, 6, 1, 8), draw(5, 2, columns, 8), draw(5, 2, columns, 8)
    mask = torch.zeros(5, 1, 1, columns)
    mask[2, ..., 1:] = mask[4, ..., 3:] = torch.finfo(torch.float32).min
    stems = Stems((0, 1), length, np.array([0, 1]), stem_of_row)
    plan: StemPlan = plan_stems(stems, [(stem_keys * 0, stem_values), (stem_keys, stem_values)])
    output, weights = stem_attention(LAYER, query, keys, values, mask, scaling=scaling, **{STEMS: plan})
    expected = scaled_dot_product_attention(
        query,
        torch.cat([stem_keys[stem_of_row], keys], 2),
        torch.cat([stem_values[stem_of_row], values], 2),
        torch.cat([torch.zeros(5, 1, 1, length), mask], 3),
        scale=scaling,
        enable_gqa=True,
    )
    assert weights is None
    torch.testing.assert_close(output, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
