"""What the forwards over trees have in common: the model's own layers, once over the row of unique tokens."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from forkgym.trainers.forward.layout import Forest, Layout, grow_forest, lay_out, without_tails
from forkgym.trainers.forward.measures import ForwardSettings, Measures, Row, check_rows
from forkgym.trainers.forward.models import ModelParts, is_exact
from forkgym.trainers.forward.plan import PLAN, Plan
from forkgym.trainers.forward.switching import attention
from forkgym.trainers.forward.vocabulary import measure_states

# The name of an attention function and what makes its plan.
Way = tuple[str, Callable[[Forest, torch.device], Plan]]

# Kinds of attention layers, in a config's `layer_types`, whose reach is the path or its last tokens.
KNOWN_LAYERS = {"full_attention", "sliding_attention"}

# For each model the attentions whose states on a tree were found to be those of the padded batch.
_checked: weakref.WeakKeyDictionary[torch.nn.Module, set[str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """A row for the check of a model; see `Row`."""

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    starts: tuple[int, ...]


def measure_unique(parts: ModelParts, rows: Sequence[Row], settings: ForwardSettings, way: Way) -> Measures:
    """Measure rows by their unique tokens, after a check of the model the first time.

    Raises:
        ValueError: A row contradicts itself, or the model's attention is not what this forward computes.
    """
    check_rows(rows)
    done = _checked.setdefault(parts.whole, set())
    if way[0] not in done:
        check_attention(parts, way)
        done.add(way[0])
    forest = without_tails(grow_forest(rows), rows)
    layout = lay_out(forest, rows, parts.projection.weight_VH.device)
    predicting_NH = unique_states(parts, forest, layout, way).index_select(0, layout.predictors_N)
    return measure_states(predicting_NH, layout.targets_N, layout.index_BT, parts.projection, settings)


def unique_states(parts: ModelParts, forest: Forest, layout: Layout, way: Way) -> torch.Tensor:
    """Return the hidden states of the unique tokens, [U, hidden size].

    Raises:
        ValueError: Some layers did not ask for this attention.
    """
    config: Any = parts.decoder.config
    name, make_plan = way
    plan = make_plan(forest, layout.tokens_U.device)
    with attention(parts.decoder, name), plan.saving(layout.positions_U):
        output = parts.decoder(
            input_ids=layout.tokens_U[None], position_ids=layout.positions_U[None], use_cache=False, **{PLAN: plan}
        )
    if plan.calls != config.num_hidden_layers:
        raise ValueError(
            f"{plan.calls} of the {config.num_hidden_layers} layers of {type(parts.decoder).__name__} take their "
            "attention from transformers' AttentionInterface, expected all; use the padded forward"
        )
    hidden_1UH: torch.Tensor = output.last_hidden_state
    return hidden_1UH[0]


def check_attention(parts: ModelParts, way: Way) -> None:
    """Compare states on a small tree with those of its rows.

    Raises:
        ValueError: They differ, or the model has layers of another kind.
    """
    config: Any = parts.decoder.config
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        raise ValueError(
            f"{type(parts.decoder).__name__} has layers of {', '.join(sorted(unknown))}, expected "
            f"{' or '.join(sorted(KNOWN_LAYERS))}; use the padded forward"
        )
    weight_VH = parts.projection.weight_VH
    rows = [
        ProbeRow(tuple(token % len(weight_VH) for token in (1, 2, 3, *turn)), (False,) * 3 + (True,) * 2, (3,))
        for turn in ((4, 5), (6, 7))
    ]
    forest = grow_forest(rows)
    with torch.no_grad():
        tree_UH = unique_states(parts, forest, lay_out(forest, rows, weight_VH.device), way).float()
        tokens_BT = torch.tensor([row.tokens for row in rows], device=weight_VH.device)
        rows_BTH = parts.decoder(input_ids=tokens_BT, use_cache=False).last_hidden_state.float()
    expected_UH = torch.cat([rows_BTH[0], rows_BTH[1, 3:]])
    largest, gap = expected_UH.abs().max().item(), (tree_UH - expected_UH).abs().max().item()
    if not gap <= (1e-3 if is_exact(weight_VH) else 0.1) * max(largest, 1.0):
        raise ValueError(
            f"the states of {type(parts.decoder).__name__} on a small tree differ by {gap:.2g} from those on its rows; "
            "use the padded forward"
        )
