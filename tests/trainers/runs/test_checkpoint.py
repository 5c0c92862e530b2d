"""Checkpoints: exact, whole or not there, and never lost to a kill or a bad disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from forkgym.agents.loading import load_model, load_tokenizer
from forkgym.trainers.rollouts.branching import EntropyScale
from forkgym.trainers.runs.checkpoint import (
    Checkpoint,
    Contents,
    TrainingState,
    list_checkpoints,
    load_latest,
    pack_state,
    save_checkpoint,
    unpack_state,
    verify,
)

CONFIG_HASH = "c" * 64
VOCABULARY = 16


def make_model(seed: int, *, hidden: int = 8, layers: int = 1, tied: bool = True) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            tie_word_embeddings=tied,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")), eos_token="w1", pad_token="w2"
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in training, small enough to read."""

    model: Qwen3ForCausalLM
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR

    @property
    def contents(self) -> Contents:
        return Contents(self.model, make_tokenizer(), self.optimizer, self.scheduler)

    def train(self, steps: range) -> None:
        """Take steps on tokens that depend on the step alone."""
        for step in steps:
            tokens = torch.randint(VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(step))
            self.model(input_ids=tokens, labels=tokens).loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()

    def everything(self) -> dict[str, Any]:
        """All that decides how training goes on, in a form that `same` compares."""
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }


def make(seed: int, *, tied: bool = True) -> Trained:
    """A model with AdamW in two groups and a learning rate that falls by a tenth each step."""
    model = make_model(seed, tied=tied)
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    rest = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    groups: list[dict[str, Any]] = [{"params": rest, "betas": (0.8, 0.99)}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, amsgrad=True)
    return Trained(model, optimizer, LambdaLR(optimizer, lambda step: 0.9**step))


def same(left: object, right: Any) -> bool:
    """Equal in values to the bit and in types, at any depth."""
    if kind(left) != kind(right):
        return False
    if isinstance(left, torch.Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return alike and bytes_of(left) == bytes_of(right)
    if isinstance(left, dict):
        mapping = cast("dict[object, object]", left)
        return same(list(mapping), list(right)) and all(same(item, right[key]) for key, item in mapping.items())
    if isinstance(left, list | tuple):
        items = cast("list[object]", left)
        return len(items) == len(right) and all(map(same, items, right))
    return repr(left) == repr(right)


def kind(value: object) -> str:
    return type(value).__qualname__


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def state(step: int) -> TrainingState:
    return TrainingState(
        config_hash=CONFIG_HASH,
        step=step,
        version=step - 1,
        entropy_scale=EntropyScale(3, 0.1, 1 / 3),
        skipped_steps=1,
    )


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def latest(folder: Path) -> Checkpoint:
    return load_latest(folder, CONFIG_HASH)


def no_fsync(descriptor: int) -> None:
    """Instead of os.fsync: what that secures is not seen from a test, and it takes most of a save's time."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_fsync)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Two steps in; no test trains it further."""
    made = make(seed=1)
    made.train(range(2))
    return made


@pytest.fixture(scope="module")
def saved_twice(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with steps 50 and 100, for tests that copy it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    for step in (50, 100):
        save_checkpoint(folder, trained.contents, state(step))
    return folder


@pytest.fixture
def two(saved_twice: Path, tmp_path: Path) -> Path:
    """A folder with steps 50 and 100."""
    return shutil.copytree(saved_twice, tmp_path / "checkpoints")


# Going on.


@pytest.mark.parametrize("tied", [True, False])
def test_training_goes_on_to_the_bit(tmp_path: Path, tied: bool) -> None:
    unbroken = make(seed=1, tied=tied)
    unbroken.train(range(3))
    save_checkpoint(tmp_path, unbroken.contents, state(3))
    resumed = make(seed=2, tied=tied)
    resumed.train(range(5, 6))  # has a state of its own, all of which has to go
    checkpoint = latest(tmp_path)
    checkpoint.restore(resumed.contents)
    assert checkpoint.state == state(3)
    assert same(resumed.everything(), unbroken.everything())
    for one in (unbroken, resumed):
        one.train(range(3, 6))
    assert same(resumed.everything(), unbroken.everything())
    assert resumed.scheduler.get_last_lr() == [pytest.approx(1e-2 * 0.9**6)] * 2


def test_a_checkpoint_of_the_start_has_no_optimizer_state_yet(tmp_path: Path) -> None:
    start = make(seed=1)
    save_checkpoint(tmp_path, start.contents, TrainingState(CONFIG_HASH))
    resumed = make(seed=2)
    resumed.train(range(1))
    checkpoint = latest(tmp_path)
    checkpoint.restore(resumed.contents)
    assert checkpoint.path == tmp_path / "step-000000"
    assert checkpoint.state == TrainingState(CONFIG_HASH, 0, 0, EntropyScale(0, 0.0, 0.0), 0)
    assert same(resumed.everything(), start.everything())


def test_what_accelerate_prepared_is_saved_and_restored(tmp_path: Path) -> None:
    def prepared(seed: int) -> Trained:
        bare = make(seed)
        accelerator: Any = Accelerator(cpu=True)
        _, optimizer, scheduler = accelerator.prepare(bare.model, bare.optimizer, bare.scheduler)
        return Trained(bare.model, optimizer, scheduler)

    unbroken, resumed = prepared(1), prepared(2)
    unbroken.train(range(2))
    save_checkpoint(tmp_path, unbroken.contents, state(2))
    latest(tmp_path).restore(resumed.contents)
    for one in (unbroken, resumed):
        one.train(range(2, 4))
    assert same(resumed.everything(), unbroken.everything())


def test_weights_of_mixed_types_are_not_rounded(tmp_path: Path) -> None:
    def mixed(seed: int) -> Trained:
        made = make(seed)
        made.model.bfloat16()
        made.model.model.norm.float()
        torch.nn.init.normal_(made.model.model.norm.weight)
        return made

    old, new = mixed(1), mixed(2)
    save_checkpoint(tmp_path, old.contents, state(1))
    latest(tmp_path).restore(new.contents)
    assert {tensor.dtype for tensor in new.model.state_dict().values()} == {torch.bfloat16, torch.float32}
    for name, tensor in old.model.state_dict().items():
        assert torch.equal(tensor, new.model.state_dict()[name]), name


def test_a_checkpoint_is_a_models_folder(two: Path, trained: Trained) -> None:
    path = str(latest(two).path)
    model, tokenizer = load_model(path, torch.float32), load_tokenizer(path)
    tokens = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, trained.model(tokens).logits)
    assert tokenizer.convert_tokens_to_ids(["w3", "w7"]) == [3, 7]


def test_restored_tensors_do_not_depend_on_the_file(two: Path) -> None:
    checkpoint = latest(two)
    one, other = make(1), make(1)
    checkpoint.restore(one.contents)
    one.train(range(2, 4))
    assert latest(two) == checkpoint
    checkpoint.restore(other.contents)
    shutil.rmtree(two)
    other.train(range(2, 4))
    assert same(one.everything(), other.everything())


def test_another_model_is_refused(two: Path) -> None:
    trained = make(1)
    message = r"step-000100 holds another model: lm_head.weight has shape \(16, 8\) there, \(16, 4\) here"
    with pytest.raises(ValueError, match=message):
        latest(two).restore(replace(trained.contents, model=make_model(1, hidden=4)))
    deeper = make_model(1, layers=2)
    with pytest.raises(ValueError, match=r"layers\.1\..* has shape None there"):
        latest(two).restore(replace(trained.contents, model=deeper))


def test_another_optimizer_is_refused(two: Path) -> None:
    trained = make(1)
    optimizer = torch.optim.AdamW(trained.model.parameters())
    with pytest.raises(ValueError, match="parameter group"):
        latest(two).restore(replace(trained.contents, optimizer=optimizer))


# What is in the folder.


def test_every_file_is_vouched_for_and_none_is_pickled(two: Path) -> None:
    path = two / "step-000100"
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files"]) == set(names(path)) - {"manifest.json"}
    for name, expected in manifest["files"].items():
        content = (path / name).read_bytes()
        assert expected == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(manifest["versions"]) == {"python", "forkgym", "torch", "transformers"}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["config_hash"] == CONFIG_HASH
    assert {Path(name).suffix for name in names(path)} == {".json", ".safetensors"}
    training = json.loads((path / "training.json").read_text(encoding="utf-8"))
    assert training == {
        "config_hash": CONFIG_HASH,
        "step": 100,
        "version": 99,
        "entropy_scale": {"count": 3, "mean": 0.1, "squares": 1 / 3},
        "skipped_steps": 1,
    }


@settings(max_examples=20)
@given(mean=st.floats(allow_nan=False, allow_infinity=False), squares=st.floats(0, 1e300))
def test_where_training_stands_is_exact(
    tmp_path_factory: pytest.TempPathFactory, trained: Trained, mean: float, squares: float
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    stands = replace(state(1), entropy_scale=EntropyScale(2, mean, squares))
    save_checkpoint(folder, trained.contents, stands)
    assert repr(latest(folder).state) == repr(stands)


def test_a_broken_scale_is_not_saved(two: Path, trained: Trained) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(two, trained.contents, replace(state(150), entropy_scale=EntropyScale(2, math.nan, 0.0)))
    assert latest(two).state.step == 100


def test_a_state_is_split_into_json_and_tensors() -> None:
    moment = torch.tensor([1.0, 2.0])
    tensors: dict[str, torch.Tensor] = {}
    given_state = {"state": {0: {"step": moment}}, "betas": (0.9, math.inf), "lr": [0.1, None, True]}
    packed = pack_state(given_state, "optimizer", tensors)
    assert packed == {
        "dict": [
            ["state", {"dict": [[0, {"dict": [["step", {"tensor": "optimizer/state/0/step"}]]}]]}],
            ["betas", {"tuple": [0.9, {"float": "inf"}]}],
            ["lr", [0.1, None, True]],
        ]
    }
    assert list(tensors) == ["optimizer/state/0/step"]
    back: dict[str, Any] = unpack_state(packed, tensors)
    assert same(back, given_state)
    back["state"][0]["step"].zero_()
    assert moment.tolist() == [1.0, 2.0]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
TENSORS = st.sampled_from(
    [
        torch.tensor(3.0),
        torch.zeros(0, 2),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([math.nan, -0.0], dtype=torch.float64),
        torch.tensor([True, False]),
    ]
)
STATES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.sampled_from(["a", "tensor", "dict"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=STATES)
def test_any_state_comes_back_as_it_was(value: object) -> None:
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(pack_state(value, "state", tensors), allow_nan=False)
    assert same(unpack_state(json.loads(text), tensors), value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [OrderedDict[str, int](b=1)]}, "optimizer/a/0: cannot store a OrderedDict"),
        ({"a": {1, 2}}, "optimizer/a: cannot store a set"),
        ({"a": len}, "optimizer/a: cannot store a builtin_function_or_method"),
        ({"a": {0.5: 1}}, r"optimizer/a: cannot store the key 0\.5"),
        ({True: 1}, "optimizer: cannot store the key True"),
        ({"a/b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, "both called optimizer/a/b"),
    ],
)
def test_what_would_come_back_changed_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_state(value, "optimizer", {})


def test_a_number_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    trained = make(1)
    scheduler = ReduceLROnPlateau(trained.optimizer)
    assert scheduler.best == math.inf
    save_checkpoint(tmp_path, replace(trained.contents, scheduler=scheduler), state(1))
    scheduler.step(0.5)
    latest(tmp_path).restore(replace(trained.contents, scheduler=scheduler))
    assert scheduler.best == math.inf


# Bad checkpoints.


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, os.unlink, replace_by_folder])
@pytest.mark.parametrize("name", ["model.safetensors", "updates.safetensors", "updates.json", "manifest.json"])
def test_a_bad_checkpoint_is_set_aside_and_the_one_before_is_taken(
    two: Path, name: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    damage(two / "step-000100" / name)
    checkpoint = latest(two)
    assert checkpoint.path == two / "step-000050"
    assert checkpoint.state == state(50)
    assert names(two) == ["step-000050", "step-000100.bad"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"checkpoint {two}/step-000100" in record.getMessage()
    assert name in record.getMessage()
    assert record.getMessage().endswith(f"set aside as {two}/step-000100.bad")


def test_every_file_is_checked(saved_twice: Path, tmp_path: Path) -> None:
    for name in names(saved_twice / "step-000100"):
        folder = shutil.copytree(saved_twice, tmp_path / name)
        flip_a_bit(folder / "step-000100" / name)
        assert latest(folder).state.step == 50, name


def test_several_bad_ones_of_a_step_are_all_kept(two: Path, trained: Trained) -> None:
    for _ in range(3):
        save_checkpoint(two, trained.contents, state(100))
        flip_a_bit(two / "step-000100" / "training.json")
        assert latest(two).state.step == 50
    assert names(two) == ["step-000050", "step-000100.bad", "step-000100.bad2", "step-000100.bad3"]


def test_without_a_good_one_there_is_nothing_to_resume(two: Path, tmp_path: Path) -> None:
    for name in names(two):
        (two / name / "manifest.json").unlink()
    for folder in (two, tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError) as caught:
            latest(folder)
        assert str(caught.value) == (
            f"{folder} holds no checkpoint to resume from; start a new run with another --run_dir"
        )
    assert names(two) == ["step-000050.bad", "step-000100.bad"]


def edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_another_format_is_refused_but_not_called_bad(two: Path) -> None:
    edit_manifest(two / "step-000100", format=2, versions={"forkgym": "9.0"})
    with pytest.raises(ValueError, match=r"step-000100 has format 2, expected 1: it was written by forkgym 9\.0"):
        latest(two)
    assert names(two) == ["step-000050", "step-000100"]


def test_other_versions_and_settings_are_named(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest(two).state.step == 100
    assert caplog.messages == []
    edit_manifest(two / "step-000100", versions={"torch": "1.0"})
    load_latest(two, "d" * 64)
    settings, versions = caplog.messages
    assert settings == f"checkpoint {two}/step-000100 was written under other settings than those of now"
    assert versions.startswith(f"checkpoint {two}/step-000100 was written by {{'torch': '1.0'}}, this is {{'python'")


def test_steps_are_ordered_as_numbers(tmp_path: Path, trained: Trained) -> None:
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, trained.contents, state(step))
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    assert latest(tmp_path).state.step == 1_000_000


def test_other_names_are_let_be(two: Path, trained: Trained) -> None:
    others = ["step-000200.bad", "step-12", "step-abc", "notes"]
    for name in others:
        (two / name).mkdir()
    assert latest(two).state.step == 100
    save_checkpoint(two, trained.contents, state(300))
    assert names(two) == sorted(["step-000100", "step-000300", *others])


# Older checkpoints.


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_are_kept(tmp_path: Path, trained: Trained, keep: int, left: list[int]) -> None:
    for step in range(1, 5):
        path = save_checkpoint(tmp_path / "a" / "checkpoints", trained.contents, state(step), keep)
        assert path.name == f"step-{step:06d}"
    assert names(tmp_path / "a" / "checkpoints") == [f"step-{step:06d}" for step in left]


def test_none_cannot_be_kept(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(ValueError, match="keep is 0, expected at least 1"):
        save_checkpoint(tmp_path / "checkpoints", trained.contents, state(1), keep=0)
    assert names(tmp_path) == []


def test_a_step_that_is_saved_again_is_replaced(two: Path) -> None:
    again = make(seed=3)
    save_checkpoint(two, again.contents, replace(state(100), version=7))
    assert names(two) == ["step-000050", "step-000100"]
    checkpoint = latest(two)
    assert checkpoint.state.version == 7
    restored = make(seed=4)
    checkpoint.restore(restored.contents)
    assert same(restored.everything(), again.everything())


def test_an_earlier_step_removes_no_later_one(two: Path, trained: Trained) -> None:
    save_checkpoint(two, trained.contents, state(70), keep=1)
    assert names(two) == ["step-000070", "step-000100"]


# Kills.


class KilledError(BaseException):
    """Stands for the end of the process: nothing may handle it."""


class Killer:
    """Ends the process at one of its calls that change or secure the file system, instead of that call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = math.inf
        for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise KilledError
            return call(*arguments, **options)

        return counting

    def kills(self, prepare: Callable[[], object], action: Callable[[], object]) -> Iterator[int]:
        """Yield after each kill of the action, at its first call, its second, ..., until it runs to its end."""
        for moment in itertools.count(1):
            prepare()
            self.left = moment
            try:
                action()
            except KilledError:
                yield moment
            else:
                return
            finally:
                self.left = math.inf


@pytest.mark.parametrize("step", [150, 100])
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(
    saved_twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before, new = state(100), replace(state(step), version=1000)
    contents = make(seed=5).contents
    killer = Killer(monkeypatch)
    folder = tmp_path / "checkpoints"
    found: list[TrainingState] = []

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved_twice, folder)

    for _ in killer.kills(prepare, lambda: save_checkpoint(folder, contents, new)):
        found.append(latest(folder).state)
        for path in list_checkpoints(folder):
            verify(path)
        # The next save finds its way.
        save_checkpoint(folder, contents, new)
        kept = ["step-000050", "step-000100"] if step == 100 else ["step-000100", "step-000150"]
        assert names(folder) == kept
        assert latest(folder).state == new
    # The old one, and from one moment on the new one.
    assert {one == new for one in found} == {True, False}
    assert found == sorted(found, key=lambda one: one == new)
    assert all(one in (before, new) for one in found)
    assert len(found) > 20


def test_all_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    os_replace = os.replace

    def inode(path: Path) -> int:
        return path.stat()[stat.ST_INO]

    def recorded(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)

    def checked(source: Path, target: Path) -> None:
        if target.name == "step-000001":
            inside = {inode(path) for path in source.rglob("*")}
            assert inside <= set(synced)
            # The manifest, then the list of names, and nothing after.
            assert synced[-2:] == [inode(source / "manifest.json"), inode(source)]
            synced.clear()
        os_replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", checked)
    save_checkpoint(tmp_path, trained.contents, state(1))
    assert synced == [inode(tmp_path)]
