"""How a trained model's weights get to vLLM servers: in a file, or from GPU to GPU."""
# vLLM is not installed everywhere, and half typed where it is.
# pyright: standard, reportMissingImports=false

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from forkgym.agents.loop_thread import LoopThread
from forkgym.agents.vllm.vllm_client import ServerClient, ServerProblem

Weights = Sequence[tuple[str, torch.Tensor]]


class WeightTransfer(Protocol):
    """A way for weights to servers."""

    def send(self, weights: Weights, name: str, clients: Sequence[ServerClient]) -> list[ServerProblem | None]:
        """Hand weights over.

        Args:
            weights: Each with its name in the plain model.
            name: What servers call them from now on.
            clients: Of the servers that are to take them.

        Returns:
            What went wrong with each server; None for nothing.
        """
        ...


class FileTransfer:
    """Writes weights to a safetensors file, which the servers read, all at once.

    For servers that see this machine's files: on a CPU, and wherever the time of a file does not matter.

    Args:
        loop: Where the clients live.
        folder: For the file; None for a private one. Servers on other machines have to see it under the same path.
    """

    def __init__(self, loop: LoopThread, folder: str | None = None) -> None:
        self._loop = loop
        self._folder = folder

    def send(self, weights: Weights, name: str, clients: Sequence[ServerClient]) -> list[ServerProblem | None]:
        """Hand weights over; see `WeightTransfer`."""
        with tempfile.TemporaryDirectory(prefix="forkgym-weights-", dir=self._folder) as folder:
            path = Path(folder) / "model.safetensors"
            save_file({one: weight.contiguous() for one, weight in weights}, path)
            work = side_by_side([client.take_weights(str(path), name) for client in clients])
            return self._loop.start(work).result()


class NcclTransfer:
    """Broadcasts weights from the trainer's GPU to those of each server in turn, by vLLM's own weight transfer.

    Covered by tests up to vLLM's calls of NCCL; it has not run between GPUs yet. The probe after each transfer would
    tell if it did not hand over what it should.

    Args:
        loop: Where the clients live.
        workers: Processes of each server, by its client's address.
    """

    def __init__(self, loop: LoopThread, workers: Mapping[str, int]) -> None:
        self._loop = loop
        self._workers = workers
        self._engines: dict[str, tuple[Any, WeightList, TransferSteps]] = {}

    def send(self, weights: Weights, name: str, clients: Sequence[ServerClient]) -> list[ServerProblem | None]:
        """Hand weights over; see `WeightTransfer`."""
        problems: list[ServerProblem | None] = []
        for client in clients:
            try:
                engine, source, steps = self._engine(client, weights)
                source.weights, steps.name = weights, name
                engine.send_weights()
                problems.append(None)
            except ServerProblem as problem:
                self._engines.pop(client.address, None)  # begins anew where the server comes back
                problems.append(problem)
        return problems

    def _engine(self, client: ServerClient, weights: Weights) -> tuple[Any, WeightList, TransferSteps]:
        """The trainer's end of the connection to a server; made at the first use."""
        if client.address not in self._engines:
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            source: Any = WeightList(weights)  # has what vLLM's class of this kind has, which is not always installed
            steps = TransferSteps(self._loop, client)
            info = NCCLTrainerInitInfo(
                master_address="127.0.0.1",
                master_port=free_port(),
                world_size=1 + self._workers[client.address],
                rank=0,
            )
            engine = WeightTransferTrainerFactory.trainer_init(info, client=steps, source=source)
            self._engines[client.address] = (engine, source, steps)
        return self._engines[client.address]


class WeightList:
    """Weights as vLLM's trainer engine asks for them: its ``WeightSource``.

    Args:
        weights: The first ones; later ones have the same names and shapes.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def metadata(self) -> list[Any]:
        """Name, type and shape of each."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights]

    def __iter__(self) -> Any:
        """The weights, in the same order."""
        return iter(self.weights)


class TransferSteps:
    """The server's side of a transfer, as vLLM's trainer engine drives it: its ``VLLMWeightSyncClient``.

    Args:
        loop: Where the client lives.
        client: Of the server.

    Attributes:
        name: What the server calls the next weights.
    """

    def __init__(self, loop: LoopThread, client: ServerClient) -> None:
        self._loop = loop
        self._client = client
        self.name = ""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the group."""
        self._take("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Prepare for weights."""
        self._take("start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive weights, while the trainer sends them."""
        self._take("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Use them."""
        del weight_version  # vLLM's own count; ours is the name
        self._take("finish_weight_update", {})

    def _take(self, step: str, arguments: dict[str, Any]) -> None:
        self._loop.start(self._client.transfer(step, arguments, self.name)).result()


async def side_by_side(works: Sequence[Coroutine[Any, Any, None]]) -> list[ServerProblem | None]:
    """Run these at once; returns the problem of each, and raises what else there was."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ServerProblem):
            raise result
    return [result if isinstance(result, ServerProblem) else None for result in results]


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
