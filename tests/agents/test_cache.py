"""The cache of slots, its masks, and the models that it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel, Qwen3Config

from forkgym.agents.cache import GROWTH, SlotCache, attention_masks, layer_windows
from forkgym.agents.slot_model import SlotModel
from forkgym.agents.slots import Stems
from tests.agents.tiny import FAMILIES, make_model

HIDDEN = torch.finfo(torch.float32).min


def states(*values: float) -> torch.Tensor:
    """Keys of one row, one head of size 1, at as many positions as there are values."""
    return torch.tensor(values, dtype=torch.float32)[None, None, :, None]


def test_columns_are_positions() -> None:
    cache = SlotCache(num_layers=1, slots=3)
    cache.reserve(2)
    assert cache.capacity == GROWTH
    # Rows 0 and 2; row 0 gets positions 0 and 1, row 2 only position 0 and a padding.
    rubbish = cache.capacity
    cache.prepare(torch.tensor([0, 2]), torch.tensor([[0, 1], [0, rubbish]]), 0, 2)
    new = torch.cat([states(1, 2), states(3, 4)])
    keys, values = cache.update(new, -new, 0)
    assert keys.squeeze().tolist() == [[1, 2], [3, 0]]
    assert values.squeeze().tolist() == [[-1, -2], [-3, 0]]
    cache.prepare(slice(0, 3), torch.tensor([[2], [rubbish], [1]]), 0, 3)
    keys, _ = cache.update(torch.cat([states(5), states(6), states(7)]), torch.zeros(3, 1, 1, 1), 0)
    assert keys.squeeze().tolist() == [[1, 2, 5], [0, 0, 0], [3, 7, 0]]


def test_columns_before_the_first_are_not_read() -> None:
    cache = SlotCache(num_layers=1, slots=3)
    cache.reserve(3)
    cache.prepare(slice(0, 3), torch.tensor([[0, 1]] * 3), 0, 2)
    new = torch.cat([states(1, 2), states(3, 4), states(5, 6)])
    cache.update(new, -new, 0)
    for rows in (slice(0, 3), torch.tensor([0, 1, 2])):
        cache.prepare(rows, torch.tensor([[2]] * 3), 1, 3)
        keys, values = cache.update(torch.cat([states(7), states(8), states(9)]), torch.zeros(3, 1, 1, 1), 0)
        assert keys.squeeze().tolist() == [[2, 7], [4, 8], [6, 9]]
        assert values.squeeze().tolist() == [[-2, 0], [-4, 0], [-6, 0]]
    # Slots 2 and 0 hold two stems; the copies stay while the same stems are asked for.
    stems = Stems((4, 7), 1, np.array([2, 0]), np.array([1, 1, 0]))
    ((keys, values),) = cache.stems(stems)
    assert (keys.squeeze().tolist(), values.squeeze().tolist()) == ([5, 1], [-5, -1])
    assert cache.stems(stems)[0][0] is keys
    ((keys, _),) = cache.stems(replace(stems, uids=(4, 8), holders=np.array([2, 1])))
    assert keys.squeeze().tolist() == [5, 3]


def test_copies_read_before_they_write() -> None:
    cache = SlotCache(num_layers=2, slots=3)
    cache.reserve(2)
    cache.prepare(slice(0, 3), torch.tensor([[0, 1]] * 3), 0, 2)
    new = torch.cat([states(1, 2), states(3, 4), states(5, 6)])
    for index in range(2):
        cache.update(new, new, index)
    cache.copy(torch.tensor([0, 1]), torch.tensor([1, 2]), 1)
    for layer in cache.layers:
        assert layer.keys is not None
        assert layer.keys[:, 0, :2, 0].tolist() == [[1, 2], [1, 4], [3, 6]]


def test_growth_keeps_the_contents_and_forgets_the_rubbish() -> None:
    cache = SlotCache(num_layers=1, slots=1)
    cache.reserve(1)
    cache.prepare(slice(0, 1), torch.tensor([[0, 5, cache.capacity]]), 0, 6)
    cache.update(states(1, 2, 3), states(1, 2, 3), 0)
    cache.reserve(GROWTH)
    assert cache.capacity == GROWTH
    cache.reserve(GROWTH + 1)
    assert cache.capacity == 2 * GROWTH
    layer = cache.layers[0]
    assert layer.keys is not None
    assert layer.keys.shape == (1, 1, 2 * GROWTH + 1, 1)
    assert layer.keys.flatten().nonzero().flatten().tolist() == [0, 5]


def test_masks_by_hand() -> None:
    positions = torch.tensor([[1, 2], [0, 0]])
    last = attention_masks({"full_attention": None}, positions, range(1, 3), torch.float32)
    assert isinstance(last, torch.Tensor)
    assert (last == 0)[:, 0].tolist() == [[[True, False], [True, True]], [[False, False]] * 2]
    mask = attention_masks({"full_attention": None}, positions, range(3), torch.float32)
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (2, 1, 2, 3)
    assert (mask == 0)[:, 0].tolist() == [[[True, True, False], [True, True, True]], [[True, False, False]] * 2]
    assert mask.min().item() == HIDDEN
    masks = attention_masks({"full_attention": None, "sliding_attention": 2}, positions, range(3), torch.float64)
    assert isinstance(masks, dict)
    assert (masks["full_attention"] == 0).equal(mask == 0)
    # A window of 2 sees the position itself and the one before.
    assert (masks["sliding_attention"] == 0)[0, 0].tolist() == [[True, True, False], [False, True, True]]
    assert masks["sliding_attention"].dtype == torch.float64


def test_layer_windows() -> None:
    assert layer_windows(Qwen3Config(num_hidden_layers=2)) == {"full_attention": None}
    assert layer_windows(transformers.MistralConfig(sliding_window=9)) == {"sliding_attention": 9}
    assert layer_windows(transformers.LlamaConfig()) == {"full_attention": None}
    mixed = Qwen3Config(num_hidden_layers=3, use_sliding_window=True, sliding_window=4, max_window_layers=2)
    assert layer_windows(mixed) == {"full_attention": None, "sliding_attention": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_accepted(family: str) -> None:
    assert SlotModel(make_model(family), slots=2).vocabulary_size == 262


def test_half_precision_is_accepted() -> None:
    model = SlotModel(make_model(dtype=torch.bfloat16), slots=2)
    assert model.vocabulary_size == 262
    assert not model.takes_stems


def test_stems_are_for_models_whose_layers_see_everything_by_the_usual_attention() -> None:
    assert all(SlotModel(make_model(family), slots=2).takes_stems for family in ("qwen3", "qwen2", "llama", "gpt2"))
    for windows in ("mistral-window", "qwen3-mixed-windows"):
        assert not SlotModel(make_model(windows), slots=2).takes_stems
    assert not SlotModel(make_model(attn_implementation="eager"), slots=2).takes_stems


def test_a_model_that_keeps_arguments_from_its_layers_takes_no_stems() -> None:
    class Closed(transformers.Qwen3ForCausalLM):
        """Hands on what it knows."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{name: kwargs[name] for name in kwargs if not name.startswith("forkgym")})

    model: PreTrainedModel = make_model()
    model.__class__ = Closed
    before = model.config._attn_implementation
    assert not SlotModel(model, slots=2).takes_stems
    assert model.config._attn_implementation == before


def test_a_layer_type_that_needs_another_cache_is_refused_by_name() -> None:
    config = Qwen3Config(num_hidden_layers=2, layer_types=["full_attention", "chunked_attention"])
    with pytest.raises(ValueError, match=r"'qwen3'.*chunked_attention.*expected full_attention and sliding"):
        layer_windows(config)


def test_a_model_that_takes_no_such_mask_is_refused() -> None:
    config = transformers.FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True
    )
    with pytest.raises(ValueError, match="FalconForCausalLM: it can't run on a cache of slots"):
        SlotModel(transformers.FalconForCausalLM(config), slots=2)


def test_a_model_that_computes_something_else_is_refused() -> None:
    class Forgetful(transformers.Qwen3ForCausalLM):
        """Ignores position ids, as some models do."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("position_ids", None)
            return super().forward(*args, **kwargs)

    model: PreTrainedModel = make_model()
    model.__class__ = Forgetful
    with pytest.raises(ValueError, match=r"Forgetful: log-probs with a cache of slots differ by \d"):
        SlotModel(model, slots=2)


def test_rows_that_are_no_stretch_equal_rows_that_are() -> None:
    model = SlotModel(make_model(dtype=torch.float64), slots=4)
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    with torch.inference_mode():
        near = model.run(np.array([1, 2]), tokens, np.array([0, 0]), np.array([3, 3]))
        far = model.run(np.array([0, 3]), tokens, np.array([0, 0]), np.array([3, 3]))
    torch.testing.assert_close(near, far)
