"""An agent behind any OpenAI-compatible chat endpoint, for evaluation."""

from __future__ import annotations

import math
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkgym.agents.base import Completion, Event, FinishReason, Request, check_continued, check_released
from forkgym.agents.chat_endpoint import ChatEndpoint, Choice, ContextTooLong, WrittenCall
from forkgym.agents.config import OpenAIConfig
from forkgym.agents.conversation import (
    VOCABULARY_SIZE,
    ConversationCodec,
    NativeCall,
    read_conversation,
    text_tokens,
    to_json,
)
from forkgym.agents.loop_thread import LoopThread

if TYPE_CHECKING:
    import torch

CANNOT_TRAIN = (
    "a chat endpoint tells neither the tokens that were sampled nor the log-prob of each, and takes no weights, so it "
    "can be evaluated but not trained"
)
MAX_STOPS = 4  # that endpoints take
WAIT_S = 0.02  # of a step; tools are waiting meanwhile
SEEDS = 2**31  # that every endpoint takes


class NoNativeTools(ValueError):
    """Native tool calls were asked for with a grammar whose calls are tags in the text."""


@dataclass(slots=True)
class Asked:
    """A turn that the endpoint is writing, and its place in the order of submission."""

    request: Request
    serial: int
    future: Future[Choice]


class OpenAIAgent:
    """Lets a chat endpoint write the turns.

    Tokens are those of a `ConversationCodec`, not the model's, so log-probs and entropies are not known: they are NaN,
    with which nothing can be computed unnoticed. ``max_tokens`` counts the model's tokens, and so does the endpoint.

    A turn that ends at a stop string: the endpoint cuts off the string and need not say which it was, so the tag that
    was opened last and is still open is closed. Endpoints take four stop strings; the rest, and those that are no
    closing tags, are found here.

    The endpoint answers up to ``slots`` requests at once, in a thread of its own. It is told each request's seed;
    whether it draws the same again is up to it.

    Args:
        model: The name under which the endpoint serves the model.
        slots: Most requests at once, 1 or more.
        config: Of the endpoint.

    Raises:
        ValueError: The environment's key cannot be sent in a header.
    """

    def __init__(self, model: str, *, slots: int = 16, config: OpenAIConfig | None = None) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}, expected 1 or more")
        config = config or OpenAIConfig()
        self._model = model
        self._extra = config.extra_fields
        self._codec = ConversationCodec(native_tools=config.native_tools)
        self._endpoint = ChatEndpoint(config, slots)
        self._loop = LoopThread("chat-endpoint", self._endpoint.close)
        self._live: dict[str, Asked] = {}
        self._finished: dict[str, tuple[int, ...]] = {}  # context and completion by uid
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._serial = 0

    @property
    def codec(self) -> ConversationCodec:
        """Turns messages into tokens and back."""
        return self._codec

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens of the codec."""
        return VOCABULARY_SIZE

    def submit(self, request: Request) -> None:
        """Send a turn to the endpoint.

        Raises:
            ValueError: The uid is in use; the context is no conversation; entropies are asked for; or ``continues``
                names no finished turn, or one whose tokens don't begin this context.
            NoNativeTools: The grammar's calls are tags.
        """
        uid = request.uid
        if uid in self._live or uid in self._finished:
            raise ValueError(f"request {uid}: another live request has this uid")
        if request.report_after:
            raise ValueError(f"request {uid}: report_after is {request.report_after}, expected 0: {CANNOT_TRAIN}")
        if self._codec.native_tools and request.stop:
            raise NoNativeTools(
                f"agent.openai.native_tools is true, but turns of this grammar end at {request.stop[0]}; expected a "
                "grammar of whole messages, such as hermes"
            )
        body = self._body(request)
        if request.continues is not None:
            self._take_over(request, request.continues)
        future = self._loop.start(self._endpoint.ask(body))
        self._live[uid] = Asked(request, self._serial, future)
        self._serial += 1
        done = self._done
        future.add_done_callback(lambda _: done.put(uid))

    def step(self) -> Sequence[Event]:
        """Wait a little for a turn, and return those that are finished.

        Raises:
            AgentFailure: The endpoint gave no reply to one of them.
        """
        if not self._live:
            return []
        uids: list[str] = []
        try:
            uids.append(self._done.get(timeout=WAIT_S))
            while True:
                uids.append(self._done.get_nowait())
        except queue.Empty:
            pass
        # One that was aborted is not known any more, or is asked for again and not done.
        asked = [self._live[uid] for uid in dict.fromkeys(uids) if uid in self._live and self._live[uid].future.done()]
        return [self._finish(turn) for turn in sorted(asked, key=lambda turn: turn.serial)]

    def release(self, uid: str) -> None:
        """Forget a finished turn that nothing will continue.

        Raises:
            ValueError: No finished turn has this uid.
        """
        check_released(uid, self._finished)
        del self._finished[uid]

    def abort(self, uid: str) -> None:
        """Forget a turn, finished or not; it is never reported, and its request is broken off.

        Raises:
            ValueError: No live turn has this uid.
        """
        asked = self._live.pop(uid, None)
        if asked is None:
            self.release(uid)
        else:
            asked.future.cancel()

    def pause(self) -> None:
        """Do nothing: the endpoint's memory is its own."""

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Refuse.

        Raises:
            ValueError: Always; says why.
        """
        del model
        raise ValueError(f"weights of version {version} cannot be loaded: {CANNOT_TRAIN}")

    def figures(self) -> Mapping[str, float]:
        """Return nothing: it is never part of a training step."""
        return {}

    def close(self) -> None:
        """Break off what runs and close the connections; the agent is of no use any more."""
        self._loop.close()

    def _body(self, request: Request) -> dict[str, Any]:
        """The request as the endpoint takes it; top_p is said since servers have defaults of their own."""
        conversation = read_conversation(request.tokens)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": conversation.messages,
            "temperature": request.temperature,
            "top_p": 1,
            "max_tokens": request.max_tokens,
            "seed": request.seed % SEEDS,
        }
        if conversation.tools:
            body["tools"] = conversation.tools
        stops = stops_to_send(request.stop)
        if stops:
            body["stop"] = stops
        body |= self._extra
        return {name: value for name, value in body.items() if value is not None}

    def _take_over(self, request: Request, continues: str) -> None:
        check_continued(request, self._finished)
        past = self._finished[continues]
        if request.tokens[: len(past)] != past:
            raise ValueError(f"request {request.uid}: its context does not begin with that of {continues!r}")
        del self._finished[continues]

    def _finish(self, asked: Asked) -> Completion:
        request = asked.request
        try:
            tokens, reason = self._read(asked.future.result(), request)
        except ContextTooLong:
            tokens, reason = (), FinishReason.CONTEXT
        del self._live[request.uid]
        self._finished[request.uid] = request.tokens + tokens
        unknown = (math.nan,) * len(tokens)
        return Completion(request.uid, tokens, self._codec.decode(tokens), unknown, unknown, reason, version=0)

    def _read(self, choice: Choice, request: Request) -> tuple[tuple[int, ...], FinishReason]:
        """A reply as tokens, and why it ended."""
        text = choice.message.content or ""
        cut = cut_at_stop(text, request.stop)
        if cut is not None:
            return text_tokens(cut), FinishReason.STOP
        if choice.finish_reason == "length":
            reason = FinishReason.TURN_TOKENS
        else:
            stop = stripped_stop(text, choice.stop_reason, stops_to_send(request.stop))
            if stop:
                return text_tokens(text + stop), FinishReason.STOP
            reason = FinishReason.END
        calls = (choice.message.tool_calls or []) if self._codec.native_tools else []
        return self._codec.encode_message(text, native_calls(calls, request)), reason


def native_calls(written: Sequence[WrittenCall], request: Request) -> list[NativeCall]:
    """The calls of a reply; one without an id gets one that is unique in the conversation, whose length grows."""
    calls: list[NativeCall] = []
    for place, call in enumerate(written):
        arguments = call.function.arguments
        text = arguments if isinstance(arguments, str) else to_json(arguments)
        calls.append(NativeCall(call.id or f"call_{len(request.tokens)}_{place}", call.function.name, text))
    return calls


def opened_by(stop: str) -> str | None:
    """The opening tag of a closing one; None for any other string."""
    return f"<{stop[2:]}" if stop.startswith("</") and stop.endswith(">") else None


def stops_to_send(stop: tuple[str, ...]) -> list[str]:
    """The stop strings that the endpoint is told: the last closing tags, that of the answer among them."""
    return [string for string in stop if opened_by(string) is not None][-MAX_STOPS:]


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str | None:
    """The text up to the end of the first stop string; None where it holds none."""
    ends = [text.index(string) + len(string) for string in stop if string in text]
    return text[: min(ends)] if ends else None


def stripped_stop(text: str, told: int | str | None, sent: Sequence[str]) -> str:
    """The stop string that the endpoint cut off after the text; empty where it seems to have been none.

    Args:
        text: What is left; it holds no stop string.
        told: What vLLM says that it was.
        sent: The stop strings that the endpoint knew.
    """
    if told in sent:
        return str(told)
    places = {stop: text.rfind(opened_by(stop) or stop) for stop in sent}
    last = max(sent, key=lambda stop: places[stop], default="")
    return last if last and places[last] >= 0 else ""
