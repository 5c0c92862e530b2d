"""How much memory of a GPU a training run needs, line by line, from its config file.

    python scripts/benchmarks/memory_needed.py scripts/configs/qwen2.5-7b-gsm8k-1gpu-lora.yaml

The files in scripts/configs have what it prints in a comment.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tyro
from transformers import AutoConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from forkgym.trainers.commands.command_line import parse_command_line
from forkgym.trainers.memory_needed import account, sizes_of

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.train_arpo import TrainConfig  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

GPU_GIB = 79.0  # of one that is sold as 80 GB

# As in the config.json of each on the hub, so that nothing is fetched for them.
QWEN2: Mapping[str, Any] = {"vocab_size": 151936, "num_key_value_heads": 2}
KNOWN: Mapping[str, PreTrainedConfig] = {
    "Qwen/Qwen2.5-1.5B-Instruct": Qwen2Config(
        **QWEN2,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-3B-Instruct": Qwen2Config(
        **QWEN2,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-7B-Instruct": Qwen2Config(
        vocab_size=152064,
        num_key_value_heads=4,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen3-8B": Qwen3Config(
        vocab_size=151936,
        num_key_value_heads=8,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Config:
    """What to account for.

    Attributes:
        file: YAML file of settings for scripts/train_arpo.py.
        gpu_gib: Memory of a GPU; by default of one that is sold as 80 GB.
    """

    file: tyro.conf.Positional[Path]
    gpu_gib: float = GPU_GIB


def needed(file: Path, gpu_gib: float = GPU_GIB) -> str:
    """The account of a config file's run.

    Raises:
        ValueError: It does not fit.
    """
    config = parse_command_line(TrainConfig, arguments=["--config", str(file)])
    name = config.agent.model
    model = KNOWN.get(name) or cast(PreTrainedConfig, AutoConfig.from_pretrained(name))
    return account(sizes_of(model), config.agent, config.rollout, config.trainer, gpu_gib)


def main(config: Config) -> None:
    """Print it."""
    try:
        print(needed(config.file, config.gpu_gib))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(tyro.cli(Config))
