"""AdamW on float32 copies: small steps add up, as they would in float32, and a checkpoint holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from forkgym.trainers import master_weights
from forkgym.trainers.master_weights import MasterWeightAdamW, adamw
from forkgym.trainers.runs.checkpoint import Contents, TrainingState, load_latest, save_checkpoint
from tests.agents.tiny import byte_tokenizer, make_model

HASH = "c" * 64


def linear(value: float, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Linear:
    made = torch.nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        made.weight.fill_(value)
    return made.to(dtype)


def give_gradient(weight: torch.Tensor, step: int) -> None:
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))


def test_steps_too_small_for_half_precision_add_up() -> None:
    # With equal gradients AdamW's every step is the learning rate: 1000 of 1e-5 are 0.01. In bfloat16 the neighbours
    # of 1 are 1 - 1/256 and 1 + 1/128, and 0.99 lies nearest to 1 - 3/256 (0.98828) of its multiples of 1/256.
    module, alone = linear(1.0), linear(1.0)
    ours = adamw(module, 1e-5)
    theirs = torch.optim.AdamW(alone.parameters(), lr=1e-5, weight_decay=0.0)
    for _ in range(1000):
        module.weight.grad = torch.ones(3, 4)
        alone.weight.grad = torch.ones(3, 4, dtype=torch.bfloat16)
        ours.step()
        theirs.step()
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.unique().tolist() == [1 - 3 / 256]
    (master,) = ours.param_groups[0]["params"]
    assert master.dtype == torch.float32
    assert torch.allclose(master, torch.tensor(0.99), atol=1e-5)
    assert alone.weight.unique().tolist() == [1.0]  # what would happen without the copies


def test_the_copies_are_adamws_of_float32_to_the_bit() -> None:
    half, full = linear(0.7), linear(0.0, torch.float32)
    with torch.no_grad():
        full.weight.copy_(half.weight)
    ours = adamw(half, 1e-2)
    theirs = torch.optim.AdamW(full.parameters(), lr=1e-2, weight_decay=0.0)
    schedules = [LambdaLR(optimizer, lambda step: 0.9**step) for optimizer in (ours, theirs)]
    for step in range(20):
        give_gradient(half.weight, step)
        give_gradient(full.weight, step)
        for optimizer, schedule in zip((ours, theirs), schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        assert half.weight.grad is None
        assert torch.equal(ours.param_groups[0]["params"][0], full.weight)
        assert torch.equal(half.weight, full.weight.bfloat16())


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    # 1 + 256 of 1/1024 is 1.25; in bfloat16 each of the small ones would be lost on 1.
    module = linear(1.0)
    adamw(module, 1e-3)
    for scale in [1.0] + [1 / 1024] * 256:
        (module.weight.sum() * scale).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    assert module.weight.grad.unique().tolist() == [1.25]


def test_a_closure_is_called() -> None:
    module = linear(1.0)
    optimizer = adamw(module, 0.1)

    def closure() -> torch.Tensor:
        loss = module.weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 12.0
    assert module.weight.unique().tolist() == [pytest.approx(0.9, abs=1 / 256)]


def test_adamw_itself_where_all_is_float32() -> None:
    assert type(adamw(linear(1.0, torch.float32), 1e-3)) is torch.optim.AdamW
    assert type(adamw(linear(1.0), 1e-3)) is MasterWeightAdamW


def test_only_what_is_trainable_is_stepped() -> None:
    module: Any = torch.nn.Sequential(linear(1.0), linear(1.0, torch.float32))
    module[0].weight.requires_grad_(False)
    optimizer = adamw(module, 1e-3)
    assert type(optimizer) is torch.optim.AdamW  # as with adapters in float32 on a base in half precision
    assert [p is module[1].weight for p in optimizer.param_groups[0]["params"]] == [True]
    module[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no weights with gradients"):
        adamw(module, 1e-3)


def test_weights_of_float32_among_others_have_no_copy() -> None:
    module: Any = torch.nn.Sequential(linear(1.0), linear(1.0, torch.float32))
    optimizer = adamw(module, 1e-3)
    assert [p is module[1].weight for p in optimizer.param_groups[0]["params"]] == [False, True]
    for layer in module:
        layer.weight.grad = torch.ones(3, 4)
    optimizer.step()
    assert module[1].weight.unique().tolist() == [pytest.approx(0.999)]
    assert module[1].weight.grad is not None  # AdamW's own way
    optimizer.zero_grad()
    assert module[1].weight.grad is None


def test_a_group_that_is_added_is_stepped_with_its_own_learning_rate() -> None:
    module, head = linear(1.0), linear(1.0, torch.float32)
    optimizer = adamw(module, 1e-2)
    optimizer.add_param_group({"params": list(head.parameters()), "lr": 1e-1})
    module.weight.grad, head.weight.grad = torch.ones(3, 4), torch.ones(3, 4)
    optimizer.step()
    assert module.weight.unique().tolist() == [pytest.approx(0.99, abs=1 / 256)]
    assert head.weight.unique().tolist() == [pytest.approx(0.9)]
    optimizer.zero_grad()
    assert module.weight.grad is head.weight.grad is None


class Training:
    """A model in bfloat16 with its optimizer and scheduler, prepared by Accelerate as the trainer does."""

    def __init__(self) -> None:
        self.model = make_model(dtype=torch.bfloat16)
        bare = adamw(self.model, 1e-4)
        self.scheduler = LambdaLR(bare, lambda step: 0.9**step)
        self.optimizer: Any = cast(Any, Accelerator(cpu=True)).prepare(self.model, bare)[1]

    def train(self, steps: range) -> None:
        for step in steps:
            ids = torch.randint(262, (2, 9), generator=torch.Generator().manual_seed(step))
            self.model(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)

    @property
    def tensors(self) -> list[torch.Tensor]:
        state = self.optimizer.state_dict()
        moments = [tensor for one in state["state"].values() for tensor in one.values()]
        return [*self.model.state_dict().values(), *state["masters"], *moments]


def contents_of(training: Training) -> Contents:
    return Contents(training.model, byte_tokenizer(), training.optimizer, training.scheduler)


def test_a_checkpoint_goes_on_to_the_bit(tmp_path: Path) -> None:
    unbroken, resumed = Training(), Training()
    unbroken.train(range(3))
    save_checkpoint(tmp_path, contents_of(unbroken), TrainingState(HASH, step=3))
    resumed.train(range(7, 8))
    load_latest(tmp_path, HASH).restore(contents_of(resumed))
    for one in (unbroken, resumed):
        one.train(range(3, 6))
    assert len(unbroken.tensors) == len(resumed.tensors) > 100
    for left, right in zip(unbroken.tensors, resumed.tensors, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    weights = [weight.detach().float() for weight in unbroken.model.parameters()]
    masters: list[torch.Tensor] = unbroken.optimizer.state_dict()["masters"]
    # Not as by rounding on the way: what the copies hold beyond the weights is there.
    assert any(not torch.equal(weight, master) for weight, master in zip(weights, masters, strict=True))


def test_a_state_without_copies_is_refused() -> None:
    module = linear(1.0)
    full = adamw(linear(1.0, torch.float32), 1e-3)
    with pytest.raises(ValueError, match=r"has no float32 copies of the weights: was agent\.dtype another one"):
        adamw(module, 1e-3).load_state_dict(full.state_dict())


def test_older_versions_of_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_weights, "GRADIENTS_OF_ANOTHER_TYPE", False)
    with pytest.raises(ValueError, match=r"bfloat16 needs PyTorch 2\.10 or newer to be trained, this is 2\."):
        adamw(linear(1.0), 1e-3)
