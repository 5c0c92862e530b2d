"""The forward over a padded batch: every row computed whole. The oracle of the others, and for any causal model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forkgym.trainers.forward.measures import ForwardSettings, Measures, Row, check_rows
from forkgym.trainers.forward.models import take_apart
from forkgym.trainers.forward.vocabulary import measure_states


def padded_forward(model: torch.nn.Module, rows: Sequence[Row], settings: ForwardSettings, pad_token: int) -> Measures:
    """Measure rows as one batch, padded on the right: under a causal mask no token sees the padding.

    See `Forward` for arguments and errors.
    """
    check_rows(rows)
    parts = take_apart(model)
    device = parts.projection.weight_VH.device
    longest = max(len(row.tokens) for row in rows)
    tokens_BT = torch.tensor([[*row.tokens, *[pad_token] * (longest - len(row.tokens))] for row in rows]).to(device)
    mask_BT = torch.tensor([[*row.loss_mask, *[False] * (longest - len(row.tokens))] for row in rows]).to(device)
    sampled_N = mask_BT.flatten().nonzero().squeeze(1)
    index_BT = torch.full_like(tokens_BT, len(sampled_N))
    index_BT[mask_BT] = torch.arange(len(sampled_N), device=device)
    # The state one place before a token predicts it; the first token of a row is never a sampled one.
    hidden = parts.decoder(input_ids=tokens_BT, use_cache=False)
    predicting_NH = hidden.last_hidden_state.flatten(0, 1).index_select(0, sampled_N - 1)
    del hidden  # frees a row of states a token before the logits come
    return measure_states(predicting_NH, tokens_BT[mask_BT], index_BT, parts.projection, settings)
