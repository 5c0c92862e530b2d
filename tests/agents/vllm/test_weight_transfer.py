"""Weights on their way to servers: what is in the file, and what vLLM's transfer between GPUs is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import safetensors.torch
import torch

from forkgym.agents.loop_thread import LoopThread
from forkgym.agents.vllm.vllm_client import ServerClient, ServerProblem, ServerRefusal
from forkgym.agents.vllm.weight_transfer import FileTransfer, NcclTransfer, TransferSteps

WEIGHTS = [("a.weight", torch.arange(6.0).reshape(2, 3).T), ("b", torch.tensor([1.5], dtype=torch.bfloat16))]


class FakeClient:
    """Notes what it is asked for."""

    def __init__(self, address: str, problem: ServerProblem | None = None) -> None:
        self.address = address
        self.problem = problem
        self.taken: dict[str, torch.Tensor] = {}
        self.steps: list[tuple[str, dict[str, Any], str]] = []

    async def take_weights(self, path: str, name: str) -> None:
        """Read the file."""
        if self.problem is not None:
            raise self.problem
        self.taken = safetensors.torch.load_file(path)
        self.path, self.name = Path(path), name

    async def transfer(self, step: str, arguments: dict[str, Any], name: str) -> None:
        """Note the step."""
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        self.steps.append((step, arguments, name))


async def nothing() -> None:
    """Close nothing."""


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread("test", nothing)
    yield loop
    loop.close()


def clients(*fakes: FakeClient) -> list[ServerClient]:
    return cast(list[ServerClient], list(fakes))


def test_every_server_reads_the_same_file_which_is_gone_afterwards(loop: LoopThread, tmp_path: Path) -> None:
    one, other = FakeClient("a"), FakeClient("b")
    assert FileTransfer(loop, str(tmp_path)).send(WEIGHTS, "run/1", clients(one, other)) == [None, None]
    for fake in (one, other):
        assert fake.name == "run/1"
        assert fake.taken.keys() == {"a.weight", "b"}
        for name, weight in WEIGHTS:
            assert fake.taken[name].dtype == weight.dtype
            assert torch.equal(fake.taken[name], weight)
    assert tmp_path in one.path.parents
    assert list(tmp_path.iterdir()) == []


def test_the_problem_of_one_server_is_not_the_others(loop: LoopThread) -> None:
    problem = ServerRefusal("no", 422)
    one, other = FakeClient("a", problem), FakeClient("b")
    assert FileTransfer(loop).send(WEIGHTS, "run/1", clients(one, other)) == [problem, None]
    assert other.taken


@dataclass
class InitInfo:
    """As vLLM's."""

    master_address: str
    master_port: int
    world_size: int
    rank: int


@dataclass(frozen=True)
class ParamMeta:
    """As vLLM's."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class TrainerEngine:
    """As vLLM's, without the broadcast: it drives the server through the same steps."""

    sent: list[list[tuple[str, torch.Tensor]]] = []

    def __init__(self, client: Any, source: Any) -> None:
        self.client, self.source = client, source

    @classmethod
    def trainer_init(cls, info: InitInfo, *, client: Any, source: Any) -> TrainerEngine:
        """Join the group."""
        client.init_weight_transfer_engine({"world_size": info.world_size, "rank_offset": 1})
        return cls(client, source)

    def send_weights(self) -> None:
        """Tell the server what comes, and send it."""
        meta = self.source.metadata()
        self.client.start_weight_update()
        self.client.update_weights({"names": [one.name for one in meta], "shapes": [list(one.shape) for one in meta]})
        TrainerEngine.sent.append(list(self.source))
        self.client.finish_weight_update()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules in the place of vLLM's."""
    root = "vllm.distributed.weight_transfer"
    contents: dict[str, dict[str, object]] = {
        "vllm": {},
        "vllm.distributed": {},
        root: {"WeightTransferTrainerFactory": TrainerEngine},
        f"{root}.nccl_engine": {"NCCLTrainerInitInfo": InitInfo},
        f"{root}.base": {"ParamMeta": ParamMeta},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(TrainerEngine, "sent", [])


@pytest.mark.usefixtures("vllm")
def test_a_transfer_between_gpus_takes_vllms_steps_and_names_the_weights(loop: LoopThread) -> None:
    fake = FakeClient("a")
    transfer = NcclTransfer(loop, {"a": 2})
    assert transfer.send(WEIGHTS, "run/1", clients(fake)) == [None]
    others = [(name, weight + 1) for name, weight in WEIGHTS]
    assert transfer.send(others, "run/2", clients(fake)) == [None]
    about = {"update_info": {"names": ["a.weight", "b"], "shapes": [[3, 2], [1]]}}
    steps: list[tuple[str, object]] = [
        ("start_weight_update", {}),
        ("update_weights", about),
        ("finish_weight_update", {}),
    ]
    # The group is made once: the trainer and the server's two workers.
    assert fake.steps[0][:2] == ("init_weight_transfer_engine", {"init_info": {"world_size": 3, "rank_offset": 1}})
    assert [step[:2] for step in fake.steps[1:]] == steps + steps
    assert [step[2] for step in fake.steps[1:]] == ["run/1"] * 3 + ["run/2"] * 3
    assert [sent[0][1] is given[0][1] for sent, given in zip(TrainerEngine.sent, (WEIGHTS, others), strict=True)] == [
        True,
        True,
    ]


@pytest.mark.usefixtures("vllm")
def test_a_group_is_made_anew_for_a_server_that_failed(loop: LoopThread) -> None:
    fake = FakeClient("a", ServerProblem("gone"))
    transfer = NcclTransfer(loop, {"a": 1})
    assert [str(problem) for problem in transfer.send(WEIGHTS, "run/1", clients(fake))] == ["gone"]
    fake.problem = None
    assert transfer.send(WEIGHTS, "run/2", clients(fake)) == [None]
    assert fake.steps[0][0] == "init_weight_transfer_engine"
    fake.problem = ServerProblem("gone again")
    assert transfer.send(WEIGHTS, "run/3", clients(fake)) == [fake.problem]
    fake.problem = None
    assert transfer.send(WEIGHTS, "run/4", clients(fake)) == [None]
    assert [step[0] for step in fake.steps].count("init_weight_transfer_engine") == 2


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_has_what_the_transfer_calls() -> None:
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import ParamMeta as Theirs
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info = NCCLTrainerInitInfo(**vars(InitInfo("127.0.0.1", 1, 2, 0)))
    assert info.is_sender
    assert info.backend in WeightTransferTrainerFactory._registry
    assert Theirs("b", torch.bfloat16, (1,)).shape == (1,)
    steps: Any = TransferSteps(cast(LoopThread, None), cast(ServerClient, None))
    assert isinstance(steps, VLLMWeightSyncClient)
