"""Options, files and defaults become one config; a mistake of the user's becomes one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
from docstring_parser import parse_from_object
from hypothesis import given
from hypothesis import strategies as st

from forkgym.agents.config import AgentConfig
from forkgym.envs.config import EnvConfig
from forkgym.trainers.commands.command_line import parse_command_line, user_errors
from forkgym.trainers.config import EvaluationConfig, RolloutConfig, TrainerConfig
from forkgym.trainers.runs.run_folder import config_text
from forkgym.trainers.sft.config import SftConfig


@dataclass(frozen=True)
class Part:
    """A part of it."""

    size: int = 4
    """Size, metres."""
    limit: int = 8
    """Largest size, metres."""
    rate: float = 0.5
    """Share that is lost."""

    def __post_init__(self) -> None:
        if self.size > self.limit:
            raise ValueError(f"part.size is {self.size}, expected at most part.limit, {self.limit}")


@dataclass(frozen=True)
class Config:
    """All of it."""

    seed: int = 0
    """Seeds what
    is drawn."""
    name: str | None = None
    """Name; none by default."""
    quick: bool = False
    """Be quick."""
    color: Literal["red", "blue"] = "red"
    """Color of it."""
    ids: tuple[str, ...] = ("a", "b")
    """What to take."""
    part: Part = field(default_factory=lambda: Part(rate=0.25))

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected at least 0")


@dataclass(frozen=True)
class RealConfig:
    """The sections of a training run, and of a cold start."""

    seed: int = 0
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sft: SftConfig = field(default_factory=SftConfig)


@dataclass(frozen=True)
class Demanding:
    """Has a field without a default."""

    output: str
    """File to write."""


def parse(*arguments: str) -> Config:
    return parse_command_line(Config, arguments=arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, config_class: type[Any] = Config) -> str:
    """Return the one line that a command line ends in."""
    with pytest.raises(SystemExit) as caught:
        parse_command_line(config_class, arguments=arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").removesuffix("\n")


def test_defaults_hold_where_nothing_is_given() -> None:
    assert parse() == Config()
    assert parse().part.rate == 0.25  # of the section's default, not of its class


def test_options_override_the_defaults_they_name() -> None:
    given = parse(
        *("--seed", "3", "--name", "x", "--quick", "--color", "blue", "--ids", "c", "d", "e", "--part.size=5")
    )
    assert given == Config(3, "x", True, "blue", ("c", "d", "e"), Part(size=5, rate=0.25))


def test_the_last_of_two_equal_options_counts() -> None:
    assert parse("--seed", "3", "--seed", "4").seed == 4


def test_a_negative_number_is_a_value() -> None:
    assert parse("--part.rate", "-0.5").part.rate == -0.5


def test_arguments_are_those_of_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--seed", "3"])
    assert parse_command_line(Config) == Config(seed=3)


def test_a_file_overrides_defaults_and_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("seed: 3\nquick: true\nids: [c]\npart:\n  rate: 1e-3\n  size: 5\n")
    assert parse("--config", str(path)) == Config(3, None, True, "red", ("c",), Part(size=5, rate=0.001))
    given = parse("--part.size", "6", "--config", str(path), "--quick", "false")
    assert given == Config(3, None, False, "red", ("c",), Part(size=6, rate=0.001))


@pytest.mark.parametrize("text", ["", "# nothing\n", "part:\n  # size: 5\n"])
def test_a_file_may_give_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    assert parse("--config", str(path)) == Config()


def test_values_that_fit_only_together_may_come_from_both(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("part: {size: 20}\n")
    assert parse("--config", str(path), "--part.limit", "20").part == Part(20, 20, 0.25)


def test_a_field_without_a_default_may_come_from_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "output.yaml"
    path.write_text("output: x\n")
    assert parse_command_line(Demanding, arguments=["--config", str(path)]) == Demanding("x")
    assert parse_command_line(Demanding, arguments=["--output", "y"]) == Demanding("y")
    assert refused(capsys, config_class=Demanding) == "command line: --output is missing, expected text"


# without the line separators that PyYAML turns into a space
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"))


@given(
    st.builds(
        Config,
        seed=st.integers(min_value=0),
        name=st.none() | texts,
        quick=st.booleans(),
        color=st.sampled_from(["red", "blue"]),
        ids=st.lists(texts).map(tuple),
        part=st.builds(
            Part,
            size=st.integers(max_value=8),
            rate=st.floats(allow_nan=False, allow_infinity=False),
        ),
    )
)
def test_the_file_that_a_run_writes_gives_the_same_config(
    tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(config_text(config), encoding="utf-8")
    assert parse("--config", str(path)) == config


def test_the_sections_of_the_scripts_can_be_given_in_both_ways(tmp_path: Path) -> None:
    config = parse_command_line(
        RealConfig,
        arguments=[
            *("--env.id", "forkgym/GSM8K-v0", "forkgym/HotpotQA-v0", "--env.path", "rows.jsonl"),
            *("--trainer.algorithm", "gpg", "--trainer.learning_rate", "3e-4", "--rollout.num_generations", "16"),
        ],
    )
    assert config.env.id == ("forkgym/GSM8K-v0", "forkgym/HotpotQA-v0")
    assert config.env.path == "rows.jsonl"
    assert (config.trainer.algorithm, config.trainer.learning_rate) == ("gpg", 0.0003)
    assert config.rollout == RolloutConfig()
    path = tmp_path / "config.yaml"
    path.write_text(config_text(config))
    assert parse_command_line(RealConfig, arguments=["--config", str(path)]) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sede", "3"], "command line: there is no option --sede; did you mean --seed?"),
        (["--part.sizes=3"], "command line: there is no option --part.sizes; did you mean --part.size?"),
        (["--size", "3"], "command line: there is no option --size; did you mean --part.size?"),
        (["--part", "3"], "command line: there is no option --part; expected --part.FIELD VALUE"),
        (["--xyz", "3"], "command line: there is no option --xyz; --help lists what there is"),
        (["xyz"], "command line: 'xyz' belongs to no option, expected --NAME VALUE; --help lists the names"),
        (["--seed", "abc"], "command line: --seed is 'abc', expected a whole number"),
        (["--seed"], "command line: --seed is without a value, expected a whole number"),
        (["--color", "green"], "command line: --color is 'green', expected one of red, blue"),
        (["--part.rate", "much"], "command line: --part.rate is 'much', expected a number"),
        (["--seed", "-1"], "command line: seed is -1, expected at least 0"),
        (["--part.size", "9", "--seed", "3"], "command line: part.size is 9, expected at most part.limit, 8"),
        (["--config"], "command line: --config is without a value, expected text"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert refused(capsys, *arguments) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 3", "there is no field sede; did you mean seed?"),
        ("part: {sizes: 3}", "there is no field part.sizes; did you mean part.size?"),
        ("part: {xyz: 3}", "there is no field part.xyz; expected one of size, limit, rate"),
        ("1: 3", "there is no field 1; expected one of seed, name, quick, color, ids, part"),
        ("seed: abc", "seed is 'abc', expected a whole number"),
        ("part: {rate: much}", "part.rate is 'much', expected a number"),
        ("color: green", "color is 'green', expected one of red, blue"),
        ("part: 3", "part is 3, expected fields of its own: size, limit, rate"),
        ("seed: -1", "seed is -1, expected at least 0"),
        ("part: {size: 9}", "part.size is 9, expected at most part.limit, 8"),
        ("- 3", "holds [3], expected names and values, such as 'seed: 1'"),
        ("ids: [a\nseed: 3", "line 2, column 5: not valid YAML: expected ',' or ']', but got ':'"),
        ("seed: 3\nseed: 4", "line 2, column 1: not valid YAML: seed stands there twice"),
        ("seed: !!python/name:os.system", "line 1, column 7: not valid YAML: could not determine a constructor"),
        ("name: \x07", "not valid YAML: unacceptable character #x0007"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    said = refused(capsys, "--config", str(path))
    if "not valid YAML" in message:  # PyYAML's own words, which go on
        assert said.startswith(f"{path}: {message}")
    else:
        assert said == f"{path}: {message}"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.yaml")
    start = "command line: --config is"
    assert (
        refused(capsys, "--config", missing) == f"{start} {missing!r}, expected a YAML file (No such file or directory)"
    )
    folder = str(tmp_path)
    assert refused(capsys, "--config", folder) == f"{start} {folder!r}, expected a YAML file (Is a directory)"
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"name: \xff")
    assert refused(capsys, "--config", str(path)) == f"{path}: byte 6 is not UTF-8, expected a YAML file"


def test_values_that_do_not_fit_together_are_traced_to_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("part: {size: 7, rate: 1}\nseed: 1\n")
    said = refused(capsys, "--config", str(path), "--part.limit", "6")
    assert said == f"{path} and command line: part.size is 7, expected at most part.limit, 6"


def test_user_errors_are_one_line_and_bugs_propagate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def line(error: BaseException) -> str:
        with pytest.raises(SystemExit) as caught, user_errors():
            raise error
        assert caught.value.code == 2
        assert caught.value.__cause__ is error
        return capsys.readouterr().err

    assert line(ValueError("two\n   lines")) == "error: two lines\n"
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "missing").read_bytes()
    assert line(missing.value) == f"error: {tmp_path / 'missing'}: No such file or directory\n"
    assert line(OSError("no such thing")) == "error: no such thing\n"
    for bug in (KeyError("key"), TypeError("type"), KeyboardInterrupt()):
        with pytest.raises(type(bug)), user_errors():
            raise bug
    assert capsys.readouterr().err == ""


def run_script(tmp_path: Path, text: str, *arguments: str, columns: int = 80, python: tuple[str, ...] = ()) -> Any:
    script = tmp_path / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, *python, script.name, *arguments],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


LOCAL_SCRIPT = '''
"""Do it well, which takes a line that is longer than eighty columns, as every one here that goes on and on.

And in a second paragraph.
"""
import sys
from dataclasses import dataclass
from forkgym.trainers.commands.command_line import parse_command_line

@dataclass(frozen=True)
class Config:
    seed: int
    """Seeds what is drawn."""

try:
    parse_command_line(Config, description=__doc__)
finally:
    heavy = {"torch", "transformers", "datasets", "gymnasium", "pydantic", "matplotlib"} & set(sys.modules)
    assert not heavy, heavy
'''


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal_and_imports_nothing_heavy(tmp_path: Path, columns: int) -> None:
    done = run_script(tmp_path, LOCAL_SCRIPT, "--help", columns=columns)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= columns
    text = " ".join(done.stdout.split())
    assert "Do it well, which takes a line that is longer than eighty columns, as every one here that goes on" in text
    for part in ("--config FILE.yaml", "--seed INT", "Seeds what is drawn. (required)"):
        assert part in text


def test_settings_import_nothing_heavy(tmp_path: Path) -> None:
    text = "import sys\n"
    text += "from forkgym.trainers import config\nfrom forkgym.agents import config\n"
    text += "from forkgym.trainers.commands import command_line\nfrom forkgym.trainers.sft import config\n"
    text += "from forkgym.envs import config\n"
    text += "print(sorted({'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)))\n"
    done = run_script(tmp_path, text)
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_under_dev_mode_the_traceback_is_shown(tmp_path: Path) -> None:
    done = run_script(tmp_path, LOCAL_SCRIPT, "--seed", "abc", python=("-X", "dev"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: command line: --seed is 'abc', expected a whole number" in done.stderr


def meanings(config_class: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the meaning of every field, those of sections included."""
    kinds = get_type_hints(config_class)
    documented = {entry.arg_name: entry.description for entry in parse_from_object(config_class).params}
    for each in fields(config_class):
        if is_dataclass(kinds[each.name]):
            yield from ((f"{each.name}.{name}", meaning) for name, meaning in meanings(kinds[each.name]))
        else:
            yield each.name, " ".join((documented.get(each.name) or "").split())


@pytest.mark.parametrize("columns", [80, 120])
def test_help_lists_every_field_of_the_scripts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", [f"/{'folder/' * 20}train.py"])
    with pytest.raises(SystemExit) as caught:
        parse_command_line(RealConfig, arguments=["--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith("usage: train.py ")
    assert max(map(len, help_text.splitlines())) <= columns
    words = " ".join(help_text.replace("│", " ").split())
    for name, meaning in meanings(RealConfig):
        if "." not in name:
            continue  # this test's own
        assert meaning, f"{name} has no text below it"
        option = rf"--{re.escape(name)} \S.*? {re.escape(meaning)} \((default: .+|optional)\)"
        assert re.search(option, words), f"{name} is not in the help"
    assert "--rollout.tasks_per_step INT Tasks of one step" in words
    assert "Peak learning rate of AdamW. (default: 8e-05)" in words
    assert "--env.id TEXT [TEXT ...] " in words
    assert "(default: forkgym/WordMath-v0 forkgym/MultiHop-v0)" in words
