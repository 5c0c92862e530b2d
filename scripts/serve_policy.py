"""Print the line that starts a vLLM server for training with --agent.kind vllm-server, or start it.

The server has the model's shape and no weights yet: the trainer sends them. Give the trainer its address:

    python scripts/serve_policy.py Qwen/Qwen2.5-1.5B-Instruct --port 8001 --run
    python scripts/train_arpo.py --agent.kind vllm-server --agent.model Qwen/Qwen2.5-1.5B-Instruct
        --agent.server.urls http://127.0.0.1:8001
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import tyro

from forkgym.agents.config import VllmConfig
from forkgym.trainers.commands.command_line import user_errors


@dataclass(frozen=True)
class ServePolicyConfig:
    """What to serve, and where."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder or hub name of a causal language model, or embedded, as --agent.model of the trainer."""
    port: int = 8001
    """Port to listen on."""
    host: str = "127.0.0.1"
    """Address to listen on. Who reaches it can replace the weights, so any other than this machine's own needs a secret
    in FORKGYM_SERVER_KEY, here and where the trainer runs."""
    run: bool = False
    """Start the server, in place of this program."""
    slots: int = 128
    """Most turns that are decoded side by side."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights, as --agent.dtype of the trainer."""
    gpus: int = 1
    """GPUs that the model is spread over."""
    transfer: Literal["file", "nccl"] = "file"
    """How weights come, as --agent.server.transfer of the trainer."""
    threads: int = 1
    """CPU threads, where there is no GPU."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """The engine, as --agent.vllm of the trainer."""


def main(config: ServePolicyConfig) -> int:
    """Print the line, or become the server."""
    with user_errors():
        import torch
        from transformers import AutoConfig

        from forkgym.agents.loading import UNUSABLE, model_location, quiet_libraries, unusable
        from forkgym.agents.vllm.engine_settings import EngineSettings
        from forkgym.agents.vllm.sampled_model import logprobs_to_ask
        from forkgym.agents.vllm.server_protocol import KEY_VARIABLE
        from forkgym.agents.vllm.vllm_launch import launch_line, listen_on

        quiet_libraries()
        address = listen_on(config.host, config.port, os.environ.get(KEY_VARIABLE, ""))
        location = model_location(config.model)
        try:
            loaded = cast(Any, AutoConfig.from_pretrained(location))
        except UNUSABLE as error:
            raise ValueError(unusable("model", config.model, error)) from error
        text_config: Any = loaded.get_text_config()
        own_limit = int(getattr(text_config, "max_position_embeddings", 0))
        wanted = config.vllm.max_context
        settings = EngineSettings(
            dtype=config.dtype,
            on_cpu=not torch.cuda.is_available(),
            slots=config.slots,
            max_context=wanted if wanted is None or not own_limit else min(wanted, own_limit),
            num_logprobs=logprobs_to_ask(int(text_config.vocab_size), config.vllm),
            threads=config.threads,
            gpus=config.gpus,
            nccl=config.transfer == "nccl",
        )
        line = launch_line(location, settings, config.vllm, address)
    if not config.run:
        print(line)
        return 0
    sys.stdout.flush()
    os.execve(line.command[0], line.command, {**os.environ, **line.environment})


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ServePolicyConfig, description=__doc__, use_underscores=True)))
