"""A causal LM that runs on the slots of a cache: numpy arrays of tokens in, logits out."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from forkgym.agents.attention import attending_by
from forkgym.agents.cache import SlotCache, attention_masks, layer_windows
from forkgym.agents.slots import Stems
from forkgym.agents.stem_attention import STEMS, plan_stems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ints = NDArray[np.int64]

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # nats
HALF_TOLERANCE = 0.5  # nats; half precision differs by tenths from batch to batch


class SlotModel:
    """Runs any Hugging Face causal LM over sequences whose keys and values stay in slots.

    Args:
        model: The model; it is not changed.
        slots: Sequences that the cache holds.

    Raises:
        ValueError: The model's layers are of a type that needs another cache, or it computes something else with
            this cache than without.
    """

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        self.model = model
        config = model.config.get_text_config()
        self._config: Any = config
        self._windows = layer_windows(config)
        self._num_layers = int(config.num_hidden_layers)
        embeddings: Any = model.get_input_embeddings()
        self.num_embeddings = int(embeddings.weight.shape[0])
        self._cache = SlotCache(self._num_layers, 3)
        logprobs = self._verify()
        self.vocabulary_size = int(logprobs.shape[-1])
        self.takes_stems = self._verify_stems(logprobs)
        self._cache = SlotCache(self._num_layers, slots)

    def run(self, rows: Ints, tokens: Ints, starts: Ints, counts: Ints, *, stems: Stems | None = None) -> torch.Tensor:
        """Compute new tokens of some slots on top of what the cache has, and cache them.

        Args:
            rows: Slots, ascending, [rows].
            tokens: New tokens of each, [rows, queries]; whatever stands after a row's ``counts`` is padding.
            starts: Position of the first new token of each, [rows].
            counts: New tokens of each, 0 to queries, [rows].
            stems: What the rows begin with, for one query a row and where the model ``takes_stems``: the same numbers
                in less time.

        Returns:
            Logits after the last query, [rows, vocabulary]; they mean something where ``counts`` is all queries.
        """
        offsets = np.arange(tokens.shape[1], dtype=np.int64)
        real = offsets < counts[:, None]
        # Padding looks at column 0 alone, which is always finite, and is written to the rubbish column.
        positions = np.where(real, starts[:, None] + offsets, 0)
        length = int(positions.max()) + 1
        self._cache.reserve(length)
        columns = np.where(real, positions, self._cache.capacity)
        device = self.model.device
        row_indices: torch.Tensor | slice = slice(int(rows[0]), int(rows[-1]) + 1)
        if int(rows[-1]) - int(rows[0]) + 1 != len(rows):
            row_indices = torch.from_numpy(rows).to(device)
        first = 0 if stems is None else stems.length
        self._cache.prepare(row_indices, torch.from_numpy(columns).to(device), first, length)
        position_ids = torch.from_numpy(positions).to(device)
        arguments = {} if stems is None else {STEMS: plan_stems(stems, self._cache.stems(stems))}
        with contextlib.nullcontext() if stems is None else attending_by(STEMS, self._config):
            output: Any = self.model(
                input_ids=torch.from_numpy(tokens).to(device),
                attention_mask=attention_masks(self._windows, position_ids, range(first, length), self.model.dtype),
                position_ids=position_ids,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **arguments,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def copy(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first ``length`` columns of each source slot to its target; all are read first."""
        device = self.model.device
        self._cache.copy(torch.tensor(sources, device=device), torch.tensor(targets, device=device), length)

    def forget(self) -> None:
        """Empty the cache and free its memory."""
        self._cache.forget()

    def _verify(self) -> torch.Tensor:
        """Compare a few log-probs with and without the cache; returns those with it, see `_in_pieces`.

        A model that ignores position ids or the mask (ALiBi from a padding mask, a state of its own) would otherwise
        sample from a distribution that nobody trains, in silence.
        """
        name = type(self.model).__name__
        with torch.inference_mode(), evaluating(list(self.model.modules())):
            ids = torch.from_numpy(self._probe_ids()).to(self.model.device)
            whole: Any = self.model(input_ids=ids, use_cache=False)
            expected = torch.log_softmax(whole.logits[:, -1].double(), dim=-1)
            try:
                found = self._in_pieces()
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"model {name}: it can't run on a cache of slots, expected one that takes position_ids and a 4-D "
                    f"attention_mask, with sdpa or eager attention ({error})"
                ) from error
        difference = (expected - found).abs().max().item()
        if not difference <= TOLERANCE.get(self.model.dtype, HALF_TOLERANCE):
            raise ValueError(
                f"model {name}: log-probs with a cache of slots differ by {difference:.3g} nats from those without, "
                "expected one that follows position_ids and a 4-D attention_mask"
            )
        return found

    def _verify_stems(self, expected: torch.Tensor) -> bool:
        """Whether attention can be had in two parts: log-probs must come out as by the model's own, ``expected``."""
        if self.model.dtype not in TOLERANCE:  # in half precision the parts would be rounded apart from the whole
            return False
        if self._config._attn_implementation != "sdpa" or set(self._windows.values()) != {None}:
            return False
        stems = Stems((0,), 3, np.array([2]), np.array([0, 0]))
        try:
            with torch.inference_mode(), evaluating(list(self.model.modules())):
                found = self._in_pieces(stems)
        except (AttributeError, KeyError, RuntimeError, TypeError):
            return False  # a model that does not hand arguments on to its layers
        return (expected - found).abs().max().item() <= TOLERANCE[self.model.dtype]

    def _probe_ids(self) -> Ints:
        """Two sequences of 7 that share 3."""
        ids = np.arange(14, dtype=np.int64).reshape(2, 7) * 31 % self.num_embeddings
        ids[1, :3] = ids[0, :3]
        return ids

    def _in_pieces(self, stems: Stems | None = None) -> torch.Tensor:
        """Log-probs after these two, [2, vocabulary]: the second is forked from the first and padded beside it."""
        ids = self._probe_ids()
        self.run(np.array([2]), ids[:1, :4], np.array([0]), np.array([4]))
        self.copy([2], [0], 3)
        tokens = np.stack([ids[1, 3:6], ids[0, 4:7]])
        self.run(np.array([0, 2]), tokens, np.array([3, 4]), np.array([3, 2]))
        last = ids[::-1, 6:].copy()
        logits = self.run(np.array([0, 2]), last, np.array([6, 6]), np.array([1, 1]), stems=stems).flip(0)
        return torch.log_softmax(logits.double(), dim=-1)


@contextlib.contextmanager
def evaluating(modules: Sequence[torch.nn.Module]) -> Generator[None]:
    """Switch dropout off in these modules; those that were in training mode come back to it."""
    training = [module for module in modules if module.training]
    try:
        for module in training:
            # Module.eval and Module.__setattr__ take a tenth of the time of a small model's forward.
            object.__setattr__(module, "training", False)
        yield
    finally:
        for module in training:
            object.__setattr__(module, "training", True)


def longest_context(model: PreTrainedModel, max_context: int | None) -> int:
    """Longest sequence in tokens: the model's limit or ``max_context``, whichever is less.

    Raises:
        ValueError: Neither is known, or ``max_context`` is not positive.
    """
    own: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if max_context is not None and max_context < 1:
        raise ValueError(f"max_context is {max_context}, expected 1 or more")
    limits = [limit for limit in (own, max_context) if limit is not None]
    if not limits:
        raise ValueError(
            f"model {type(model).__name__}: its config has no max_position_embeddings, expected a max_context"
        )
    return min(limits)
