"""A run's folder: nothing of an earlier run is lost, and one trainer at a time is in it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forkgym.agents.config import AgentConfig
from forkgym.envs.config import EnvConfig
from forkgym.trainers.commands.command_line import parse_command_line
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.rollouts.rollout_file import read_rollouts
from forkgym.trainers.runs.run_folder import CONTENTS, RunFolder, refuse_existing_run
from tests.trainers.small_trees import three_leaves


@dataclass(frozen=True)
class Config:
    """Settings of a run, as a script has them."""

    seed: int = 0
    """Seed."""
    run_dir: str | None = None
    """Folder."""
    resume: bool = False
    """Whether to go on."""
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True)
class OddConfig:
    """Settings that no run has."""

    place: object
    names: tuple[object, ...] = ()


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raising(error: BaseException) -> object:
    def raise_it(*arguments: object, **options: object) -> None:
        raise error

    return raise_it


# Opening.


def test_a_new_run_writes_its_settings_and_no_more(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "runs" / "a", Config()) as run:
        assert run.path == tmp_path / "runs" / "a"
        assert set(os.listdir(run.path)) == {"config.yaml", ".lock"}
        assert not run.has_checkpoint


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(seed=7, run_dir="runs/é 1", env=EnvConfig(id=("one",), path="2e-4", corpus="no", split="", max_turns=3)),
        Config(agent=AgentConfig(model="1_000"), trainer=TrainerConfig(learning_rate=1e-05, final_learning_rate=0.0)),
        Config(env=EnvConfig(path="a: b # c\n'd' \"e\"", corpus="x" * 200 + " y" * 100, grammar="null")),
    ],
)
def test_the_settings_load_again(tmp_path: Path, config: Config) -> None:
    RunFolder.create(tmp_path / "run", config).close()
    arguments = ["--config", str(tmp_path / "run" / "config.yaml")]
    assert parse_command_line(Config, arguments=arguments) == config


def test_the_settings_are_plain_yaml(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", OddConfig(Path("a/b"), names=("x", 1, None, True))).close()
    text = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert text == "place: a/b\nnames:\n- x\n- 1\n- null\n- true\n"


def test_what_is_no_setting_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.place is \{1\}, expected text"):
        RunFolder.create(tmp_path / "run", OddConfig({1}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", CONTENTS)
def test_a_folder_with_anything_of_a_run_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    if place.suffix:
        place.write_text("earlier", encoding="utf-8")
    else:
        place.mkdir()
        (place / "earlier").touch()
    before = all_files(tmp_path)
    message = f"{tmp_path} already holds a run ({name}); continue it with --resume or name another --run_dir"
    for start in (lambda: refuse_existing_run(tmp_path), lambda: RunFolder.create(tmp_path, Config())):
        with pytest.raises(ValueError) as caught:
            start()
        assert str(caught.value) == f"run_dir {message}"
    assert all_files(tmp_path) == before


def test_a_folder_with_other_things_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    refuse_existing_run(tmp_path)
    RunFolder.create(tmp_path, Config()).close()
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="file is a file, expected a folder or nothing"):
        RunFolder.create(path, Config())
    with pytest.raises(ValueError, match="run cannot be made: File exists"):
        RunFolder.create(path / "run", Config())
    with pytest.raises(ValueError, match="holds no run to resume"):
        RunFolder.resume(path, Config())
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_start_that_is_interrupted_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(tmp_path, Config())
    RunFolder.create(tmp_path, Config()).close()
    assert set(os.listdir(tmp_path)) == {"config.yaml", ".lock"}


def test_a_disk_that_takes_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "mkdir", raising(PermissionError(13, "Permission denied")))
    with pytest.raises(ValueError, match="run cannot be made: Permission denied"):
        RunFolder.create(tmp_path / "run", Config())


# Resuming.


def test_a_run_goes_on_where_it_lies_under_its_own_settings(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a", Config(run_dir="a")) as run:
        expected = run.config_hash
    before = all_files(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with RunFolder.resume(tmp_path / "b", Config(run_dir="elsewhere/b", resume=True)) as run:
        assert run.config_hash == expected
        assert all_files(run.path) == before


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, Config(env=EnvConfig(id=("one", "two")))).close()
    other = Config(seed=3, env=EnvConfig(id=("one",)), trainer=TrainerConfig(num_steps=9))
    with pytest.raises(ValueError) as caught:
        RunFolder.resume(tmp_path, other)
    assert str(caught.value) == (
        f"run_dir {tmp_path} was started with seed 0, not 3, env.id ['one', 'two'], not ['one'], "
        f"trainer.num_steps 200, not 9; resume it with --config {tmp_path}/config.yaml, or start another run"
    )
    RunFolder.resume(tmp_path, Config(env=EnvConfig(id=("one", "two")))).close()


def test_a_setting_of_another_version_is_no_difference(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, Config()).close()
    path = tmp_path / "config.yaml"
    text = path.read_text(encoding="utf-8").replace("seed: 0\n", "future: 1\n")
    path.write_text(text, encoding="utf-8")
    RunFolder.resume(tmp_path, Config(seed=5)).close()


@pytest.mark.parametrize("text", ["", "a", "- 1", "a: [", "\0"])
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml: expected"):
        RunFolder.resume(tmp_path, Config())


def test_nothing_is_resumed_from_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=f"{path} holds no run to resume"):
            RunFolder.resume(path, Config())
    assert os.listdir(tmp_path) == []


def test_the_hash_is_of_what_a_run_computes(tmp_path: Path) -> None:
    configs = {
        "a": Config(),
        "b": Config(run_dir="b", resume=True),
        "c": Config(seed=1),
        "d": Config(trainer=TrainerConfig(num_steps=201)),
    }
    hashes: dict[str, str] = {}
    for name, config in configs.items():
        with RunFolder.create(tmp_path / name, config) as run:
            hashes[name] = run.config_hash
    assert hashes["a"] == hashes["b"]
    assert len(set(hashes.values())) == 3
    assert all(len(one) == 64 for one in hashes.values())


# The lock.


def test_a_second_trainer_is_kept_out_until_the_first_leaves(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, Config()) as run:
        with pytest.raises(ValueError) as caught:
            RunFolder.resume(tmp_path, Config())
        assert str(caught.value) == (
            f"run_dir {tmp_path} is in use by another trainer; wait until it ends or name another --run_dir"
        )
        run.append_metrics({"step": 1})
    RunFolder.resume(tmp_path, Config()).close()


def test_a_trainer_that_is_killed_leaves_the_folder_free(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom filelock import FileLock\n"
        "lock = FileLock(sys.argv[1])\nlock.acquire()\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    RunFolder.create(tmp_path, Config()).close()
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="in use by another trainer"):
            RunFolder.resume(tmp_path, Config())
        other.send_signal(signal.SIGKILL)
    RunFolder.resume(tmp_path, Config()).close()


def test_an_error_lets_others_in(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunFolder.create(tmp_path, Config()):
        raise RuntimeError
    RunFolder.resume(tmp_path, Config()).close()


# Metrics.


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", Config())


def test_metrics_are_one_object_a_step(run: RunFolder) -> None:
    assert run.read_metrics() == []
    run.append_metrics({"step": 1, "reward/mean": 0.1, "kind": "é"})
    run.append_metrics({"step": 2, "reward/mean": 1e-07})
    text = (run.path / "metrics.jsonl").read_bytes()
    assert text == b'{"step": 1, "reward/mean": 0.1, "kind": "\\u00e9"}\n{"step": 2, "reward/mean": 1e-07}\n'
    assert run.read_metrics() == [
        {"step": 1, "reward/mean": 0.1, "kind": "é"},
        {"step": 2, "reward/mean": 1e-07},
    ]


@settings(max_examples=20)
@example(number=math.nan)
@example(number=-math.inf)
@example(number=5e-324)
@given(number=st.floats())
def test_figures_are_exact_and_those_that_are_not_finite_are_null(
    tmp_path_factory: pytest.TempPathFactory, number: float
) -> None:
    with RunFolder.create(tmp_path_factory.mktemp("run"), Config()) as run:
        run.append_metrics({"step": 1, "loss": number})
        ((_, loss),) = (record.values() for record in run.read_metrics())
        assert loss == number if math.isfinite(number) else loss is None


def test_metrics_are_on_the_disk_before_the_step_ends(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def recorded(descriptor: int) -> None:
        lengths.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", recorded)
    run.append_metrics({"step": 1})
    assert lengths[0] == len('{"step": 1}\n')
    run.append_metrics({"step": 2})
    assert lengths[-1] == 2 * len('{"step": 1}\n')


@pytest.mark.parametrize("record", [{}, {"step": 1.0}, {"step": "1"}, {"step": True}, {"loss": 1.0}])
def test_metrics_need_a_step(run: RunFolder, record: dict[str, float | int | str]) -> None:
    with pytest.raises(ValueError, match="metrics: step is .*, expected an integer"):
        run.append_metrics(record)
    assert run.read_metrics() == []


def with_five_steps(run: RunFolder) -> Path:
    for step in range(1, 6):
        run.append_metrics({"step": step, "loss": step / 3})
    return run.path / "metrics.jsonl"


@pytest.mark.parametrize("step", [0, 3, 5, 9])
def test_a_resumed_run_has_each_step_once(run: RunFolder, step: int) -> None:
    path = with_five_steps(run)
    lines = path.read_bytes().splitlines(keepends=True)
    run.truncate_metrics(step)
    assert path.read_bytes() == b"".join(lines[:step])


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_last_line_that_was_cut_off_is_dropped(run: RunFolder, cut: int) -> None:
    path = with_five_steps(run)
    lines = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, path.stat().st_size - cut)
    assert [record["step"] for record in run.read_metrics()] == [1, 2, 3, 4]
    run.truncate_metrics(5)
    run.append_metrics({"step": 5, "loss": 5 / 3})
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("line", ["", "{", "[]", "7", '{"loss": 1}', '{"step": "3"}', "\x80"])
def test_a_bad_line_is_named_and_nothing_is_dropped(run: RunFolder, line: str) -> None:
    path = with_five_steps(run)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: expected a JSON object"):
        run.truncate_metrics(2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_truncation_that_is_interrupted_changes_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = with_five_steps(run).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run.truncate_metrics(2)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_a_run_that_stopped_before_its_first_step_has_no_metrics(run: RunFolder) -> None:
    run.truncate_metrics(0)
    assert run.read_metrics() == []


# Everything else.


def test_rollouts_have_a_file_for_each_step(run: RunFolder) -> None:
    group = three_leaves()
    assert run.write_rollouts(10, [group, group]) == run.path / "rollouts" / "step-000010.jsonl"
    run.write_rollouts(1_000_000, [])
    assert set(os.listdir(run.path / "rollouts")) == {"step-000010.jsonl", "step-1000000.jsonl"}
    assert read_rollouts(run.path / "rollouts" / "step-000010.jsonl") == [group, group]
    # A step that is taken again after a resume.
    again = replace(group, question="again")
    run.write_rollouts(10, [again])
    assert read_rollouts(run.path / "rollouts" / "step-000010.jsonl") == [again]


def test_the_evaluation_is_strict_json(run: RunFolder) -> None:
    assert run.read_evaluation() == {}
    run.write_evaluation({"before": {"toy": {"accuracy": 1 / 3, "interval": (0.25, math.nan)}}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (run.path / "evaluation.json").read_text(encoding="utf-8")
    expected = {"before": {"toy": {"accuracy": 1 / 3, "interval": [0.25, None]}}}
    assert json.loads(text, parse_constant=refuse) == run.read_evaluation() == expected


def test_an_evaluation_that_is_interrupted_leaves_the_old_one(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_evaluation({"before": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run.write_evaluation({"before": 1, "after": 2})
    assert run.read_evaluation() == {"before": 1}


def test_a_checkpoint_counts_once_it_is_whole(run: RunFolder) -> None:
    for name in ("step-000050.partial", "step-000050.bad"):
        (run.checkpoints / name).mkdir(parents=True)
        assert not run.has_checkpoint
    (run.checkpoints / "step-000050").mkdir()
    assert run.has_checkpoint
