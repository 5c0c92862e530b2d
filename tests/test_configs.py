"""The ready-made configs: the command line reads them, and their accounts of memory are what the program prints."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from forkgym.envs.config import check_options
from forkgym.trainers.commands.command_line import parse_command_line
from forkgym.trainers.memory_needed import sizes_of

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
CONFIGS = sorted((SCRIPTS / "configs").glob("*.yaml"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load(SCRIPTS / "benchmarks" / "memory_needed.py")


def comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#"))


def test_there_is_one_for_each_model_and_task() -> None:
    kinds = {tuple(path.stem.split("-")[:-1] if "lora" in path.stem else path.stem.split("-")) for path in CONFIGS}
    models = {"-".join(kind[:2]) for kind in kinds}
    assert models == {"qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen3-8b"}
    assert {(model, task) for model in models for task in ("gsm8k", "hotpotqa")} == {
        ("-".join(kind[:2]), kind[2]) for kind in kinds
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_line_reads_it(path: Path, program: ModuleType) -> None:
    config = parse_command_line(program.TrainConfig, arguments=["--config", str(path)])
    check_options(config.env)
    assert config.agent.kind == ("vllm" if "-1gpu" in path.stem else "vllm-server")
    assert bool(config.agent.lora.rank) is path.stem.endswith("-lora")
    assert config.agent.dtype == "bfloat16"
    assert config.trainer.gradient_checkpointing
    assert config.env.grammar == "hermes"
    assert config.rollout.max_total_tokens <= config.agent.vllm.max_context
    assert f"--config scripts/configs/{path.name}" in comment(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_account_is_what_the_program_prints(path: Path, program: ModuleType) -> None:
    assert program.needed(path) in comment(path)


def test_parameters_are_those_of_the_files_on_the_hub(program: ModuleType) -> None:
    # The sizes in bytes of the weights there, in bfloat16, are twice these.
    counts = {name: sizes_of(config).parameters for name, config in program.KNOWN.items()}
    assert counts == {
        "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
        "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
        "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen/Qwen3-8B": 8_190_735_360,
    }


def test_what_does_not_fit_is_refused(program: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"needs .* GiB, expected at most the GPU's 48"):
        program.needed(SCRIPTS / "configs" / "qwen2.5-3b-gsm8k-1gpu.yaml", 48.0)
