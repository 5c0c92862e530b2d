"""What our middleware adds to a vLLM server: turns as tokens, weights, and what the server was started with.

It runs in the server, which loads it by ``--middleware``. vLLM's own routes would send each log-prob as an object of
JSON and each turn over a connection of its own, and would take weights only in a mode for developers, which lets anyone
who reaches the port run methods of the server.
"""
# vLLM is not installed everywhere, and half typed where it is.
# pyright: standard, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from importlib.metadata import version
from itertools import count
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from forkgym.agents.entropies import entropy_bounds
from forkgym.agents.vllm.server_protocol import KEY_VARIABLE, PREFIX, PROTOCOL, WRONG_STATE
from forkgym.agents.vllm.vocabulary import vocabulary_hash_at

BEAT_S = 2.0  # between signs of life
TRANSFER_STEPS = (
    "init_weight_transfer_engine",
    "start_weight_update",
    "update_weights",
    "finish_weight_update",
)

Json = dict[str, Any]


class WrongState(Exception):
    """The server has other weights, or no such session; says which."""


class TurnRoutes:
    """ASGI middleware of a vLLM server: answers below ``/forkgym/`` and passes all else on.

    - ``GET server``: what it was started with.
    - ``POST session``: opens a session for certain weights; its reply is the stream of what is sampled in it.
    - ``POST turns``: begins turns in a session, and breaks off others.
    - ``POST end``: ends a session.
    - ``POST score``: continues a prompt greedily; gives tokens and log-probs.
    - ``POST weights``: takes them from a file. All sessions end.
    - ``POST transfer``: a step of vLLM's weight transfer, by the name of the worker's method. All sessions end.

    Where the environment holds ``FORKGYM_SERVER_KEY``, requests have to carry it: who reaches these routes can replace
    the weights.

    Args:
        app: The server's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._weights = ""  # what the client calls those that were taken over last
        self._sessions: dict[str, Session] = {}
        self._names = count()
        self._routes: dict[tuple[str, str], Callable[[Any, Any], Awaitable[Response]]] = {
            ("GET", "server"): self._describe,
            ("POST", "session"): self._open,
            ("POST", "turns"): self._begin,
            ("POST", "end"): self._end,
            ("POST", "score"): self._score,
            ("POST", "weights"): self._take_weights,
            ("POST", "transfer"): self._transfer,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if self._key and not secrets.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            return refusal(401, f"it asks for the key that {KEY_VARIABLE} held when it was started")
        path = request.url.path.removeprefix(PREFIX)
        route = self._routes.get((request.method, path))
        if route is None:
            return refusal(404, f"it has no route {request.method} {path}")
        try:
            body = await request.json() if request.method == "POST" else None
            return await route(request.app.state.engine_client, body)
        except WrongState as error:
            return refusal(WRONG_STATE, str(error))
        except (KeyError, TypeError, ValueError) as error:
            return refusal(400, f"{type(error).__name__}: {error}")

    async def _describe(self, engine: Any, body: None) -> Response:
        del body
        found = await asyncio.to_thread(description, engine.vllm_config)
        return JSONResponse(found | {"weights": self._weights})

    async def _open(self, engine: Any, body: Json) -> Response:
        name = str(body["session"])
        if body["weights"] != self._weights:
            raise WrongState(f"it has the weights {self._weights!r}, not {body['weights']!r}")
        if name in self._sessions:
            raise WrongState(f"session {name!r} is open already")
        return StreamingResponse(self._stream(name, Session(engine)))

    async def _stream(self, name: str, session: Session) -> AsyncGenerator[bytes]:
        self._sessions[name] = session
        try:
            async for piece in session.stream():
                yield piece
        finally:  # here also where the client is gone
            del self._sessions[name]
            session.abort(list(session.turns))

    async def _begin(self, engine: Any, body: Json) -> Response:
        del engine
        session = self._session(body)
        session.abort(body["abort"])
        for turn in body["turns"]:
            session.begin(Turn(turn), f"turn-{next(self._names)}")
        return JSONResponse({})

    async def _end(self, engine: Any, body: Json) -> Response:
        del engine
        await self._session(body).end("it was ended")
        return JSONResponse({})

    def _session(self, body: Json) -> Session:
        if body["session"] not in self._sessions:
            raise WrongState(f"it has no session {body['session']!r}")
        return self._sessions[body["session"]]

    async def _score(self, engine: Any, body: Json) -> Response:
        prompt, size = list(body["tokens"]), int(body["count"])
        settings: Json = {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0, "max_tokens": size}
        steps = [output async for output in outputs(engine, prompt, f"score-{next(self._names)}", settings)]
        output = steps[-1]
        sampled = output.outputs[0]
        tokens = prompt + list(sampled.token_ids)
        rows = [*output.prompt_logprobs[1:], *sampled.logprobs]
        logprobs = [row[token].logprob for row, token in zip(rows, tokens[1:], strict=True)]
        return JSONResponse({"tokens": tokens, "logprobs": logprobs})

    async def _take_weights(self, engine: Any, body: Json) -> Response:
        await self._forget_weights()
        problems = [str(one) for one in await engine.collective_rpc("take_weights", args=(body["path"],)) if one]
        if problems:
            return refusal(422, problems[0])
        return await self._use_weights(engine, body["weights"])

    async def _transfer(self, engine: Any, body: Json) -> Response:
        step = body["step"]
        if step not in TRANSFER_STEPS:
            raise ValueError(f"step is {step!r}, expected one of {', '.join(TRANSFER_STEPS)}")
        await self._forget_weights()
        await engine.collective_rpc(step, kwargs=body["arguments"])
        if step == TRANSFER_STEPS[-1]:
            return await self._use_weights(engine, body["weights"])
        return JSONResponse({})

    async def _forget_weights(self) -> None:
        self._weights = ""
        for session in list(self._sessions.values()):
            await session.end("its weights were replaced in the middle of a session")

    async def _use_weights(self, engine: Any, name: str) -> Response:
        """Empty the prefix cache, which holds keys and values of the old weights, and allow sessions."""
        if not await engine.reset_prefix_cache():
            return refusal(422, "its prefix cache can't be emptied: does someone else use it?")
        self._weights = name
        return JSONResponse({})


class Turn:
    """A turn to sample, and which of its tokens a client has to hear of at once.

    Args:
        body: ``name``; ``tokens``, the context; ``max_tokens``, ``temperature``, ``seed``; ``logprobs``, most likely
            tokens whose log-probs the bounds of entropies come from; ``ends``, tokens that end the turn; ``watched``,
            those that may complete a stop string, or null where any may; ``report_after``, how many tokens branching
            asks for.
    """

    def __init__(self, body: Json) -> None:
        self.name = str(body["name"])
        self.prompt = [int(token) for token in body["tokens"]]
        self.size = int(body["logprobs"])
        self._watched = None if body["watched"] is None else frozenset(body["watched"])
        self._report_after = int(body["report_after"])
        self.settings: Json = {
            "temperature": float(body["temperature"]),
            "seed": int(body["seed"]),
            "logprobs": self.size,
            "max_tokens": int(body["max_tokens"]),
            "stop_token_ids": list(body["ends"]),
        }

    def matters(self, tokens: list[int], before: int) -> bool:
        """Whether the client may have to act on these tokens, which follow ``before`` others."""
        if before < self._report_after <= before + len(tokens):
            return True
        return self._watched is None or not self._watched.isdisjoint(tokens)


class Session:
    """Samples turns for one client, and writes lines of JSON that say how they go.

    A line ``[name, tokens, logprobs, low, high, end]`` holds what was sampled of a turn since its last line: the
    log-prob of each token and the bounds of the entropy before it, nats. It is written when the client may have to act:
    at the end, after a token that may complete a stop string, and when the first tokens are there that branching asks
    for. ``end`` is null, ``stop`` or ``length``. A line ``{"turn": name, "error": words}`` says that vLLM refuses a
    turn, one without a turn that the session is over, and an empty line that the engine is alive: that it has sampled
    something since the last, or has nothing to do.

    Args:
        engine: vLLM's client of its engine.
    """

    def __init__(self, engine: Any) -> None:
        self.turns: dict[str, asyncio.Task[None]] = {}
        self._engine = engine
        self._vocabulary_size = int(engine.vllm_config.model_config.get_vocab_size())
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._over = False
        self._worked = False  # since the last sign of life

    def begin(self, turn: Turn, engine_name: str) -> None:
        """Begin a turn."""
        if turn.name in self.turns:
            raise ValueError(f"turn {turn.name!r} runs already")
        task = asyncio.get_running_loop().create_task(self._sample(turn, engine_name))
        self.turns[turn.name] = task

        def ended(task: asyncio.Task[None]) -> None:
            self.turns.pop(turn.name, None)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                self.fail(f"its engine failed ({type(error).__name__}: {error})")

        task.add_done_callback(ended)

    def abort(self, names: list[str]) -> None:
        """Break turns off; one that has ended is ignored."""
        for name in names:
            task = self.turns.get(name)
            if task is not None:
                task.cancel()

    async def end(self, words: str) -> None:
        """Break all turns off and end the session."""
        tasks = list(self.turns.values())
        self.abort(list(self.turns))
        await asyncio.gather(*tasks, return_exceptions=True)
        self.fail(words)

    def fail(self, words: str) -> None:
        """End the session, as something is wrong."""
        self._over = True
        self._write({"error": words})

    async def stream(self) -> AsyncIterator[bytes]:
        """Give the lines as they are written."""
        yield b"\n"
        while not self._over or not self._lines.empty():
            try:
                async with asyncio.timeout(BEAT_S):
                    lines = [await self._lines.get()]
            except TimeoutError:
                if self._worked or not self.turns:
                    self._worked = False
                    yield b"\n"
                continue
            while not self._lines.empty():
                lines.append(self._lines.get_nowait())
            yield b"".join(lines)

    async def _sample(self, turn: Turn, engine_name: str) -> None:
        written = 0
        try:
            async with aclosing(outputs(self._engine, turn.prompt, engine_name, turn.settings)) as steps:
                async for output in steps:
                    self._worked = True
                    found = output.outputs[0]
                    tokens = list(found.token_ids[written:])
                    if output.finished or turn.matters(tokens, written):
                        measures = self._measures(found.logprobs, written, turn.size)
                        self._write([turn.name, tokens, *measures, found.finish_reason])
                        written += len(tokens)
        except RefusedTurn as error:
            self._write({"turn": turn.name, "error": str(error)})

    def _measures(self, found: Any, written: int, size: int) -> tuple[list[float], list[float], list[float]]:
        """The log-probs of the tokens from ``written`` on, and the bounds of the entropies before them."""
        begin = found.start_indices[written] if written < len(found.start_indices) else len(found.logprobs)
        # The sampled token's first, then those of the most likely tokens in order.
        logprobs = np.array(found.logprobs[begin:], np.float64).reshape(-1, size + 1)
        low, high = entropy_bounds(logprobs[:, 1:], self._vocabulary_size)
        return logprobs[:, 0].tolist(), low.tolist(), high.tolist()

    def _write(self, line: Any) -> None:
        self._lines.put_nowait((json.dumps(line, separators=(",", ":")) + "\n").encode())


class RefusedTurn(ValueError):
    """vLLM refuses a request; says why."""


async def outputs(engine: Any, prompt: list[int], name: str, settings: Json) -> AsyncGenerator[Any]:
    """Sample; gives vLLM's `RequestOutput`, with all tokens so far, whenever there are more.

    Raises:
        RefusedTurn: vLLM won't.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    try:
        # Nothing comes from the model's settings for generation, which may truncate. Flat log-probs are lists of
        # numbers; cumulative outputs share those lists, and others would copy them to cut out what is new.
        params = SamplingParams(
            **settings,
            ignore_eos=True,
            detokenize=False,
            flat_logprobs=True,
            output_kind=RequestOutputKind.CUMULATIVE,
            skip_clone=True,
        )
        async with aclosing(engine.generate(tokens_input(prompt), params, name)) as steps:
            async for output in steps:
                yield output
    except VLLMClientError as error:
        raise RefusedTurn(f"vLLM refuses a request: {error}") from error


def description(config: Any) -> Json:
    """What a client has to know of the server.

    Args:
        config: vLLM's `VllmConfig`.
    """
    import vllm

    model, parallel = config.model_config, config.parallel_config
    return {
        "protocol": PROTOCOL,
        "vllm": vllm.__version__,
        "forkgym": version("forkgym"),
        "worker_extension": parallel.worker_extension_cls,
        "workers": parallel.world_size_across_dp,
        "device": config.device_config.device_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "logprobs_mode": model.logprobs_mode,
        "max_logprobs": model.max_logprobs,
        "max_context": model.max_model_len,
        "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "logits_processors": [str(one) for one in model.logits_processors or ()],
        "model": json.loads(model.hf_text_config.to_json_string(use_diff=False)),
        "tokenizer": vocabulary_hash_at(model.tokenizer),
        "weight_transfer": config.weight_transfer_config.backend if config.weight_transfer_config else None,
    }


def refusal(status: int, words: str) -> Response:
    """An answer that says what is wrong."""
    return JSONResponse({"error": words}, status)
