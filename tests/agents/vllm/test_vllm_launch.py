"""How servers are started: the line, the GPUs, and what is left of them at the end."""

from __future__ import annotations

import shlex
import stat
import sys
import time
from pathlib import Path

import pytest

from forkgym.agents.config import AgentConfig, VllmConfig, VllmServerConfig
from forkgym.agents.vllm import vllm_launch
from forkgym.agents.vllm.engine_settings import EngineSettings
from forkgym.agents.vllm.serving import launch, own_addresses, visible_gpus
from forkgym.agents.vllm.vllm_launch import LaunchedServers, LaunchLine, launch_line, listen_on, server_gpus
from forkgym.agents.vllm.vllm_server import VllmServerAgent
from tests.agents.tiny import byte_tokenizer, make_model

SETTINGS = EngineSettings("float32", on_cpu=True, slots=8, max_context=None, num_logprobs=262)
DEADLINE_S = 60.0


def test_the_line_for_a_cpu() -> None:
    line = launch_line("folder", SETTINGS, VllmConfig(), listen_on("127.0.0.1", 8001, key=""))
    words = shlex.split(str(line))
    assert words[0] == "env"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING=0" in words
    for flag, value in (
        ("--model", "folder"),
        ("--host", "127.0.0.1"),
        ("--port", "8001"),
        ("--generation-config", "vllm"),
        ("--logprobs-mode", "processed_logprobs"),
        ("--max-logprobs", "262"),
        ("--max-model-len", "-1"),
        ("--kv-cache-memory-bytes", str(2**30)),
    ):
        assert words[words.index(flag) + 1] == value
    assert {"--enforce-eager", "--no-enable-chunked-prefill", "--enable-prefix-caching"} <= set(words)
    assert "--weight-transfer-config" not in words


def test_the_line_for_gpus() -> None:
    settings = EngineSettings("bfloat16", on_cpu=False, slots=8, max_context=900, num_logprobs=64, gpus=2, nccl=True)
    line = launch_line("m", settings, VllmConfig(memory_fraction=0.9), ["--uds", "x"])
    words = line.command
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[words.index("--max-model-len") + 1] == "900"
    assert words[words.index("--gpu-memory-utilization") + 1] == "0.9"
    assert words[words.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    assert not {"--enforce-eager", "--no-enable-chunked-prefill", "--kv-cache-memory-bytes"} & set(words)
    assert "OMP_NUM_THREADS" not in line.environment


def test_a_server_that_others_can_reach_needs_a_secret() -> None:
    with pytest.raises(ValueError, match=r"host is '0.0.0.0', from where others may reach the server"):
        listen_on("0.0.0.0", 8001, key="")
    assert listen_on("0.0.0.0", 8001, key="secret") == ["--host", "0.0.0.0", "--port", "8001"]
    with pytest.raises(ValueError, match="port is 0, expected 1 to 65535"):
        listen_on("127.0.0.1", 0, key="")


def test_trainers_have_the_first_gpus_and_servers_the_next() -> None:
    eight = [str(one) for one in range(8)]
    assert server_gpus(2, 1, 1, 0, eight) == ["1", "2"]
    assert server_gpus(1, 2, 2, 0, eight) == ["2,3"]
    assert server_gpus(1, 2, 2, 1, eight) == ["4,5"]
    with pytest.raises(ValueError, match=r"agent.servers is 2: .* makes 9 GPUs, and there are 8"):
        server_gpus(2, 4, 1, 0, eight)


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,")
    assert visible_gpus() == ["3", "5"]


def test_training_processes_share_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["a", "b", "c"]
    assert own_addresses(urls) == urls
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert own_addresses(urls) == ["b"]
    assert own_addresses([]) == []
    with pytest.raises(ValueError, match="has 1 addresses for 2 training processes"):
        own_addresses(["a"])


def in_place_of_vllm(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let servers be processes that run a program of Python."""

    def line(model: object, settings: object, config: object, address: object) -> LaunchLine:
        del model, settings, config, address
        return LaunchLine({"GREETING": "hello"}, (sys.executable, "-c", program))

    monkeypatch.setattr(vllm_launch, "launch_line", line)

    def found(name: str) -> object:
        return name

    monkeypatch.setattr(vllm_launch, "find_spec", found)


def test_servers_end_with_the_agent_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_vllm(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setenv("RANK", "3")
    servers = LaunchedServers(make_model(), [{}, {}], SETTINGS, VllmConfig())
    folder = Path(servers.addresses[0].removeprefix("unix:")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "config.json").is_file()
    assert servers.addresses == [f"unix:{folder}/0", f"unix:{folder}/1"]
    assert servers.ended(servers.addresses[1]) is None
    processes = list(servers._processes)
    servers.close()
    assert all(process.poll() is not None for process in processes)
    assert not folder.exists()
    servers.close()


def test_a_server_that_dies_at_the_start_is_named_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, sys; print(os.environ['GREETING'], os.environ.get('RANK')); sys.exit('no memory')"
    in_place_of_vllm(monkeypatch, program)
    monkeypatch.setenv("RANK", "3")  # of the trainer, which is nothing to a server
    model = make_model()
    servers = launch(model, AgentConfig(kind="vllm-server", model="x"))
    words = r"(?s)it ended with status 1; its log is (\S+) and ends with.*hello None.*no memory"
    with pytest.raises(ValueError, match=words) as caught:
        VllmServerAgent(model, byte_tokenizer(), servers)
    log = Path(str(caught.value).partition("its log is ")[2].partition(" ")[0])
    assert "no memory" in log.read_text()
    log.unlink()


def test_a_server_that_does_not_start_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_vllm(monkeypatch, "import time; time.sleep(600)")
    model = make_model()
    servers = launch(model, AgentConfig(kind="vllm-server", model="x"))
    processes = list(servers._processes)
    with pytest.raises(ValueError, match="it did not answer in time; its log is") as caught:
        VllmServerAgent(model, byte_tokenizer(), servers, config=VllmServerConfig(start_timeout_s=0.3))
    Path(str(caught.value).partition("its log is ")[2]).unlink()
    deadline = time.monotonic() + DEADLINE_S
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline


def test_a_missing_vllm_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if there were none
    with pytest.raises(
        ValueError, match=r"needs vLLM, which is not installed, to start servers: pip install forkgym\[v"
    ):
        launch(make_model(), AgentConfig(kind="vllm-server", model="x"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": ("127.0.0.1:8001",)}, "urls holds '127.0.0.1:8001', expected such as 'http://127.0.0.1:8001'"),
        ({"urls": ("http://a/v1",)}, "urls holds 'http://a/v1'"),
        ({"urls": ("http://a", "http://a")}, "expected each server once"),
        ({"gpus": 0}, "gpus is 0, expected at least 1"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0, expected a number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmServerConfig(**settings)  # type: ignore[arg-type]


def test_nccl_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="transfer is 'nccl', expected 'file', as the model is not on a GPU"):
        VllmServerAgent(make_model(), byte_tokenizer(), ["http://x"], config=VllmServerConfig(transfer="nccl"))
