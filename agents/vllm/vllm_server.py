"""Sample turns with vLLM servers: processes of their own, on this machine or others.

Tokens travel, not text, and turns end where they do with the other agents. A server that dies takes nothing with it:
what it was sampling goes on elsewhere.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forkgym.agents.base import Event, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.config import VllmConfig, VllmServerConfig
from forkgym.agents.errors import AgentFailure
from forkgym.agents.loop_thread import LoopThread
from forkgym.agents.served_weights import served_weights
from forkgym.agents.stopping import StopTable, end_tokens
from forkgym.agents.turn_book import LiveTurn, TurnBook
from forkgym.agents.vllm.sampled_model import SAMPLED_PROBE_TOKENS, check_temperature, sampled_model
from forkgym.agents.vllm.server_checks import Wanted
from forkgym.agents.vllm.server_fleet import Fleet
from forkgym.agents.vllm.server_protocol import KEY_VARIABLE
from forkgym.agents.vllm.server_sessions import turn_name
from forkgym.agents.vllm.turn_endings import TurnEndings
from forkgym.agents.vllm.vllm_client import Piece, ServerClient
from forkgym.agents.vllm.vllm_launch import LaunchedServers
from forkgym.agents.vllm.vocabulary import vocabulary_hash
from forkgym.agents.vllm.weight_transfer import FileTransfer, NcclTransfer, WeightTransfer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WAIT_S = 0.02  # of a step; tools are waiting meanwhile


class VllmServerAgent:
    """Samples turns with vLLM servers, one request to an engine for each turn of each trajectory.

    The first weights go to the servers by the route that all later ones go by. A turn whose server dies is begun anew
    with another, with the same seed; where some of its tokens have arrived, it goes on after them. With the same seed
    each turn is the same up to the rounding of log-probs, which depends on what an engine computes side by side.

    Args:
        model: Trained in this process.
        tokenizer: Its tokenizer.
        servers: Addresses of the servers, or those that were started for this agent, which ends them with itself.
        config: Of the servers.
        engine: Of the engines: what of it is for the one who asks.

    Attributes:
        probe_gap: Largest difference between the servers' log-probs of a fixed prompt and the model's when the weights
            were last handed over, nats.
        entropy_error: Largest distance so far of a reported entropy from the true one, nats: half of what the tokens
            whose log-probs were not asked for leave open.
        resumed_turns: How many turns have been begun anew so far, as their server was lost.

    Raises:
        ValueError: The tokenizer or the model can't be used, or a server can't: it is not there, was started otherwise,
            or computes something else than the model; the message says which.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        servers: Sequence[str] | LaunchedServers,
        *,
        config: VllmServerConfig | None = None,
        engine: VllmConfig | None = None,
    ) -> None:
        config, engine = config or VllmServerConfig(), engine or VllmConfig()
        nccl = config.transfer == "nccl"
        if nccl and model.device.type != "cuda":
            raise ValueError("agent.server.transfer is 'nccl', expected 'file', as the model is not on a GPU")
        self._sampled = sampled_model(model, tokenizer, engine)
        self._run = secrets.token_hex(4)  # so that two trainers with one server notice one another
        self.probe_gap = 0.0
        self.entropy_error = 0.0
        self.resumed_turns = 0
        launched = servers if isinstance(servers, LaunchedServers) else None
        key = os.environ.get(KEY_VARIABLE, "")
        addresses = servers.addresses if isinstance(servers, LaunchedServers) else servers
        clients = [ServerClient(one, timeout_s=config.timeout_s, key=key) for one in addresses]
        self._launched = launched
        self._loop = LoopThread("vllm-servers", partial(close_all, clients))
        wanted = Wanted(
            model=model.config.get_text_config().to_dict(),
            tokenizer=vocabulary_hash(tokenizer),
            dtype=str(model.dtype).removeprefix("torch."),
            num_logprobs=self._sampled.num_logprobs,
            nccl=nccl,
        )
        self._fleet = Fleet(clients, self._loop, wanted, launched)
        try:
            self._fleet.wait(config.start_timeout_s if launched is not None else config.answer_timeout_s)
            self._transfer = self._make_transfer(config)
            self._codec = TokenizerCodec(tokenizer)
            stops = StopTable(tokenizer, end_tokens(model, tokenizer), self.vocabulary_size)
            self._endings = TurnEndings(stops, self.vocabulary_size)
            self._book = TurnBook(self._codec, stops, self._sampled.num_embeddings, self._fleet.max_context)
            self._version = 0
            self.load_weights(model, version=0)
        except AgentFailure as error:
            self.close()
            raise ValueError(f"model {type(model).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise

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
            AgentFailure: No server is left.
        """
        check_temperature(request)
        turn = self._book.begin(request, self._version)
        if turn is not None:
            self._fleet.begin(turn, self._body(turn))

    def step(self) -> Sequence[Event]:
        """Wait a little for tokens, and return what has happened.

        Raises:
            AgentFailure: A server refuses a turn, or none is left.
        """
        self._fleet.send()
        if self._book.live and not self._book.has_events:
            arrivals = self._fleet.receive(WAIT_S)
            self._take(arrivals.pieces)
            for turn in self._fleet.repair(arrivals.problems):
                self._fleet.begin(turn, self._body(turn))
                self.resumed_turns += 1
            self._fleet.send()
        return self._book.take_events()

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue.

        Raises:
            ValueError: No finished turn has this uid.
        """
        self._book.release(uid)
        self._fleet.forget(uid)

    def abort(self, uid: str) -> None:
        """Forget a turn, finished or not; it is never reported.

        Raises:
            ValueError: No live turn has this uid.
        """
        turn = self._book.abort(uid)
        if turn is not None:
            self._fleet.end(turn, running=True)
        self._fleet.forget(uid)

    def pause(self) -> None:
        """Do nothing: servers have memory of their own."""

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Hand these weights to the servers, and compare log-probs of a fixed prompt.

        Finished turns can still be continued; their contexts are computed anew.

        Raises:
            RuntimeError: A request is running.
            ValueError: The model's parameters are not the first one's in name or shape.
            AgentFailure: The log-probs of a server are not the model's, or no server is left.
        """
        self._sampled.check_weights(model, version, self._book.live)
        self._fleet.renew(served_weights(model), f"{self._run}/{version}", self._transfer)
        self._version = version
        prompt = self._sampled.probe_prompt(self._fleet.max_context)
        gaps: list[float] = []
        for address, score in self._fleet.scores(prompt, SAMPLED_PROBE_TOKENS):
            found = np.array(score.logprobs, np.float32)
            gaps.append(self._sampled.probe_gap(model, score.tokens, found, f"vLLM server {address}", version))
        self.probe_gap = max(gaps)
        self._fleet.open()

    def figures(self) -> Mapping[str, float]:
        """Return ``probe_gap`` and ``entropy_error``, nats, ``resumed_turns``; and ``servers``, those in use."""
        return {
            "probe_gap": self.probe_gap,
            "entropy_error": self.entropy_error,
            "resumed_turns": float(self.resumed_turns),
            "servers": float(len(self._fleet.usable)),
        }

    def close(self) -> None:
        """Break off what runs, and end the servers that were started for this agent; it is of no use any more."""
        self._fleet.close()
        self._loop.close()
        if self._launched is not None:
            self._launched.close()

    def _body(self, turn: LiveTurn) -> dict[str, Any]:
        """What a server is told of a turn, or of the rest of one that has begun elsewhere."""
        request, done = turn.request, len(turn.tokens)
        ends, watched = self._endings.of(request.stop)
        return {
            "name": turn_name(turn),
            "tokens": [*request.tokens, *turn.tokens],
            "max_tokens": turn.limit - done,
            "temperature": request.temperature,
            # The draws of the same seed once more would not be independent of those that gave the first tokens.
            "seed": request.seed if not done else random.Random(f"{request.seed}/{done}").getrandbits(63),
            "logprobs": self._sampled.num_logprobs,
            "ends": ends,
            "watched": watched,
            "report_after": max(0, request.report_after - done),
        }

    def _take(self, pieces: Sequence[tuple[LiveTurn, Piece]]) -> None:
        """Add what the servers have sampled to the turns, a token of each at a time, as the book takes them."""
        left = merged(pieces)
        place = 0
        while left:
            for turn, piece in left:
                if place == len(piece.tokens) and piece.end is not None:
                    raise AgentFailure(f"request {turn.request.uid}: vLLM ended it ({piece.end}), expected it to go on")
            left = [(turn, piece) for turn, piece in left if place < len(piece.tokens)]
            ended = {turn.serial for turn in self._add(left, place)} if left else set[int]()
            place += 1
            for turn, piece in left:
                if turn.serial in ended:
                    # At a token that may end a turn, the server goes on until it is told that it does.
                    self._fleet.end(turn, running=piece.end is None)
            left = [(turn, piece) for turn, piece in left if turn.serial not in ended]

    def _add(self, sampled: Sequence[tuple[LiveTurn, Piece]], place: int) -> Sequence[LiveTurn]:
        """Add the token at one place of each piece; returns the turns that it ended."""
        turns = [turn for turn, _ in sampled]
        tokens = [piece.tokens[place] for _, piece in sampled]
        logprobs = [piece.logprobs[place] for _, piece in sampled]
        if not np.isfinite(logprobs).all():
            raise ValueError("log-probs: NaN or infinity for a sampled token, expected finite numbers")
        bounds = np.array([(piece.low[place], piece.high[place]) for _, piece in sampled])
        self.entropy_error = max(self.entropy_error, float((bounds[:, 1] - bounds[:, 0]).max()) / 2)
        return self._book.add_tokens(turns, tokens, logprobs, bounds.mean(axis=1).tolist(), self._version)

    def _make_transfer(self, config: VllmServerConfig) -> WeightTransfer:
        if config.transfer == "nccl":
            return NcclTransfer(self._loop, self._fleet.workers)
        return FileTransfer(self._loop, config.weights_dir)


def merged(pieces: Sequence[tuple[LiveTurn, Piece]]) -> list[tuple[LiveTurn, Piece]]:
    """One piece for each turn."""
    found: dict[int, tuple[LiveTurn, Piece]] = {}
    for turn, piece in pieces:
        if turn.serial in found:
            first = found[turn.serial][1]
            measures = (
                first.tokens + piece.tokens,
                first.logprobs + piece.logprobs,
                first.low + piece.low,
                first.high + piece.high,
            )
            piece = Piece(piece.turn, *measures, piece.end)
        found[turn.serial] = turn, piece
    return list(found.values())


async def close_all(clients: Sequence[ServerClient]) -> None:
    """Close the connections to all servers."""
    for client in clients:
        await client.close()
