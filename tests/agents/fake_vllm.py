"""A vLLM server on loopback without vLLM: our own routes, over an engine that samples from a model of transformers."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedModel

from forkgym.agents.vllm import vllm_routes
from forkgym.agents.vllm.server_protocol import PROTOCOL, WORKER_EXTENSION
from forkgym.agents.vllm.vocabulary import vocabulary_hash
from tests.agents.tiny import byte_tokenizer, make_model

DEADLINE_S = 60.0


@dataclass
class FlatLogprobs:
    """As vLLM's: one list for all places, and where each place begins."""

    logprobs: list[float] = field(default_factory=list[float])
    start_indices: list[int] = field(default_factory=list[int])


class FakeEngine:
    """What our routes use of vLLM's client of its engine.

    Attributes:
        model: Begins with other weights than the trainer's.
        dead: Raises in whatever it does.
        stale: Takes no weights, and says that it has.
        hold_at: Tokens of a turn after which it waits; None for never. A score never waits.
        prompts: Of the turns that it began.
        aborted: Names of the turns that were broken off.
        running: How many turns it samples now.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(0.5)
        size = int(model.config.vocab_size)
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: size))
        self.dead = False
        self.stale = False
        self.hold_at: int | None = None
        self.prompts: list[tuple[int, ...]] = []
        self.aborted: list[str] = []
        self.running = 0
        self.resets = 0

    async def collective_rpc(self, method: str, args: tuple[str, ...] = (), kwargs: Any = None) -> list[str | None]:
        """Take weights from a file, as the worker's extension."""
        self.check()
        assert (method, kwargs) == ("take_weights", None)
        if not self.stale:
            found = safetensors.torch.load_file(args[0])
            if found.keys() != dict(self.model.named_parameters()).keys():
                return ["KeyError: other names"]
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(found[name])
        return [None]

    async def reset_prefix_cache(self) -> bool:
        """Count."""
        self.resets += 1
        return True

    def check(self) -> None:
        """Raise where it is dead."""
        if self.dead:
            raise RuntimeError("the engine is dead")

    def log_p(self, tokens: list[int], temperature: float) -> torch.Tensor:
        """Log-probs of what may follow each of these tokens."""
        with torch.no_grad():
            output: Any = self.model(input_ids=torch.tensor([tokens]), use_cache=False)
        return torch.log_softmax(output.logits[0] / (temperature or 1.0), dim=-1)


async def outputs(
    engine: FakeEngine, prompt: list[int], name: str, settings: Mapping[str, Any]
) -> AsyncGenerator[SimpleNamespace]:
    """In place of `vllm_routes.outputs`: the same draws for the same seed, whatever else runs."""
    tokens, sampled, flat = list(prompt), list[int](), FlatLogprobs()
    engine.prompts.append(tuple(prompt))
    engine.running += 1
    top, temperature = settings["logprobs"], settings["temperature"]
    rows: list[dict[int, SimpleNamespace]] = []
    reason: str | None = None
    try:
        while reason is None:
            await asyncio.sleep(0)
            while engine.hold_at is not None and len(sampled) >= engine.hold_at and "seed" in settings:
                engine.check()
                await asyncio.sleep(0.005)
            engine.check()
            row = engine.log_p(tokens, temperature)[-1]
            uniform = np.random.default_rng((settings.get("seed", 0), len(sampled))).random()
            drawn = int(torch.searchsorted(row.double().exp().cumsum(0), uniform).clamp(max=len(row) - 1))
            token = drawn if temperature else int(row.argmax())
            tokens.append(token)
            sampled.append(token)
            flat.start_indices.append(len(flat.logprobs))
            flat.logprobs += [float(row[token]), *row.topk(top).values.tolist()]
            rows.append({token: SimpleNamespace(logprob=float(row[token]))})
            if token in settings.get("stop_token_ids", ()):
                reason = "stop"
            elif len(sampled) == settings["max_tokens"]:
                reason = "length"
            scored = [None, *prompt_rows(engine, prompt)] if "prompt_logprobs" in settings else None
            found = SimpleNamespace(
                token_ids=list(sampled), logprobs=rows if scored is not None else flat, finish_reason=reason
            )
            yield SimpleNamespace(outputs=[found], finished=reason is not None, prompt_logprobs=scored)
    except (asyncio.CancelledError, GeneratorExit):
        engine.aborted.append(name)
        raise
    finally:
        engine.running -= 1


def prompt_rows(engine: FakeEngine, prompt: list[int]) -> list[dict[int, SimpleNamespace]]:
    """The log-prob of each token of a prompt but the first."""
    table = engine.log_p(prompt, 1.0)
    return [{token: SimpleNamespace(logprob=float(table[place, token]))} for place, token in enumerate(prompt[1:])]


@dataclass
class FakeServer:
    """A server that runs.

    Attributes:
        url: Its address.
        engine: Behind it.
        about: What it says that it was started with.
        plain: Whether it is one without our routes.
    """

    url: str
    engine: FakeEngine
    about: dict[str, Any]
    plain: bool = False


def description_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a server says that was started as it has to be."""
    return {
        "protocol": PROTOCOL,
        "vllm": "0.32.0",
        "forkgym": "0.1.0",
        "worker_extension": WORKER_EXTENSION,
        "workers": 1,
        "device": "cpu",
        "dtype": "float32",
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 640,
        "max_context": 96,
        "chunked_prefill": False,
        "prefix_caching": True,
        "logits_processors": [],
        "model": model.config.to_dict(),
        "tokenizer": vocabulary_hash(byte_tokenizer()),
        "weight_transfer": None,
    }


def about(config: Any) -> dict[str, Any]:
    """In place of `vllm_routes.description`."""
    return dict(config.about)


@contextmanager
def fake_server(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel | None = None) -> Generator[FakeServer]:
    """Serve until the end of the block.

    Args:
        monkeypatch: Undoes what is put in vLLM's place.
        model: Gives the shape; by default the small one.
    """
    model = model or make_model()
    served = FakeServer("", FakeEngine(model), description_of(model))
    monkeypatch.setattr(vllm_routes, "outputs", outputs)
    monkeypatch.setattr(vllm_routes, "description", about)
    served.engine.vllm_config.about = served.about

    async def health(request: Any) -> PlainTextResponse:
        del request
        return PlainTextResponse("", 503 if served.engine.dead else 200)

    inner = Starlette(routes=[Route("/health", health)])
    inner.state.engine_client = served.engine
    routes = vllm_routes.TurnRoutes(inner)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = inner
        if served.plain:
            await inner(scope, receive, send)
            return
        if scope["type"] == "http" and served.engine.dead:
            await PlainTextResponse("dead", 500)(scope, receive, send)
            return
        await routes(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, name="fake-vllm", daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_S
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        served.engine.hold_at = None
        server.should_exit = True
        thread.join()
