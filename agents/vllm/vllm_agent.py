"""Sample turns with vLLM's engine in this process; the trained weights go over in memory after each step.

Tokens and arrays come out of the engine, and turns end where they do with the embedded agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forkgym.agents.base import Event, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.config import VllmConfig
from forkgym.agents.entropies import entropy_bounds
from forkgym.agents.errors import AgentFailure
from forkgym.agents.stopping import StopTable, end_tokens
from forkgym.agents.turn_book import LiveTurn, TurnBook
from forkgym.agents.vllm.sampled_model import SAMPLED_PROBE_TOKENS, check_temperature, sampled_model
from forkgym.agents.vllm.vllm_engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEPS = 8  # most engine steps at once, so that a driver with tools running is heard in time


class VllmAgent:
    """Samples turns with vLLM, one request for each turn of each trajectory.

    The engine is made from the model's config and takes every weight from the model itself, so that it never needs the
    model's files, and the first weights come by the route that all later ones come by. A request whose context begins
    like an earlier one, as those of a branch or a next turn do, finds the key-value cache of that stretch in vLLM's
    prefix cache.

    Args:
        model: Trained in this process.
        tokenizer: Its tokenizer.
        slots: Most sequences that are decoded at once, 1 or more.
        version: Of the model's weights now.
        config: Of the engine.

    Attributes:
        probe_gap: Largest difference between the engine's log-probs of a fixed prompt and the model's when the weights
            were last taken over, nats.
        entropy_error: Largest distance so far of a reported entropy from the true one, nats: half of what the tokens
            whose log-probs were not asked for leave open.

    Raises:
        ValueError: The tokenizer or the model can't be used, vLLM is not installed, or it computes something else than
            the model; the message says which.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 64,
        version: int = 0,
        config: VllmConfig | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}, expected 1 or more")
        config = config or VllmConfig()
        self._sampled = sampled_model(model, tokenizer, config)
        self._engine = Engine(model, slots, self._sampled.num_logprobs, config)
        self._codec = TokenizerCodec(tokenizer)
        stops = StopTable(tokenizer, end_tokens(model, tokenizer), self.vocabulary_size)
        self._book = TurnBook(self._codec, stops, self._sampled.num_embeddings, self._engine.max_context)
        self._turns: dict[str, LiveTurn] = {}  # by the engine's name for the request, those that run
        self._version = version
        self.probe_gap = 0.0
        self.entropy_error = 0.0
        try:
            self.load_weights(model, version)
        except AgentFailure as error:
            raise ValueError(f"vLLM computes something else than model {type(model).__name__}: {error}") from error

    @property
    def codec(self) -> TokenizerCodec:
        """Turns texts into tokens and back."""
        return self._codec

    @property
    def vocabulary_size(self) -> int:
        """Number of logits, which may be more than the tokenizer's tokens."""
        return self._sampled.vocabulary_size

    def submit(self, request: Request) -> None:
        """Queue a turn.

        Raises:
            ValueError: See `TurnBook.begin`; or vLLM would sample at another temperature.
            RuntimeError: It was paused, and no weights have come since.
        """
        if self._engine.asleep:
            raise RuntimeError(f"request {request.uid}: the engine sleeps, expected load_weights before it")
        check_temperature(request)
        turn = self._book.begin(request, self._version)
        if turn is not None:
            self._turns[str(turn.serial)] = turn
            self._engine.add(str(turn.serial), request, turn.limit)

    def step(self) -> Sequence[Event]:
        """Sample up to the next event or a few tokens, and return what has happened."""
        for _ in range(STEPS):
            if self._book.has_events or not self._book.live:
                break
            self._take(self._engine.step())
        return self._book.take_events()

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue.

        Raises:
            ValueError: No finished turn has this uid.
        """
        self._book.release(uid)

    def abort(self, uid: str) -> None:
        """Forget a turn, finished or not; it is never reported.

        Raises:
            ValueError: No live turn has this uid.
        """
        turn = self._book.abort(uid)
        if turn is not None:
            self._stop([str(turn.serial)])

    def pause(self) -> None:
        """Let the GPU's memory go that the engine has, until the next weights come; nothing on a CPU.

        Raises:
            RuntimeError: A request is running.
        """
        if self._book.live:
            raise RuntimeError(f"a pause while {self._book.live} requests run, expected none")
        self._engine.sleep()

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Copy these weights into the engine, empty its prefix cache, and compare log-probs of a fixed prompt.

        Finished turns can still be continued; their contexts are computed anew.

        Raises:
            RuntimeError: A request is running.
            ValueError: The model's parameters are not the engine's in name or shape.
            AgentFailure: The engine's log-probs are not the model's.
        """
        self._sampled.check_weights(model, version, self._book.live)
        self._engine.load(model)
        self._version = version
        prompt = self._sampled.probe_prompt(self._engine.max_context)
        tokens, found = self._engine.score(prompt, SAMPLED_PROBE_TOKENS)
        self.probe_gap = self._sampled.probe_gap(model, tokens, found, "vLLM", version)

    def figures(self) -> Mapping[str, float]:
        """Return ``probe_gap`` and ``entropy_error``, nats; see the attributes."""
        return {"probe_gap": self.probe_gap, "entropy_error": self.entropy_error}

    def _take(self, outputs: Sequence[Any]) -> None:
        """Add what the engine has sampled to the turns."""
        sampled = [output for output in outputs if output.new_token_ids and output.request_id in self._turns]
        if not sampled:
            return
        # The sampled token's first, then those of the most likely tokens in order.
        logprobs = np.concatenate([output.new_logprobs.logprobs for output in sampled])
        if not np.isfinite(logprobs[:, 0]).all():
            raise ValueError("log-probs: NaN or infinity for a sampled token, expected finite numbers")
        low, high = entropy_bounds(logprobs[:, 1:], self.vocabulary_size)
        self.entropy_error = max(self.entropy_error, float((high - low).max()) / 2)
        turns = [self._turns[output.request_id] for output in sampled]
        tokens = [token for output in sampled for token in output.new_token_ids]  # one each
        entropies = ((low + high) / 2).tolist()
        ended = self._book.add_tokens(turns, tokens, logprobs[:, 0].tolist(), entropies, self._version)
        names = [str(turn.serial) for turn in ended]
        for output in sampled:
            if output.finished and output.request_id not in names:
                raise AgentFailure(
                    f"request {self._turns[output.request_id].request.uid}: vLLM ended it ({output.finish_reason}), "
                    "expected it to go on"
                )
        self._stop(names)

    def _stop(self, names: Sequence[str]) -> None:
        for name in names:
            del self._turns[name]
        self._engine.abort(names)
