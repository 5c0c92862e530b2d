"""Checkpoints of a run that trains adapters: a plain model's folder to sample from, the adapters to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from forkgym.agents.config import LoraConfig
from forkgym.agents.loading import load_model, load_tokenizer
from forkgym.agents.lora import add_adapters
from forkgym.trainers.runs.checkpoint import Contents, TrainingState, load_latest, save_checkpoint, verify
from tests.agents.tiny import byte_tokenizer, make_model

peft = pytest.importorskip("peft")

HASH = "c" * 64
IDS = torch.arange(3, 15)[None]


class Training:
    """A tiny model with adapters, its optimizer and its scheduler."""

    def __init__(self, *, tied: bool = True, dtype: torch.dtype = torch.float32, rank: int = 4) -> None:
        self.model: PreTrainedModel = make_model(tie_word_embeddings=tied, dtype=dtype)
        if rank:
            add_adapters(self.model, LoraConfig(rank=rank, alpha=8))
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2)
        self.scheduler = LambdaLR(self.optimizer, lambda step: 0.9**step)

    def train(self, steps: range) -> None:
        for step in steps:
            ids = torch.randint(262, (2, 9), generator=torch.Generator().manual_seed(step))
            self.model(input_ids=ids, labels=ids).loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()

    @property
    def contents(self) -> Contents:
        return Contents(self.model, byte_tokenizer(), self.optimizer, self.scheduler)

    def save(self, folder: Path, step: int) -> Path:
        return save_checkpoint(folder, self.contents, TrainingState(HASH, step=step))

    def restore(self, folder: Path) -> None:
        load_latest(folder, HASH).restore(self.contents)

    def logits(self) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.model(input_ids=IDS).logits
        return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_of_adapters_goes_on_to_the_bit(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    unbroken = Training(tied=tied, dtype=dtype)
    unbroken.train(range(3))
    unbroken.save(tmp_path, 3)
    resumed = Training(tied=tied, dtype=dtype)
    resumed.train(range(5, 6))  # has a state of its own, all of which has to go
    resumed.restore(tmp_path)
    for one in (unbroken, resumed):
        one.train(range(3, 6))
    states = [one.model.state_dict() for one in (unbroken, resumed)]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_folder_is_a_plain_models_for_evaluation(tmp_path: Path) -> None:
    training = Training()
    before = training.logits()
    training.train(range(5))
    folder = training.save(tmp_path, 5)
    plain: Any = load_model(str(folder), torch.float32)  # which has peft at hand, and must not apply adapters again
    assert load_tokenizer(str(folder)).eos_token_id == byte_tokenizer().eos_token_id
    assert not hasattr(plain, "peft_config")
    with torch.no_grad():
        found = plain(input_ids=IDS).logits
    assert torch.allclose(found, training.logits(), atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-1)
    assert "adapter/adapter_model.safetensors" in verify(folder).files


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_reads_the_adapters(tmp_path: Path) -> None:
    training = Training()
    training.train(range(5))
    folder = training.save(tmp_path, 5)
    theirs: Any = peft.PeftModel.from_pretrained(make_model(tie_word_embeddings=True), str(folder / "adapter"))
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=IDS).logits, training.logits())


def test_another_base_other_ranks_or_no_adapters_are_refused(tmp_path: Path) -> None:
    training = Training()
    training.train(range(2))
    training.save(tmp_path, 2)
    other = Training()
    embeddings: Any = other.model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"was trained on top of another model.*expected the agent\.model"):
        other.restore(tmp_path)
    with pytest.raises(ValueError, match=r"holds another model: model\.layers\.0.*lora_A\.weight has shape \(4, 48\)"):
        Training(rank=2).restore(tmp_path)
    with pytest.raises(ValueError, match=r"this one has no adapters, see agent\.lora\.rank"):
        Training(rank=0).restore(tmp_path)


def test_adapters_are_not_made_up_where_a_checkpoint_has_none(tmp_path: Path) -> None:
    Training(rank=0).save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"this one has adapters, see agent\.lora\.rank"):
        Training().restore(tmp_path)
