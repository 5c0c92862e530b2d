"""Checkpoints: a training run's whole state in one folder, which is there whole or not at all.

    checkpoints/step-000050/
        config.json  model.safetensors  tokenizer.json  ...   as `from_pretrained` reads them: it is a model's folder
        adapter/                                              where adapters are trained; see `saved_model`
        training.json                                         `TrainingState`
        updates.json  updates.safetensors                     optimizer and scheduler: structure and numbers, tensors
        manifest.json                                         size and SHA-256 of every other file; written last

Nothing is pickled, so reading a checkpoint runs no code. No state of random generators is stored: every draw derives
its seed from the run's seed and what the draw is for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError

from forkgym.tools.durable import PARTIAL, discard_folder, make_folder, partial_path, sync, sync_tree
from forkgym.trainers.rollouts.branching import EntropyScale
from forkgym.trainers.runs.saved_model import restore_weights, write_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "manifest.json"
TRAINING = "training.json"
UPDATES = "updates.json"
UPDATES_TENSORS = "updates.safetensors"
FORMAT = 1  # of the files above but the model's; another number is refused
PACKAGES = ("forkgym", "torch", "transformers")

# A save of a step that has a checkpoint moves the old one aside under this name for as long as the swap takes.
REPLACED = ".replaced"
STEP_FOLDER = re.compile(rf"step-(\d{{6,}})({re.escape(REPLACED)})?")

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """An optimizer or scheduler, PyTorch's own or one that Accelerate has prepared."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state: tensors, numbers, strings and None in dicts, lists and tuples."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take a state over."""
        ...


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint is taken of; ``model`` is the bare model, out of any wrapping, ``critic`` a value head."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: Stateful
    scheduler: Stateful
    critic: Stateful | None = None

    @property
    def updated(self) -> dict[str, Stateful]:
        """What is saved beside the model, by name."""
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        return parts if self.critic is None else {**parts, "critic": self.critic}


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where the training loop stands between two steps.

    Attributes:
        config_hash: Of the run's settings.
        step: Finished steps.
        version: Of the weights.
        entropy_scale: What the branching rule knows.
        skipped_steps: Steps without any valid group, which changed no weight.
    """

    config_hash: str
    step: int = 0
    version: int = 0
    entropy_scale: EntropyScale = EntropyScale()
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a checkpoint whole: every other file by its path in the folder; and what wrote it."""

    format: int
    config_hash: str
    versions: dict[str, str]
    files: dict[str, FileRecord]


MANIFEST_JSON = TypeAdapter(Manifest)
TRAINING_JSON = TypeAdapter(TrainingState)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are all as they were written."""

    path: Path
    state: TrainingState

    def restore(self, contents: Contents) -> None:
        """Give the model, and all that is saved beside it, the state they had.

        Raises:
            ValueError: One of them is built otherwise than the saved one.
        """
        restore_weights(self.path, contents.model)
        tensors = safetensors.torch.load_file(self.path / UPDATES_TENSORS)
        packed = json.loads((self.path / UPDATES).read_text(encoding="utf-8"))
        if packed.keys() != contents.updated.keys():
            raise ValueError(
                f"checkpoint {self.path} holds {', '.join(packed)}, expected {', '.join(contents.updated)}: was its "
                "algorithm another one?"
            )
        for name, part in contents.updated.items():
            part.load_state_dict(unpack_state(packed[name], tensors))


def save_checkpoint(folder: Path, contents: Contents, state: TrainingState, keep: int = 2) -> Path:
    """Write ``folder/step-NNNNNN`` and then remove older checkpoints.

    Killed at any moment, it leaves the checkpoints that were there, or the new one as well. Only one process may
    write into a folder (a run folder's lock sees to that). What the run has logged up to this step has to be on the
    disk before.

    Args:
        folder: Holds the run's checkpoints; made where there is none.
        contents: What to save.
        state: Likewise; a checkpoint of the same step is replaced.
        keep: Checkpoints to keep, the new one included, 1 or more.

    Returns:
        The new checkpoint's folder, which is a model's folder as well.

    Raises:
        ValueError: ``keep`` is below 1; or the state, the optimizer's or the scheduler's, holds something that JSON and
            safetensors cannot store exactly.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1")
    make_folder(folder)
    for leftover in folder.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(leftover)
    target = folder / f"step-{state.step:06d}"
    partial = partial_path(target)
    partial.mkdir()
    write_contents(partial, contents, state)
    seal(partial, state.config_hash)
    swap_in(partial, target)
    prune(folder, state.step, keep)
    return target


def load_latest(folder: Path, config_hash: str) -> Checkpoint:
    """Return the newest checkpoint that is whole.

    Newer ones that are not are renamed to ``….bad`` and named in a warning of the log. Another warning says where the
    run cannot be expected to go on bit for bit, as it was begun under other settings or versions.

    Args:
        folder: Holds the run's checkpoints.
        config_hash: Of the settings to go on with.

    Raises:
        ValueError: There is none, or it was written in another format than this version's.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            manifest = verify(path)
        except ValueError as error:
            logger.warning("%s; set aside as %s", error, set_aside(path))
            continue
        if manifest.format != FORMAT:
            raise ValueError(
                f"checkpoint {path} has format {manifest.format}, expected {FORMAT}: "
                f"it was written by forkgym {manifest.versions.get('forkgym', 'of an unknown version')}"
            )
        if manifest.config_hash != config_hash:
            logger.warning("checkpoint %s was written under other settings than those of now", path)
        if manifest.versions != current_versions():
            logger.warning("checkpoint %s was written by %s, this is %s", path, manifest.versions, current_versions())
        return Checkpoint(path, TRAINING_JSON.validate_json((path / TRAINING).read_bytes()))
    raise ValueError(f"{folder} holds no checkpoint to resume from; start a new run with another --run_dir")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders that have a checkpoint's name, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), not path.name.endswith(REPLACED)))


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    match = STEP_FOLDER.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def write_contents(folder: Path, contents: Contents, state: TrainingState) -> None:
    """Write everything but the manifest."""
    write_model(folder, contents.model)
    contents.tokenizer.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    packed = {name: pack_state(dict(part.state_dict()), name, tensors) for name, part in contents.updated.items()}
    (folder / UPDATES).write_text(json.dumps(packed, allow_nan=False), encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / UPDATES_TENSORS)
    # Not by pydantic, which writes null for a number that is not finite.
    (folder / TRAINING).write_text(json.dumps(asdict(state), indent=1, allow_nan=False), encoding="utf-8")


def seal(folder: Path, config_hash: str) -> None:
    """Push all files to the disk, then write the manifest that vouches for them."""
    sync_tree(folder)
    files = {path.relative_to(folder).as_posix(): record(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = Manifest(FORMAT, config_hash, current_versions(), files)
    (folder / MANIFEST).write_bytes(MANIFEST_JSON.dump_json(manifest, indent=1))
    sync(folder / MANIFEST)
    sync(folder)


def swap_in(partial: Path, target: Path) -> None:
    """Give a sealed folder its name; at every moment the old or the new one has a name that `load_latest` reads."""
    replaced = target.with_name(target.name + REPLACED)
    if target.exists():
        if replaced.exists():
            discard_folder(replaced)
        os.replace(target, replaced)
    os.replace(partial, target)
    sync(target.parent)
    if replaced.exists():
        discard_folder(replaced)


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove the checkpoints of all steps before ``step`` but the last ``keep - 1``."""
    older = [path for path in list_checkpoints(folder) if step_of(path) < step]
    spared = sorted({step_of(path) for path in older}, reverse=True)[: keep - 1]
    for path in older:
        if step_of(path) not in spared:
            discard_folder(path)


def verify(path: Path) -> Manifest:
    """Compare a checkpoint's files with its manifest.

    Raises:
        ValueError: They differ, or there is no manifest; says what is wrong.
    """
    if not (path / MANIFEST).is_file():
        raise ValueError(f"checkpoint {path} has no {MANIFEST}")
    try:
        manifest = MANIFEST_JSON.validate_json((path / MANIFEST).read_bytes(), strict=True)
    except ValidationError as error:
        raise ValueError(f"checkpoint {path}: {MANIFEST} is unreadable") from error
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"checkpoint {path}: {name} is missing")
        # The size first: it tells a torn file without reading it.
        if file.stat().st_size != expected.size or record(file) != expected:
            raise ValueError(f"checkpoint {path}: {name} is not what was written")
    return manifest


def set_aside(path: Path) -> Path:
    """Rename a bad checkpoint so that it is neither read nor lost; return its new place."""
    place = path.with_name(f"{path.name}.bad")
    number = 2
    while place.exists():
        place = path.with_name(f"{path.name}.bad{number}")
        number += 1
    os.replace(path, place)
    return place


def record(file: Path) -> FileRecord:
    """Read a file and say what it is."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(size=stream.tell(), sha256=digest)


def current_versions() -> dict[str, str]:
    """Return the versions of what a run's numbers depend on."""
    return {"python": sys.version.split()[0], **{package: metadata.version(package) for package in PACKAGES}}


def pack_state(value: object, path: str, tensors: dict[str, torch.Tensor]) -> object:
    """Turn a nested state into JSON values that `unpack_state` turns back exactly; tensors go to ``tensors``.

    Example: ``{"lr": 0.1, "betas": (0.9, 0.99), 0: tensor}`` gives ``{"dict": [["lr", 0.1], ["betas", {"tuple": [0.9,
    0.99]}], [0, {"tensor": "path/0"}]]}``: JSON itself has no keys but strings and no tuples.

    Raises:
        ValueError: Something has a type that would not come back as it was.
    """
    if isinstance(value, torch.Tensor):
        if path in tensors:
            raise ValueError(f"two tensors of the state are both called {path}")
        tensors[path] = value.detach().contiguous()
        return {"tensor": path}
    if type(value) is dict:
        items = cast("dict[object, object]", value)
        for key in items:
            if type(key) not in (str, int):
                raise ValueError(f"{path}: cannot store the key {key!r}, expected a string or an integer")
        return {"dict": [[key, pack_state(item, f"{path}/{key}", tensors)] for key, item in items.items()]}
    if type(value) in (list, tuple):
        sequence = cast("list[object] | tuple[object, ...]", value)
        packed = [pack_state(item, f"{path}/{index}", tensors) for index, item in enumerate(sequence)]
        return packed if type(value) is list else {"tuple": packed}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"{path}: cannot store a {type(value).__name__}, expected tensors, numbers, strings and None in plain dicts, "
        "lists and tuples"
    )


def unpack_state(packed: object, tensors: dict[str, torch.Tensor]) -> Any:
    """Undo `pack_state`; tensors get memory of their own, as they will be changed in place and the file removed."""
    if isinstance(packed, list):
        return [unpack_state(item, tensors) for item in cast("list[object]", packed)]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = cast("dict[str, Any]", packed).items()
    match kind:
        case "tensor":
            return tensors[content].clone()
        case "dict":
            return {key: unpack_state(item, tensors) for key, item in content}
        case "tuple":
            return tuple(unpack_state(item, tensors) for item in content)
        case _:
            assert kind == "float", kind
            return float(content)
