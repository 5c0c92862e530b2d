"""What autograd saves of a row of unique tokens: tables of the position once a position instead of once a token.

Rows of a padded batch share one table of rotary angles; in a row of unique tokens each has its own copy of an angle.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

# A view: where it begins, and its geometry.
View = tuple[int, torch.Size, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Table:
    """A constant that depends on a token's position alone.

    Attributes:
        by_position: Its values, one a position.
        axis: The axis of positions, where the constant itself has its tokens.
        positions_U: The position of each token.
    """

    by_position: torch.Tensor
    axis: int
    positions_U: torch.Tensor

    def by_token(self) -> torch.Tensor:
        """The constant itself."""
        return self.by_position.index_select(self.axis, self.positions_U)


@contextmanager
def once_a_position(positions_U: torch.Tensor) -> Generator[None]:
    """Save constants that depend on the position alone once a position, for the backward pass of what runs within.

    That they do is read off their values, so that nothing need be known of a model, and gradients are the same bits.
    What gradient checkpointing keeps is its own.

    Args:
        positions_U: Position of each token, of a forest: each up to the last occurs.
    """
    num_tokens, num_positions = len(positions_U), int(positions_U.max()) + 1
    if num_positions == num_tokens or not torch.is_grad_enabled():
        yield
        return
    firsts_P = torch.zeros(num_positions, dtype=torch.long, device=positions_U.device)
    firsts_P[positions_U] = torch.arange(num_tokens, device=positions_U.device)
    # Layers see the same constants. To hold a seen one keeps its place in memory from being another's.
    seen: dict[View, tuple[torch.Tensor, Table | None]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor | Table:
        if tensor.requires_grad or num_tokens not in tensor.shape:
            return tensor.detach()  # itself would be a cycle where it is the output of what saves it
        view = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if view not in seen:
            axis = tensor.shape.index(num_tokens)
            table = Table(tensor.index_select(axis, firsts_P), axis, positions_U)
            seen[view] = (tensor, table if torch.equal(table.by_token(), tensor) else None)
        return seen[view][1] or tensor.detach()

    def unpack(saved: torch.Tensor | Table) -> torch.Tensor:
        return saved.by_token() if isinstance(saved, Table) else saved

    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        seen.clear()
