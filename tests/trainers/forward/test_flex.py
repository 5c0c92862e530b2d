"""FlexAttention over trees: on a CPU its forward only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from forkgym.trainers.forward.flex import FlexPlan
from forkgym.trainers.forward.layout import grow_forest
from tests.trainers.forward.small_rows import largest_gap, measure, mixed, paper_rows, qwen3, random_rows
from tests.trainers.forward.test_pieces import dense_mask


@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_is_the_path(window: int | None) -> None:
    forest = grow_forest(random_rows(0, depth=3))
    plan = FlexPlan(forest, torch.device("cpu"))
    mask = plan.mask(window).mask_mod
    places = torch.arange(forest.num_tokens)
    none = torch.tensor(0)
    assert torch.equal(mask(none, none, places[:, None], places[None]), dense_mask(forest, window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("make", [qwen3, mixed])
def test_the_forward_is_that_of_the_padded_batch(make: Callable[[int], PreTrainedModel]) -> None:
    model, rows = make(0), random_rows(0)
    with torch.no_grad():
        padded, flex = (measure(name, model, rows).logprobs_BT for name in ("padded", "flex"))
    assert largest_gap([flex], [padded]) < 1e-5
    assert model.config._attn_implementation == "sdpa"


def test_training_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="no backward pass on a CPU; use the tree forward"):
        measure("flex", qwen3(), paper_rows())
