"""The forward over trees: each unique token computed once, on a CPU or any other device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forkgym.trainers.forward.measures import ForwardSettings, Measures, Row
from forkgym.trainers.forward.models import take_apart
from forkgym.trainers.forward.tree_attention import TREE, TreePlan
from forkgym.trainers.forward.unique_row import measure_unique


def tree_forward(model: torch.nn.Module, rows: Sequence[Row], settings: ForwardSettings, pad_token: int) -> Measures:
    """Measure rows as one row of their unique tokens, in which each attends to its own path.

    Tokens whose states no log-prob needs are left out: the last sampled one of a row, and a reply after it. Tables of
    the position are saved once a position (`saving`), so that in the layers a token takes no more memory than one of a
    padded batch.

    The model is not changed: its own layers run once over the unique tokens, and only the attention function that they
    call is another one, which takes the softmax of a token over its path from several dense products (`pieces`). The
    gradient is that of the padded batch, up to rounding.

    See `Forward` for arguments and errors; nothing is padded before the end.
    """
    del pad_token
    return measure_unique(take_apart(model), rows, settings, (TREE, TreePlan))
