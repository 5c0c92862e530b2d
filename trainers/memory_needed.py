"""How much memory of a GPU a run needs, from the shapes of its model and its settings.

What is exact: weights, their copies, gradients and optimizer states, inputs of layers, keys and values. What is an
estimate: activations within a layer, counted for the decoder layers of Qwen, Llama and Mistral under fused attention,
and what libraries take. Adapters' own activations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from forkgym.agents.config import AgentConfig
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.forward.measures import ForwardSettings

GIB = 2**30
HALF, FULL = 2, 4  # bytes of a number in bfloat16 and in float32
LIBRARIES_GIB = 3.0  # CUDA, NCCL, fragments; an estimate
ENGINE_OVERHEAD_GIB = 3.0  # vLLM's activations and graphs, within its share; an estimate


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What a model's memory depends on.

    Attributes:
        parameters: All numbers; tied ones once.
        output: Those of the output layer.
        ends: Inputs plus outputs of every linear layer but the output's, added up: an adapter of rank r has r times as
            many numbers.
        layers: Decoder layers.
        hidden: Width of the states between layers.
        inner: Width within the feed-forward network.
        queries: Query heads x head size.
        keys: Key heads x head size.
        norms_heads: Whether queries and keys are normalised.
    """

    parameters: int
    output: int
    ends: int
    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    norms_heads: bool

    @property
    def token_cache_bytes(self) -> int:
        """Keys and values of one token, in bfloat16."""
        return 2 * self.layers * self.keys * HALF

    @property
    def token_layer_bytes(self) -> int:
        """What one layer keeps of one token for its backward pass, in bfloat16.

        Of each norm its input in float32, the same after division, and its output; queries, keys, values and the
        output of the attention; four times the width of the feed-forward network.
        """
        norms = 2 * (FULL + HALF + HALF) * self.hidden
        heads = (FULL + HALF) * (self.queries + self.keys) if self.norms_heads else 0
        attention = HALF * 2 * (self.queries + self.keys)
        return norms + heads + attention + 4 * HALF * self.inner


@dataclass(frozen=True, slots=True)
class Need:
    """One line of an account."""

    name: str
    gib: float


def sizes_of(config: PreTrainedConfig) -> ModelSizes:
    """Count a model's numbers from its config; no memory is taken for them."""
    with torch.device("meta"):
        model = cast(PreTrainedModel, cast(Any, AutoModelForCausalLM).from_config(config))
    text: Any = config.get_text_config()
    output = cast(torch.nn.Linear, model.get_output_embeddings())
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    head_size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return ModelSizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        output=output.weight.numel(),
        ends=sum(layer.in_features + layer.out_features for layer in linear),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        inner=int(text.intermediate_size),
        queries=int(text.num_attention_heads) * head_size,
        keys=int(text.num_key_value_heads) * head_size,
        norms_heads=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
    )


def state_needs(sizes: ModelSizes, rank: int) -> list[Need]:
    """What a training process holds all the time, with the model in bfloat16; rank 0 trains all weights."""
    lines = [Need("weights, bfloat16", sizes.parameters * HALF / GIB)]
    trained, what = (sizes.ends * rank, f"adapters of rank {rank}") if rank else (sizes.parameters, "copies")
    return [
        *lines,
        Need(f"{what}, float32", trained * FULL / GIB),
        Need("gradients, float32", trained * FULL / GIB),
        Need("AdamW's two moments, float32", 2 * trained * FULL / GIB),
    ]


def step_needs(sizes: ModelSizes, rank: int, tokens: int) -> list[Need]:
    """What a forward and backward pass holds, with gradient checkpointing.

    Args:
        sizes: Of the model.
        rank: Of the adapters; 0 where all weights are trained.
        tokens: Of a micro-batch.
    """
    inputs = (sizes.layers + 1) * tokens * sizes.hidden * HALF
    # The gradients of what the feed-forward network keeps are there at the same time.
    layer = tokens * (sizes.token_layer_bytes + 3 * HALF * sizes.inner)
    logits = 3 * ForwardSettings().chunk_logits * FULL  # logits, their exponentials, their gradient
    summed = [] if rank else [Need("gradient of the output layer on its way", sizes.output * FULL / GIB)]
    return [
        Need(f"inputs of {sizes.layers} layers for {tokens:,} tokens", inputs / GIB),
        Need("one layer, computed again", layer / GIB),
        Need("a chunk of logits, float32", logits / GIB),
        *summed,
    ]


def engine_needs(sizes: ModelSizes, config: AgentConfig, gpu_gib: float) -> list[Need]:
    """What vLLM takes of a GPU: its share, whatever for.

    Raises:
        ValueError: Its weights leave no room for keys and values.
    """
    share = config.vllm.memory_fraction * gpu_gib
    weights = sizes.parameters * HALF / GIB
    rest = share - weights - ENGINE_OVERHEAD_GIB
    if rest <= 0:
        raise ValueError(
            f"agent.vllm.memory_fraction is {config.vllm.memory_fraction} of {gpu_gib:g} GiB, expected more than "
            f"{weights + ENGINE_OVERHEAD_GIB:.1f} GiB for weights and activations"
        )
    return [
        Need("weights, bfloat16", weights),
        Need("activations and graphs (estimate)", ENGINE_OVERHEAD_GIB),
        Need(f"keys and values, {sizes.token_cache_bytes / 1024:g} KiB a token", rest),
    ]


def cached_sequences(sizes: ModelSizes, needs: list[Need], rollout: RolloutConfig) -> int:
    """How many sequences of the greatest length an engine has room for; shared prefixes make it more."""
    return int(needs[-1].gib * GIB) // (sizes.token_cache_bytes * rollout.max_total_tokens)


def total(needs: list[Need]) -> float:
    """GiB of all lines."""
    return sum(need.gib for need in needs)


def account(
    sizes: ModelSizes, agent: AgentConfig, rollout: RolloutConfig, trainer: TrainerConfig, gpu_gib: float
) -> str:
    """Write down what a run needs, line by line.

    Args:
        sizes: Of the model.
        agent: In bfloat16, of kind vllm (one GPU, shared) or vllm-server (GPUs that train, others that serve).
        rollout: Lengths.
        trainer: With gradient checkpointing.
        gpu_gib: Memory of a GPU.

    Raises:
        ValueError: It does not fit; says what there is too much of.
    """
    rank = agent.lora.rank
    state, step = state_needs(sizes, rank), step_needs(sizes, rank, trainer.micro_batch_tokens)
    engine = engine_needs(sizes, agent, gpu_gib)
    shared = agent.kind == "vllm"
    libraries = Need("libraries (estimate)", LIBRARIES_GIB)
    training = [*state, *step, libraries]
    # A colocated engine sleeps while the policy is updated, and while it samples there are no activations.
    sampling = [*state, libraries, *engine] if shared else [*engine, libraries]
    for what, needs in (("training", training), ("sampling", sampling)):
        if total(needs) > gpu_gib:
            raise ValueError(f"{what} needs {total(needs):.1f} GiB, expected at most the GPU's {gpu_gib:g}")
    rows = cached_sequences(sizes, engine, rollout)
    lines = [f"GiB of a GPU's {gpu_gib:g}, for {sizes.parameters / 1e9:.2f} billion parameters", "Held by training:"]
    lines += [line_of(need) for need in state]
    lines += ["In a step, besides:", *(line_of(need) for need in [*step, libraries])]
    lines += [f"vLLM's {agent.vllm.memory_fraction:g} of {'the' if shared else 'a serving'} GPU:"]
    lines += [line_of(need) for need in engine]
    lines += [f"  which is {rows} sequences of {rollout.max_total_tokens:,} tokens; agent.slots is {agent.slots}"]
    asleep = ", vLLM asleep" if shared else ", on a training GPU"
    place = ", no activations" if shared else ", on a serving GPU"
    lines += ["Together:", line_of(Need(f"training{asleep}", total(training)))]
    lines += [line_of(Need(f"sampling{place}", total(sampling)))]
    return "\n".join(lines)


def line_of(need: Need) -> str:
    """A line of an account, in 62 columns."""
    return f"  {need.name:<54}{need.gib:6.1f}"
