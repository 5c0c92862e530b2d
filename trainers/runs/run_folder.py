"""The folder of a run: its files, who may write them, and how they read.

    runs/NAME/config.yaml                   the settings, as `--config` takes them
              metrics.jsonl                 one object a step
              rollouts/step-000010.jsonl    one tree a line
              checkpoints/step-000050/      `forkgym.trainers.runs.checkpoint`
              evaluation.json
              learning_curve.png

Nothing of an earlier run is ever overwritten, but by the same run resumed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import yaml
from filelock import BaseFileLock, FileLock, Timeout

from forkgym.tools.durable import make_folder, sync, write_text
from forkgym.trainers.rollouts.rollout_file import write_rollouts
from forkgym.trainers.types import Group

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation.json"
LEARNING_CURVE = "learning_curve.png"
CONTENTS = (CONFIG, METRICS, ROLLOUTS, CHECKPOINTS, EVALUATION, LEARNING_CURVE)
LOCK = ".lock"

# Settings that say where a run is and how it was started, not what it computes.
PLACE_SETTINGS = ("run_dir", "resume")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An open run folder; until it is closed no other process can open it. A context manager.

    Made by `create` or `resume`.

    Attributes:
        path: The folder.
        config_hash: Of the run's settings, for its checkpoints.
        lock: Held until the folder is closed.
    """

    path: Path
    config_hash: str
    lock: BaseFileLock

    @classmethod
    def create(cls, path: Path, config: DataclassInstance) -> Self:
        """Start a run.

        Args:
            path: The folder; made where there is none.
            config: The run's settings; they go to ``config.yaml``.

        Raises:
            ValueError: The folder holds a run, cannot be made or is in use, or something in the settings is no
                setting. No file of a run has been written then.
        """
        text = config_text(config)
        refuse_existing_run(path)
        try:
            make_folder(path)
        except OSError as error:
            raise ValueError(f"run_dir {path} cannot be made: {error.strerror}") from error
        lock = acquire_lock(path)
        try:
            refuse_existing_run(path)  # another trainer may have come and gone in between
            write_text(path / CONFIG, text)
        except BaseException:
            lock.release()
            raise
        return cls(path, config_hash(config), lock)

    @classmethod
    def resume(cls, path: Path, config: DataclassInstance) -> Self:
        """Open the folder of a run that was stopped; its ``config.yaml`` stays.

        Args:
            path: The folder.
            config: The settings to go on with, which have to be the run's own, but for where it is.

        Raises:
            ValueError: The folder holds no run or is in use, or the settings differ; names those that do.
        """
        if not (path / CONFIG).is_file():
            raise ValueError(f"run_dir {path} holds no run to resume (no {CONFIG}); without --resume a new one starts")
        changes = changed_settings(read_settings(path / CONFIG), settings_of(config))
        if changes:
            raise ValueError(
                f"run_dir {path} was started with {', '.join(changes)}; resume it with --config {path / CONFIG}, "
                "or start another run"
            )
        return cls(path, config_hash(config), acquire_lock(path))

    def close(self) -> None:
        """Let other processes in."""
        self.lock.release()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints belong."""
        return self.path / CHECKPOINTS

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint; one that was set aside or is unfinished has a suffix."""
        return any(not path.suffix for path in self.checkpoints.glob("step-*"))

    @property
    def learning_curve(self) -> Path:
        """Where the plot belongs."""
        return self.path / LEARNING_CURVE

    def append_metrics(self, record: Mapping[str, float | int | str]) -> None:
        """Add one step's figures; they are on the disk afterwards, as a checkpoint of the step has to find them.

        A figure that is not finite is written as null: JSON has no other word for it, readers of tables take it for
        "not a number", and the other figures of such a step are the ones that explain it.

        Raises:
            ValueError: ``step`` is no integer.
        """
        if type(record.get("step")) is not int:
            raise ValueError(f"metrics: step is {record.get('step')!r}, expected an integer")
        path = self.path / METRICS
        is_new = not path.exists()
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json_text(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.path)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return each step's figures (numbers, texts, null), in order; a last line that was cut off is left out.

        Raises:
            ValueError: Another line is no object with a step; names the line.
        """
        path = self.path / METRICS
        if not path.exists():
            return []
        *lines, _cut_off = path.read_text(encoding="utf-8", errors="replace").split("\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: expected a JSON object ({error})") from error
            if not isinstance(record, dict) or type(cast("dict[str, Any]", record).get("step")) is not int:
                raise ValueError(f"{path}, line {number}: expected a JSON object with an integer step")
            records.append(cast("dict[str, Any]", record))
        return records

    def truncate_metrics(self, step: int) -> None:
        """Drop the figures of steps after ``step``, the checkpoint's, so that a resumed run has each step once.

        Rollout files stay: the steps are taken again and replace them.

        Raises:
            ValueError: A line is no object with a step; names the line.
        """
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        write_text(self.path / METRICS, "".join(json_text(record) + "\n" for record in kept))

    def write_rollouts(self, step: int, groups: Sequence[Group]) -> Path:
        """Write all trees of a step; return the file, which `rollout_file.read_rollouts` reads.

        Raises:
            ValueError: A number in a tree is not finite.
        """
        folder = self.path / ROLLOUTS
        make_folder(folder)
        path = folder / f"step-{step:06d}.jsonl"
        write_rollouts(path, groups)
        return path

    def write_evaluation(self, results: Mapping[str, object]) -> None:
        """Write ``evaluation.json``; a figure that is not finite is written as null."""
        write_text(self.path / EVALUATION, json_text(results, indent=2) + "\n")

    def read_evaluation(self) -> dict[str, Any]:
        """Return what ``evaluation.json`` holds; nothing where there is none."""
        path = self.path / EVALUATION
        if not path.exists():
            return {}
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return results


def refuse_existing_run(path: Path) -> None:
    """Check, before anything slow is done, that a new run may start in a folder; touches nothing.

    Raises:
        ValueError: The folder holds a run, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"run_dir {path} is a file, expected a folder or nothing")
    for name in CONTENTS:
        if (path / name).exists():
            raise ValueError(
                f"run_dir {path} already holds a run ({name}); continue it with --resume or name another --run_dir"
            )


def acquire_lock(path: Path) -> BaseFileLock:
    """Keep other trainers out of a folder until the lock is released or this process ends, however it ends.

    Raises:
        ValueError: Another one is in it.
    """
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"run_dir {path} is in use by another trainer; wait until it ends or name another --run_dir"
        ) from error
    except OSError as error:
        raise ValueError(f"run_dir {path} cannot be locked: {error.strerror}") from error
    return lock


def config_text(config: DataclassInstance) -> str:
    """Return settings as YAML that ``--config`` reads back as equal ones.

    Raises:
        ValueError: Something in them is no setting.
    """
    return yaml.safe_dump(settings_of(config), sort_keys=False, allow_unicode=False)


def settings_of(config: DataclassInstance) -> dict[str, Any]:
    """Return settings as they read in ``config.yaml``.

    Raises:
        ValueError: Something in them is no setting.
    """
    settings: dict[str, Any] = plain(asdict(config), "config")
    return settings


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a ``config.yaml`` holds.

    Raises:
        ValueError: It is no mapping of names to values.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected names and values, such as 'seed: 1'")
    return cast("dict[str, Any]", settings)


def plain(value: object, name: str) -> Any:
    """Turn tuples into lists, and paths into texts."""
    if isinstance(value, dict):
        return {key: plain(item, f"{name}.{key}") for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in cast("list[object]", value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{name} is {value!r}, expected text, a number, true, false, null, or lists of them")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], section: str = "") -> list[str]:
    """Say which settings differ, such as ``seed 1, not 2``, but for those that say where a run is.

    A setting that only one of them has belongs to another version of forkgym, of which the checkpoints' manifest tells.
    """
    changes: list[str] = []
    for name, value in now.items():
        if name not in before or (not section and name in PLACE_SETTINGS):
            continue
        if isinstance(value, dict) and isinstance(before[name], dict):
            changes += changed_settings(before[name], cast("dict[str, Any]", value), f"{section}{name}.")
        elif before[name] != value:
            changes.append(f"{section}{name} {before[name]!r}, not {value!r}")
    return changes


def config_hash(config: DataclassInstance) -> str:
    """Return the SHA-256 of settings, in hexadecimal, but for those that say where a run is."""
    settings = settings_of(config)
    for name in PLACE_SETTINGS:
        settings.pop(name, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def json_text(value: object, indent: int | None = None) -> str:
    """Return strict JSON; ASCII, so that any text a model wrote can be stored."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: object) -> object:
    """Replace numbers that are not finite by None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast("list[object]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
