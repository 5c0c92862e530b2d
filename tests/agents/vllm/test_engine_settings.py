"""What engines are started with: the same arguments in this process and on a server's command line."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from forkgym.agents.config import VllmConfig
from forkgym.agents.process_state import unchanged_process
from forkgym.agents.vllm.engine_settings import EngineSettings, engine_arguments, settings_for, write_config
from forkgym.agents.vllm.vllm_launch import as_flags
from tests.agents.tiny import make_model

ON_CPU = EngineSettings("float32", on_cpu=True, slots=8, max_context=None, num_logprobs=262)
ON_GPU = EngineSettings("bfloat16", on_cpu=False, slots=32, max_context=900, num_logprobs=64)


def test_a_cpu_has_its_own_defaults() -> None:
    arguments = engine_arguments(ON_CPU, VllmConfig())
    assert (arguments["kv_cache_memory_bytes"], arguments["block_size"]) == (2**30, 32)
    assert (arguments["enforce_eager"], arguments["enable_chunked_prefill"]) == (True, False)
    assert arguments["max_model_len"] == -1
    gpu = engine_arguments(ON_GPU, VllmConfig(memory_fraction=0.9))
    assert not {"kv_cache_memory_bytes", "block_size", "enforce_eager"} & gpu.keys()
    assert (gpu["enable_chunked_prefill"], gpu["gpu_memory_utilization"], gpu["max_model_len"]) == (True, 0.9, 900)


def test_what_was_asked_for_comes_before_the_defaults() -> None:
    config = VllmConfig(cache_gib=0.5, eager=False)
    assert engine_arguments(ON_CPU, config)["kv_cache_memory_bytes"] == 2**29
    assert "enforce_eager" not in engine_arguments(ON_CPU, config)
    assert engine_arguments(ON_GPU, VllmConfig(eager=True))["enforce_eager"]


def test_settings_follow_from_the_model() -> None:
    model = make_model(max_position_embeddings=128)
    found = settings_for(model, 4, 9, VllmConfig())
    assert found == EngineSettings("float32", on_cpu=True, slots=4, max_context=None, num_logprobs=9)
    assert settings_for(model, 4, 9, VllmConfig(max_context=100)).max_context == 100
    assert settings_for(model, 4, 9, VllmConfig(max_context=200)).max_context == 128  # the model's own limit


def test_flags_are_named_and_negated_as_command_lines_do() -> None:
    arguments: dict[str, str | int | bool] = {
        "max_num_seqs": 8,
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "dtype": "float32",
    }
    words = "--max-num-seqs 8 --enforce-eager --no-enable-chunked-prefill --dtype float32"
    assert as_flags(arguments) == words.split()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("settings", [ON_CPU, ON_GPU, replace(ON_GPU, max_context=None)])
def test_vllm_reads_the_arguments_from_the_flags(settings: EngineSettings, tmp_path: Path) -> None:
    arguments = engine_arguments(settings, VllmConfig())
    write_config(make_model(), tmp_path)
    with unchanged_process(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about one another
        engine_args: Any = import_module("vllm").EngineArgs
        parser = engine_args.add_cli_args(import_module("vllm.utils.argparse_utils").FlexibleArgumentParser())
        parsed = engine_args.from_cli_args(parser.parse_args(["--model", str(tmp_path), *as_flags(arguments)]))
    assert {name: getattr(parsed, name) for name in arguments} == arguments
