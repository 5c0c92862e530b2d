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
    """Share of the GPU's memory for the engine, its weights included; the rest is the trainer's, and while it updates
    the policy this share too, where the engine sleeps. Unused on a CPU."""
    sleep: bool | None = None
    """Let the engine's memory go while the policy is updated; by default on a GPU, and not on a CPU, which can't."""
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
class VllmServerConfig:
    """The servers of the vllm-server agent. What their engines are asked for, or started with, is in agent.vllm."""

    urls: tuple[str, ...] = ()
    """Addresses of servers that run already, such as http://127.0.0.1:8001, each started with the line that
    scripts/serve_policy.py prints; by default agent.servers of them are started, and stopped with the run."""
    gpus: int = 1
    """GPUs of each server that is started; a model that one can't hold is spread over more."""
    transfer: Literal["file", "nccl"] = "file"
    """How weights get to the servers: in a file that both sides see, or from GPU to GPU of one machine, which is faster
    (and has not been tried on GPUs yet)."""
    weights_dir: str | None = None
    """Folder for that file; by default a private one of this machine."""
    start_timeout_s: float = 900.0
    """Longest time for servers to start, in seconds."""
    answer_timeout_s: float = 30.0
    """Longest time for servers that run already to answer for the first time, in seconds."""
    timeout_s: float = 300.0
    """Longest silence of a server, in seconds, after which it counts as gone and its turns are sampled elsewhere."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for url in self.urls:
            parts = urlsplit(url)  # raises ValueError where it is nothing like an address
            if (
                parts.scheme not in ("http", "https")
                or not parts.hostname
                or parts.path not in ("", "/")
                or parts.query
            ):
                raise ValueError(f"agent.server.urls holds {url!r}, expected such as 'http://127.0.0.1:8001'")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"agent.server.urls is {self.urls}, expected each server once")
        if self.gpus < 1:
            raise ValueError(f"agent.server.gpus is {self.gpus}, expected at least 1")
        for name in ("start_timeout_s", "answer_timeout_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"agent.server.{name} is {getattr(self, name)}, expected a number above 0")


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
class LoraConfig:
    """Low-rank adapters, which are trained in place of the model's weights."""

    rank: int = 0
    """Rank of the adapters; 0 trains the weights themselves."""
    alpha: int = 32
    """What an adapter adds is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Last parts of the names of the layers that get adapters, such as q_proj v_proj; all-linear for every linear layer
    but the output's."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.rank < 0:
            raise ValueError(f"agent.lora.rank is {self.rank}, expected 0 or more")
        if self.alpha < 1:
            raise ValueError(f"agent.lora.alpha is {self.alpha}, expected at least 1")
        if not self.target_modules:
            raise ValueError("agent.lora.target_modules is empty, expected names of layers, or all-linear")


@dataclass(frozen=True)
class AgentConfig:
    """Which policy acts, and how it samples."""

    kind: Literal["transformers", "vllm", "vllm-server", "openai", "oracle"] = "transformers"
    """transformers: a model in this process; vllm: vLLM's engine in this process, which takes the model's weights after
    each step; vllm-server: the same in processes of their own, one or more; openai: any OpenAI-compatible chat endpoint
    (evaluation only); oracle: replays each task's known solution (evaluation only)."""
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
    lora: LoraConfig = field(default_factory=LoraConfig)
    servers: int = 1
    """Servers that vllm-server starts, for each process that trains; none where agent.server.urls names some."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    server: VllmServerConfig = field(default_factory=VllmServerConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.temperature > 0:
            raise ValueError(f"agent.temperature is {self.temperature}, expected a number above 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"agent.threads is {self.threads}, expected at least 1")
        if self.kind in ("vllm", "vllm-server") and not 0.01 <= self.temperature <= 2:
            raise ValueError(f"agent.temperature is {self.temperature}, expected 0.01 to 2, which vLLM can sample at")
        if self.slots < 1:
            raise ValueError(f"agent.slots is {self.slots}, expected at least 1")
        if self.servers < 1:
            raise ValueError(f"agent.servers is {self.servers}, expected at least 1")
