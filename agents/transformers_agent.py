"""Sample turns with any Hugging Face causal LM in this process, its key-value cache kept from turn to turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from forkgym.agents.base import Completion, Event, FinishReason, FirstTokens, Request, check_continued, check_released
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.loading import check_tokenizer
from forkgym.agents.sampling import sample_tokens
from forkgym.agents.slot_model import SlotModel, evaluating, longest_context
from forkgym.agents.slots import Ints, SlotState, SlotTable, TurnPlan
from forkgym.agents.stopping import END, MAY_STOP, StopTable, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFILL_TOKENS = 2048  # most tokens of one forward that fills caches, padding included; bounds its memory
PREFILL_WIDTH = 512  # most tokens of one sequence in it
CHEAP_PADDING = 64  # tokens; so much padding costs a small model less than a further forward, more must be under half
WORTH_WAITING = 16  # tokens; a prefix that another request is about to compute is waited for from this length
DECODES_PER_STEP = 8  # most tokens per sequence and step, so that a driver with tools running is heard in time
# Share of the running sequences that must lack cache columns before a forward fills them: each forward has a fixed
# cost, and one for every reply as it arrives would double it. With an eighth, few wait and not for long.
PREFILL_SHARE = 1 / 8


@dataclass(frozen=True, slots=True)
class Turn:
    """A live request: its place in the order of submission and its context as an array, int64 [tokens]."""

    request: Request
    serial: int
    context: Ints


class TransformersAgent:
    """Samples turns for many sequences at once on the slots of one cache.

    A finished turn keeps its slot until a request continues it, or it is released. A new request waits for a free
    slot, in the order of submission, and starts from the longest prefix that any slot has, in use or not: a branch
    or the second rollout of a prompt costs a copy. When every slot is held by finished turns and only new requests
    are left, the turns that finished first lose their slots; to continue one still works, and costs its context
    anew.

    Args:
        model: Shared with the trainer; sampling neither changes it nor its training mode.
        tokenizer: Its tokenizer.
        slots: Sequences that are cached at once, 1 or more.
        version: Of the model's weights now.
        max_context: Longest sequence in tokens, where it is to be shorter than the model's own limit.

    Raises:
        ValueError: The tokenizer or the model can't be used; the message says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 64,
        version: int = 0,
        max_context: int | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}, expected 1 or more")
        check_tokenizer(tokenizer, cast(str, tokenizer.name_or_path))
        self._codec = TokenizerCodec(tokenizer)
        self._model = SlotModel(model, slots)
        self._modules = list(model.modules())
        self._max_context = longest_context(model, max_context)
        self._stops = StopTable(tokenizer, end_tokens(model, tokenizer), self._model.vocabulary_size)
        self._version = version
        self._table = SlotTable(slots)
        self._serial = 0
        self._queue: deque[Turn] = deque()
        self._turns: dict[int, Turn] = {}  # by slot, those that run
        self._uids: set[str] = set()  # of all queued, running and finished turns
        self._finished: dict[str, int | None] = {}  # slot by uid, in the order of finishing; None where it was lost
        self._events: list[tuple[int, Event]] = []  # with the serial of each request

    @property
    def codec(self) -> TokenizerCodec:
        """Turns texts into tokens and back."""
        return self._codec

    @property
    def model(self) -> PreTrainedModel:
        """The model that it samples from."""
        return self._model.model

    @property
    def vocabulary_size(self) -> int:
        """Number of logits, which may be more than the tokenizer's tokens."""
        return self._model.vocabulary_size

    def submit(self, request: Request) -> None:
        """Queue a turn.

        Raises:
            ValueError: The uid is in use; a token is not in the model's vocabulary; or ``continues`` names no
                finished turn, or one whose tokens don't begin this context.
        """
        if request.uid in self._uids:
            raise ValueError(f"request {request.uid}: another live request has this uid")
        context = np.array(request.tokens, np.int64)
        if int(context.min()) < 0 or int(context.max()) >= self._model.num_embeddings:
            raise ValueError(
                f"request {request.uid}: tokens from {context.min()} to {context.max()}, "
                f"expected 0 to {self._model.num_embeddings - 1}"
            )
        self._stops.row(request.stop)  # refuses bad ones before anything changes
        slot = None if request.continues is None else self._take_over(request, context)
        self._uids.add(request.uid)
        turn = Turn(request, self._serial, context)
        self._serial += 1
        if len(context) >= self._max_context:
            self._finish_unsampled(turn, slot)
        elif slot is None:
            self._queue.append(turn)
        else:
            self._begin(turn, slot, int(self._table.cached[slot]), slot)

    def step(self) -> Sequence[Event]:
        """Start what can start, sample up to the next event or a few tokens, and return what has happened."""
        with torch.inference_mode(), evaluating(self._modules):
            self._admit()
            for _ in range(DECODES_PER_STEP):
                if self._events or not len(self._table.ready()):
                    break
                self._decode()
        # Stable: the first tokens of a request come before its completion.
        events = [event for _, event in sorted(self._events, key=lambda item: item[0])]
        self._events.clear()
        return events

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue.

        Raises:
            ValueError: No finished turn has this uid.
        """
        check_released(uid, self._finished)
        slot = self._finished.pop(uid)
        self._uids.remove(uid)
        if slot is not None:
            self._table.state[slot] = SlotState.FREE

    def abort(self, uid: str) -> None:
        """Forget a turn, finished or not; it is never reported.

        Raises:
            ValueError: No live turn has this uid.
        """
        self._events = [item for item in self._events if item[1].uid != uid]
        for turn in self._queue:
            if turn.request.uid == uid:
                self._queue.remove(turn)
                self._uids.remove(uid)
                return
        for slot, turn in self._turns.items():
            if turn.request.uid == uid:
                del self._turns[slot]
                self._uids.remove(uid)
                self._table.state[slot] = SlotState.FREE
                return
        self.release(uid)

    def pause(self) -> None:
        """Empty the cache and free its memory; turns that are continued all the same compute their contexts anew.

        Raises:
            RuntimeError: A request is queued or running.
        """
        if self._queue or self._turns:
            raise RuntimeError(f"a pause while {len(self._queue) + len(self._turns)} requests run, expected none")
        self._forget()

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Sample from these weights from now on; where the model is not the agent's own, they are copied.

        Finished turns can still be continued; their contexts are computed anew.

        Raises:
            RuntimeError: A request is queued or running.
            ValueError: The model's parameters are not the agent's in name or shape.
        """
        if self._queue or self._turns:
            raise RuntimeError(
                f"weights of version {version} while {len(self._turns)} requests run and {len(self._queue)} are "
                "queued, expected none"
            )
        if model is not self.model:
            try:
                self.model.load_state_dict(model.state_dict(), strict=True)
            except RuntimeError as error:
                raise ValueError(f"weights of version {version} don't fit the agent's model: {error}") from error
        self._modules = list(self.model.modules())
        self._forget()
        self._version = version

    def figures(self) -> Mapping[str, float]:
        """Return nothing: it samples from the trained model itself."""
        return {}

    def _forget(self) -> None:
        self._table.cached[:] = 0
        self._model.forget()

    def _take_over(self, request: Request, context: Ints) -> int | None:
        """Return the slot of the turn that ``request`` continues, now its own; None where that turn lost it."""
        assert request.continues is not None
        check_continued(request, self._finished)
        slot = self._finished[request.continues]
        if slot is not None:
            past = self._table.tokens[slot, : self._table.length[slot]]
            if not np.array_equal(past, context[: len(past)]):
                raise ValueError(
                    f"request {request.uid}: its context does not begin with the {len(past)} tokens of "
                    f"{request.continues!r}, which it continues"
                )
        del self._finished[request.continues]
        self._uids.remove(request.continues)
        return slot

    def _finish_unsampled(self, turn: Turn, slot: int | None) -> None:
        uid = turn.request.uid
        self._finished[uid] = slot
        if turn.request.report_after:
            self._events.append((turn.serial, FirstTokens(uid, ())))
        completion = Completion(uid, (), "", (), (), FinishReason.CONTEXT, self._version)
        self._events.append((turn.serial, completion))

    def _begin(self, turn: Turn, slot: int, cached: int, source: int) -> None:
        request = turn.request
        self._table.begin_sequence(slot, turn.context, cached, source)
        limit = min(len(turn.context) + request.max_tokens, self._max_context)
        # A generator of its own: what a request draws depends on nothing else.
        draws = np.random.default_rng(request.seed).random(limit - len(turn.context), dtype=np.float32)
        stop_row = self._stops.row(request.stop)
        self._table.begin_turn(slot, TurnPlan(limit, request.report_after, request.temperature, stop_row, draws))
        self._turns[slot] = turn

    def _admit(self) -> None:
        """Give slots to queued turns, and fill caches where enough sequences lack columns."""
        if self._queue and not self._turns and not len(self._table.free()):
            self._evict(len(self._queue))
        while True:
            deferred = self._assign()
            running = len(self._turns)
            ready = len(self._table.ready())
            lacking = running - ready + deferred
            if not lacking or (ready and lacking < PREFILL_SHARE * (running + deferred)):
                return
            self._prefill()

    def _evict(self, count: int) -> None:
        held = [(uid, slot) for uid, slot in self._finished.items() if slot is not None]
        for uid, slot in held[:count]:
            self._finished[uid] = None
            self._table.state[slot] = SlotState.FREE

    def _assign(self) -> int:
        """Start queued turns in free slots; returns how many wait for a prefix that another is about to compute."""
        free = list(self._table.free())
        waiting: list[Turn] = []
        copies: list[tuple[int, int, int]] = []
        while self._queue and len(free) > len(waiting):
            turn = self._queue.popleft()
            # The last token must be run: its logits are what is sampled from.
            shared = np.minimum(self._table.shared_prefixes(turn.context, self._table.length), len(turn.context) - 1)
            ready = np.minimum(shared, self._table.cached)
            running = self._table.state == SlotState.RUNNING
            if int(shared[running].max(initial=0)) >= int(ready.max()) + WORTH_WAITING:
                waiting.append(turn)
                continue
            slot = max(free, key=lambda candidate: (ready[candidate], -candidate))
            source = slot if ready[slot] == ready.max() else int(ready.argmax())
            free.remove(slot)
            if source != slot and ready[source]:
                if source in {target for _, target, _ in copies}:
                    self._copy(copies)
                copies.append((source, slot, int(ready[source])))
            self._begin(turn, slot, int(ready[source]), source)
        self._copy(copies)
        self._queue.extendleft(reversed(waiting))
        return len(waiting)

    def _copy(self, copies: list[tuple[int, int, int]]) -> None:
        if copies:
            sources, targets, lengths = zip(*copies, strict=True)
            self._model.copy(list(sources), list(targets), max(lengths))
            copies.clear()

    def _prefill(self) -> None:
        """Cache all tokens of the running slots but the last of each, long stretches apart from short ones."""
        table = self._table
        running = table.running()
        while True:
            missing = table.length[running] - 1 - table.cached[running]
            width = min(int(missing.max(initial=0)), PREFILL_WIDTH)
            if not width:
                return
            longest_first = np.argsort(-missing, kind="stable")[: max(1, PREFILL_TOKENS // width)]
            real = np.minimum(missing[longest_first], width).cumsum()
            padding = width * np.arange(1, len(real) + 1) - real
            most = int(np.flatnonzero(padding <= np.maximum(real, CHEAP_PADDING))[-1]) + 1
            rows = running[np.sort(longest_first[:most])]
            starts = table.cached[rows]
            counts = np.minimum(table.length[rows] - 1 - starts, width)
            offsets = np.arange(width, dtype=np.int64)
            places = np.where(offsets < counts[:, None], starts[:, None] + offsets, 0)
            self._model.run(rows, table.tokens[rows[:, None], places], starts, counts)
            table.cached[rows] += counts

    def _decode(self) -> None:
        """Sample one token for every running slot."""
        table = self._table
        slots = rows = table.ready()
        span = int(slots[-1]) - int(slots[0]) + 1
        if span <= 2 * len(slots):
            # A stretch of slots is read in place; that costs less than to copy the caches of those that run.
            rows = np.arange(int(slots[0]), int(slots[-1]) + 1, dtype=np.int64)
        counts = np.isin(rows, slots, assume_unique=True).astype(np.int64)
        last = np.where(counts, table.length[rows] - 1, 0)
        stems = table.stems(slots) if self._model.takes_stems else None
        if stems is not None and len(rows) > len(slots):  # what stands between those that run has the first one's stem
            stem_of_row = np.zeros(len(rows), np.int64)
            stem_of_row[counts.astype(np.bool_)] = stems.stem_of_row
            stems = replace(stems, stem_of_row=stem_of_row)
        logits = self._model.run(rows, table.tokens[rows, last][:, None], last, counts, stems=stems)
        if len(rows) > len(slots):
            logits = logits[torch.from_numpy(np.flatnonzero(counts)).to(logits.device)]
        tokens, logprobs, entropies = sample_tokens(
            logits,
            torch.from_numpy(table.temperature[slots]).to(logits.device),
            torch.from_numpy(table.next_uniforms(slots)).to(logits.device),
        )
        sampled = tokens.cpu().numpy()
        table.append(slots, sampled, logprobs.cpu().numpy(), entropies.cpu().numpy())
        self._collect(slots, sampled)

    def _collect(self, slots: Ints, sampled: Ints) -> None:
        """Report the slots whose newest tokens end a turn or its first stretch."""
        table = self._table
        flags = self._stops.flags(table.stop_row[slots], sampled)
        length = table.length[slots]
        at_limit = length == table.limit[slots]
        for index in np.flatnonzero(flags.astype(np.bool_) | at_limit | (length == table.report_at[slots])):
            slot = int(slots[index])
            turn = self._turns[slot]
            reason = self._finish_reason(slot, turn, int(flags[index]), at_limit=bool(at_limit[index]))
            if reason is None and length[index] != table.report_at[slot]:
                continue
            count = int(length[index] - table.start[slot])
            if count <= turn.request.report_after:
                self._events.append((turn.serial, FirstTokens(turn.request.uid, table.measures(slot, count)[1])))
            if reason is not None:
                self._finish(slot, turn, reason)

    def _finish_reason(self, slot: int, turn: Turn, flags: int, *, at_limit: bool) -> FinishReason | None:
        request = turn.request
        if flags & MAY_STOP and self._stops.completed(self._table.sampled(slot), request.stop):
            return FinishReason.STOP
        if flags & END:
            return FinishReason.END
        if not at_limit:
            return None
        short = self._table.length[slot] - self._table.start[slot] < request.max_tokens
        return FinishReason.CONTEXT if short else FinishReason.TURN_TOKENS

    def _finish(self, slot: int, turn: Turn, reason: FinishReason) -> None:
        uid = turn.request.uid
        tokens = self._table.sampled(slot)
        logprobs, entropies = self._table.measures(slot, len(tokens))
        text = self._codec.decode(tokens[:-1] if reason is FinishReason.END else tokens)
        self._events.append((turn.serial, Completion(uid, tokens, text, logprobs, entropies, reason, self._version)))
        del self._turns[slot]
        self._finished[uid] = slot
        self._table.state[slot] = SlotState.HELD
