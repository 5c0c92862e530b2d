"""Settings of agents. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import urlsplit


@dataclass(frozen=True)
class VllmConfig:
    """The engine of the vllm agent."""

    memory_fraction: float = 0.4
    """Share of the GPU's memory for the engine, its weights included; the rest is the trainer's. Unused on a CPU."""
    cache_gib: float | None = None
    """Memory of the key-value cache in GiB; by default 1 on a CPU, and on a GPU what memory_fraction leaves."""
    max_context: int | None = None
    """Longest sequence in tokens; by default the model's own limit, or what the cache can hold."""
    eager: bool | None = None
    """Run the model as it is, neither compiled nor captured; by default on a CPU only, where compiling is slow."""
    top_logprobs: int = 64
    """Most likely tokens that entropies are computed from; with a vocabulary of up to 1,024 tokens it is all of them,
    and the entropies are exact."""
    probe_tolerance: float | None = None
    """Largest difference in nats between the engine's and the trained model's log-probs of a fixed prompt; above it the
    run stops. By default 0.001 in float32 and 0.3 in bfloat16, whose rounding alone makes tenths."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if not 0 < self.memory_fraction < 1:
            raise ValueError(f"agent.vllm.memory_fraction is {self.memory_fraction}, expected above 0 and below 1")
        for name in ("cache_gib", "probe_tolerance"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"agent.vllm.{name} is {getattr(self, name)}, expected a number above 0")
        if self.max_context is not None and self.max_context < 16:
            raise ValueError(f"agent.vllm.max_context is {self.max_context}, expected at least 16")
        if self.top_logprobs < 1:
            raise ValueError(f"agent.vllm.top_logprobs is {self.top_logprobs}, expected at least 1")


@dataclass(frozen=True)
class OpenAIConfig:
    """The endpoint of the openai agent. A key, where it needs one, is read from the environment: OPENAI_API_KEY."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the endpoint; requests go to /chat/completions under it."""
    native_tools: bool = False
    """Tell the endpoint of the tools by their schemas, and take the calls that it reports beside a message's text;
    needs the hermes grammar. Otherwise the prompt describes the tools, and calls are read out of the text."""
    timeout_s: float = 300.0
    """Longest time for one reply, in seconds, from the connection to the last byte."""
    retries: int = 5
    """How often a request that failed in a way that may pass is sent again, after growing pauses."""
    extra: str = "{}"
    """JSON object of fields that every request gets on top, such as {"skip_special_tokens": false} for vLLM with a
    model whose markers are special tokens; a field that is null is left out of the request."""

    @property
    def extra_fields(self) -> dict[str, Any]:
        """The object in ``extra``.

        Raises:
            ValueError: There is none.
        """
        try:
            found = json.loads(self.extra)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"agent.openai.extra is {self.extra!r}, expected a JSON object")
        return cast(dict[str, Any], found)

    def __post_init__(self) -> None:
        """Check the fields."""
        parts = urlsplit(self.base_url)  # raises ValueError where it is nothing like an address
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"agent.openai.base_url is {self.base_url!r}, expected such as {OpenAIConfig.base_url!r}")
        if "@" in parts.netloc:
            raise ValueError("agent.openai.base_url holds a user or a password, expected a key in OPENAI_API_KEY")
        if not self.timeout_s > 0:
            raise ValueError(f"agent.openai.timeout_s is {self.timeout_s}, expected a number above 0")
        if self.retries < 0:
            raise ValueError(f"agent.openai.retries is {self.retries}, expected 0 or more")
        taken = [name for name in ("messages", "model", "n", "stream", "tools") if name in self.extra_fields]
        if taken:
            raise ValueError(f"agent.openai.extra holds {taken[0]!r}, which the agent sets itself")


@dataclass(frozen=True)
class AgentConfig:
    """Which policy acts, and how it samples."""

    kind: Literal["transformers", "vllm", "openai", "oracle"] = "transformers"
    """transformers: a model in this process; vllm: vLLM's engine in this process, which takes the model's weights after
    each step; openai: any OpenAI-compatible chat endpoint (evaluation only); oracle: replays each task's known solution
    (evaluation only)."""
    model: str = "embedded"
    """Folder or hub name of a causal language model, or "embedded" for the small one that comes with the package; for
    openai, the name under which the endpoint serves its model."""
    temperature: float = 1.0
    """Temperature of sampling; above 0."""
    slots: int = 128
    """Turns that are decoded side by side; for openai, requests at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    threads: int | None = None
    """CPU threads of PyTorch; by default 1 for the embedded policy, which gains little from more and on a busy machine
    loses a lot, and for any other as many as PyTorch takes."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.temperature > 0:
            raise ValueError(f"agent.temperature is {self.temperature}, expected a number above 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"agent.threads is {self.threads}, expected at least 1")
        if self.kind == "vllm" and not 0.01 <= self.temperature <= 2:
            raise ValueError(f"agent.temperature is {self.temperature}, expected 0.01 to 2, which vLLM can sample at")
        if self.slots < 1:
            raise ValueError(f"agent.slots is {self.slots}, expected at least 1")
