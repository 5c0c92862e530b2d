"""A key-value cache of slots under any Hugging Face causal LM's own forward.

A slot holds the keys and values of one token sequence; a token's column is its absolute position. So a slot keeps
its contents from turn to turn, a prefix of one slot is copied into another with one slice, and nothing moves when a
batch changes its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from forkgym.agents.slots import Stems

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GROWTH = 64  # columns; a cache grows by whole blocks, so that ever longer contexts seldom reallocate it


@dataclass(slots=True)
class Plan:
    """What one forward does to the cache; every layer follows the same one.

    Attributes:
        rows: Slots of the batch, int64 [rows], or the slice that they are, which needs no copy to be read.
        slots: The same as int64 [rows, 1].
        columns: Where each new token is written, int64 [rows, queries]; the rubbish column for padding.
        first: Columns before this one are not read.
        length: Nor is this column, or any after it.
        targets: Flat places of the new keys and values, by number of heads; filled by the first layer that has
            so many.
    """

    rows: torch.Tensor | slice
    slots: torch.Tensor
    columns: torch.Tensor
    first: int
    length: int
    targets: dict[int, torch.Tensor]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, kv heads, capacity + 1, head size]; the last column is for rubbish."""

    def __init__(self, owner: SlotCache) -> None:
        CacheLayerMixin.__init__(self)
        self.owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for states of this shape, [rows, kv heads, queries, head size], type and device."""
        # Zeros: a masked column is multiplied by 0, which only works for finite values.
        self.keys = self._zeros(key_states)
        self.values = self._zeros(value_states)
        self.is_initialized = True

    def _zeros(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = states.shape
        return states.new_zeros((self.owner.slots, heads, self.owner.capacity + 1, size))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states where the plan says and return what the plan's rows attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._stores()
        return self._write_and_read(keys, key_states), self._write_and_read(values, value_states)

    def _stores(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _write_and_read(self, store: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        plan = self.owner.plan
        assert plan is not None
        _, heads, width, size = store.shape
        targets = plan.targets.get(heads)
        if targets is None:
            places = plan.slots * heads + torch.arange(heads, device=store.device)
            targets = (places[:, :, None] * width + plan.columns[:, None, :]).flatten()
            plan.targets[heads] = targets
        store.view(-1, size).index_copy_(0, targets, states.reshape(-1, size))
        if isinstance(plan.rows, slice):
            return store[plan.rows, :, plan.first : plan.length]
        return store[:, :, plan.first : plan.length].index_select(0, plan.rows)

    def grow(self) -> None:
        """Move the contents into an allocation of the owner's present capacity."""
        if not self.is_initialized:
            return
        old_stores = self._stores()
        self.lazy_initialization(*old_stores)
        for old, new in zip(old_stores, self._stores(), strict=True):
            kept = old.shape[2] - 1  # not the rubbish
            new[:, :, :kept] = old[:, :, :kept]

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Copy the first ``length`` columns of each source slot, int64 [n], to its target; all are read first."""
        for store in self._stores() if self.is_initialized else ():
            store[targets, :, :length] = store[:, :, :length].index_select(0, sources)

    def beginnings(self, slots: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the first ``length`` keys and values of some slots, int64 [n]."""
        keys, values = (store[:, :, :length].index_select(0, slots.to(store.device)) for store in self._stores())
        return keys, values

    def reset(self) -> None:
        """Forget everything and free the memory."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns read by the forward under way, and the first of them."""
        del query_length
        assert self.owner.plan is not None
        plan = self.owner.plan
        return plan.length - plan.first, plan.first

    def get_seq_length(self) -> int:
        """The longest past of the forward under way; each row's own is in its position ids."""
        plan = self.owner.plan
        return 0 if plan is None else plan.length - plan.columns.shape[1]

    def get_max_length(self) -> int:
        """The present capacity in tokens."""
        return self.owner.capacity


class SlotCache(Cache):
    """Slots for token sequences; set `plan` before each forward.

    Args:
        num_layers: Of the model, 1 or more.
        slots: Sequences that it holds, 1 or more.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int, slots: int) -> None:
        self.slots = slots
        self.capacity = 0
        self.plan: Plan | None = None
        self._stems: tuple[tuple[tuple[int, ...], int], list[tuple[torch.Tensor, torch.Tensor]]] | None = None
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def reserve(self, length: int) -> None:
        """Make room for sequences of ``length`` tokens; contents are kept."""
        if length > self.capacity:
            # A quarter more than now at least: each growth copies everything.
            wanted = max(length, self.capacity + self.capacity // 4)
            self.capacity = -(-wanted // GROWTH) * GROWTH
            for layer in self.layers:
                layer.grow()

    def prepare(self, rows: torch.Tensor | slice, columns: torch.Tensor, first: int, length: int) -> None:
        """Say what the next forward does; see `Plan`."""
        if isinstance(rows, slice):
            slots = torch.arange(rows.start, rows.stop, device=columns.device)
        else:
            slots = rows
        self.plan = Plan(rows, slots[:, None], columns, first, length, {})

    def copy(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Copy the first ``length`` columns of each source slot, int64 [n], to its target; all are read first."""
        for layer in self.layers:
            layer.copy(sources, targets, length)

    def stems(self, stems: Stems) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of these stems for each layer, in one place; kept for the next forward with the same ones."""
        name = (stems.uids, stems.length)
        if self._stems is None or self._stems[0] != name:
            self._stems = None  # frees them first
            holders = torch.from_numpy(stems.holders)
            self._stems = (name, [layer.beginnings(holders, stems.length) for layer in self.layers])
        return self._stems[1]

    def forget(self) -> None:
        """Empty all slots and free their memory."""
        self._stems = None
        for layer in self.layers:
            layer.reset()


def layer_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return the attention window in tokens by layer type; None attends to everything.

    Raises:
        ValueError: A layer's type is neither full nor sliding-window attention.
    """
    kinds: list[str] | None = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"model of type {config.model_type!r}: it has layers of type {', '.join(unknown)}, "
            "expected full_attention and sliding_attention only"
        )
    return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}


def attention_masks(
    windows: dict[str, int | None], positions: torch.Tensor, columns: range, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks for queries at ``positions``, int64 [rows, queries], over these columns.

    Additive, since eager attention reads a boolean mask wrongly without a word, and SDPA would convert it anew in
    each layer.

    Returns:
        [rows, 1, queries, columns], or one by layer type for a model that mixes them.
    """
    columns_C = torch.arange(columns.start, columns.stop, device=positions.device)
    distance = (positions[:, :, None] - columns_C)[:, None]
    masks: dict[str, torch.Tensor] = {}
    for kind, window in windows.items():
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        masks[kind] = torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(
            hidden, torch.finfo(dtype).min
        )
    return masks if len(masks) > 1 else next(iter(masks.values()))
