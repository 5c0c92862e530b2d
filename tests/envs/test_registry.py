"""Environments by name: ids, references, and what is said of those that lead nowhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from forkgym.envs.base import ToolEnv
from forkgym.envs.config import EnvConfig, make_envs, make_held_out_envs, trained_on
from forkgym.envs.forking import fork
from forkgym.envs.gsm8k import GSM8KEnv
from forkgym.envs.registry import creator, find_spec, make_env, options_of, short_name
from forkgym.envs.vector_env import ToolVectorEnv
from forkgym.envs.wordmath import WordMathEnv

TOOL_ENV_OPTIONS = {"tools", "grammar", "max_turns", "max_malformed", "malformed_penalty", "reward_weights"}

# A user's file: classes of each kind, functions, and an id that it registers.
USER_FILE = '''
from __future__ import annotations

import gymnasium as gym

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task

pi = 3.14


class Echo(ToolEnv):
    """Say what you are told to; it has no splits."""

    def __init__(self, **options):
        super().__init__(**{"max_turns": 3, **options})

    def task(self, index):
        return Task(f"Say {index}.", str(index))

    def score(self, answer, task):
        return {"said": float(answer == task.answer)}


class Closed(Echo):
    """Takes one option alone."""

    def __init__(self, max_turns: int = 2):
        super().__init__(max_turns=max_turns)


class Demanding(Echo):
    """Needs an argument that no script has."""

    def __init__(self, secret, **options):
        super().__init__(**options)


class Split(Echo):
    """Has splits."""

    held_out_split = "validation"

    def __init__(self, *, split="train", **options):
        self.split = split
        super().__init__(**options)


def make(max_turns: int = 5) -> Echo:
    return Echo(max_turns=max_turns)


def make_cart():
    return gym.make("CartPole-v1")


gym.register("user/Echo-v0", entry_point=Echo, kwargs={"max_turns": 4})
'''


@pytest.fixture
def user_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "my envs.py"
    path.write_text(USER_FILE)
    yield path
    gym.registry.pop("user/Echo-v0", None)


def tool_env(env: gym.Env[str, str]) -> ToolEnv:
    bare = env.unwrapped
    assert isinstance(bare, ToolEnv)
    return bare


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("forkgym/GSM8K-v0", "forkgym/GSM8K-v0"),
        ("CartPole-v1", "CartPole-v1"),
        ("forkgym.envs:forkgym/GSM8K-v0", "forkgym/GSM8K-v0"),
        ("a/b/c.py:user/Echo-v0", "user/Echo-v0"),
        ("a/b/my envs.py:Echo", "my envs.py:Echo"),
        ("/abs/envs.py:Outer.Echo", "envs.py:Outer.Echo"),
        ("package.envs:Echo", "package.envs:Echo"),
        ("Echo", "Echo"),
    ],
)
def test_short_names(source: str, name: str) -> None:
    assert short_name(source) == name
    assert short_name(name) == name


def test_what_makes_an_environment(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert creator("forkgym/WordMath-v0") is creator("forkgym.envs:forkgym/WordMath-v0") is WordMathEnv
    assert creator("forkgym.envs.wordmath:WordMathEnv") is WordMathEnv
    echo = creator(f"{user_file}:Echo")
    assert creator(f"{user_file}:user/Echo-v0") is creator("user/Echo-v0") is echo
    monkeypatch.chdir(user_file.parent)
    assert creator("my envs.py:Echo") is echo


def test_environments_of_a_file(user_file: Path) -> None:
    registered = set(gym.registry)
    for name, max_turns in (("Echo", 3), ("make", 5), ("Closed", 2), ("user/Echo-v0", 4)):
        env = make_env(f"{user_file}:{name}")
        assert tool_env(env).max_turns == max_turns
        env.reset(options={"index": 7})
        assert fork(env).step("<answer>7</answer>")[1:3] == (1.0, True)
        assert env.spec is not None
        assert env.spec.id == ("user/Echo-v0" if "/" in name else f"my_envs.py:{name}")
    assert set(gym.registry) - registered <= {"user/Echo-v0"}  # what the file did itself
    assert tool_env(make_env(f"{user_file}:user/Echo-v0", max_turns=9)).max_turns == 9


def test_a_vector_of_environments_of_a_file(user_file: Path) -> None:
    envs = gym.make_vec(find_spec(f"{user_file}:Echo"), num_envs=2, max_turns=1)
    assert isinstance(envs, ToolVectorEnv)
    envs.reset(seed=0, options={"index": 7})
    _, rewards, terminated, _, _ = envs.step(["<answer>7</answer>", "<answer>8</answer>"])
    assert (list(rewards), list(terminated)) == ([1.0, 0.0], [True, True])
    envs.close()


def test_the_options_of_a_class_are_its_bases_too(user_file: Path) -> None:
    assert set(options_of("forkgym.envs.gsm8k:GSM8KEnv")) >= {"split", "path", *TOOL_ENV_OPTIONS}
    assert set(options_of(f"{user_file}:Echo")) >= TOOL_ENV_OPTIONS
    assert "split" not in options_of(f"{user_file}:Echo")
    assert options_of(f"{user_file}:Closed") == ("max_turns",)
    assert options_of(f"{user_file}:make") == ("max_turns",)
    assert "self" not in options_of("forkgym/GSM8K-v0")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("forkgym/Nothing-v0", "no such id; expected one of forkgym/"),
        ("forkgym.envs:forkgym/Nothing-v0", "no such id"),
        ("no_such_module:Echo", "there is no module 'no_such_module'"),
        ("no_such_module:user/Echo-v0", "there is no module 'no_such_module'"),
        ("nowhere.py:Echo", "there is no file 'nowhere.py'"),
        ("a folder/file:Echo", "'a folder/file' is no module name and does not end in .py"),
        ("forkgym.envs.wordmath:Nothing", "forkgym.envs.wordmath has no attribute 'Nothing'"),
        ("{file}:pi", "is 3.14, expected a class or a function that makes one"),
        ("{file}:make_cart", "is no environment of text with tools, expected a ToolEnv"),
        ("CartPole-v1", "is no environment of text with tools, expected a ToolEnv"),
        ("{file}:Demanding", "cannot be made with {}: missing a required argument: 'secret'"),
        ("", "no such id"),
        (":", "no such id"),
    ],
)
def test_what_is_no_environment(user_file: Path, source: str, words: str) -> None:
    source = source.replace("{file}", str(user_file))
    with pytest.raises(ValueError, match="environment") as caught:
        make_env(source)
    assert str(caught.value).startswith(f"environment {source!r}")
    assert words in str(caught.value)
    assert "CartPole" not in str(caught.value).removeprefix(f"environment {source!r}")  # nobody can train on it here


def test_an_error_in_a_users_file_propagates(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('of its own')")
    with pytest.raises(ValueError, match="^of its own$"):
        make_env(f"{tmp_path}/broken.py:Echo")


# Configs.


def test_environments_of_a_config_go_by_their_short_names(user_file: Path) -> None:
    envs = make_envs(EnvConfig(id=(f"{user_file}:Echo", f"{user_file}:Closed", "forkgym/WordMath-v0"), max_turns=7))
    assert list(envs) == ["my envs.py:Echo", "my envs.py:Closed", "forkgym/WordMath-v0"]
    assert [tool_env(env).max_turns for env in envs.values()] == [7, 7, 7]


def test_the_same_name_twice_is_refused() -> None:
    for ids in ((), ("forkgym/GSM8K-v0", "forkgym.envs:forkgym/GSM8K-v0"), ("a/envs.py:Echo", "b/envs.py:Echo")):
        with pytest.raises(ValueError, match="expected at least one environment, each once"):
            EnvConfig(id=ids)


def test_options_go_to_those_that_take_them(user_file: Path) -> None:
    both = (f"{user_file}:Closed", f"{user_file}:Split")
    options = EnvConfig(split="test", grammar="search_r1", tools=("calculator",), malformed_penalty=0.5)
    envs = [tool_env(env) for env in make_envs(replace(options, id=both)).values()]
    assert [env.grammar.name for env in envs] == ["arpo", "search_r1"]
    assert [env.tool_names for env in envs] == [(), ("calculator",)]
    assert [env.malformed_penalty for env in envs] == [0.0, 0.5]
    assert vars(envs[1])["split"] == "test"
    # The defaults of split and grammar may be taken by none; what was asked for may not.
    make_envs(EnvConfig(id=both[:1]))
    asked: list[dict[str, Any]] = [{"split": "test"}, {"grammar": "hermes"}, {"tools": ("a",)}, {"retriever": "bm25"}]
    for given in asked:
        with pytest.raises(ValueError, match=rf"env\.{next(iter(given))} is .*, but .*:Closed takes no such option"):
            make_envs(EnvConfig(id=both[:1], **given))


def test_held_out_tasks_of_environments_with_and_without_splits(user_file: Path) -> None:
    config = EnvConfig(id=(f"{user_file}:Split", f"{user_file}:Echo", "forkgym/WordMath-v0"), max_turns=4)
    held_out = make_held_out_envs(config, None, None)
    assert list(held_out) == ["my envs.py:Split", "my envs.py:Echo", "forkgym/WordMath-v0"]
    splits = [vars(tool_env(env)).get("split") for env in held_out.values()]
    assert splits[:2] == ["validation", None]
    assert [tool_env(env).max_turns for env in held_out.values()] == [4, 4, 4]
    assert trained_on(config, None, None) == ["my envs.py:Echo"]
    assert trained_on(config, "train", None) == ["my envs.py:Split", "my envs.py:Echo", "forkgym/WordMath-v0"]


def test_held_out_options_that_none_takes_are_refused(user_file: Path) -> None:
    config = EnvConfig(id=(f"{user_file}:Echo",))
    with pytest.raises(ValueError, match="evaluation.split is 'test', but .*:Echo takes no such option"):
        make_held_out_envs(config, "test", None)
    with pytest.raises(ValueError, match="evaluation.path is 'rows.jsonl', but .*:Echo takes no such option"):
        make_held_out_envs(config, None, "rows.jsonl")
    with pytest.raises(ValueError, match="env.corpus is 'pages.jsonl', but .*:Echo takes no such option"):
        make_held_out_envs(EnvConfig(id=config.id, corpus="pages.jsonl"), None, None)


def test_a_file_of_tasks_is_held_out_where_it_is_another(gsm8k_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(gsm8k_file.read_text())
    config = EnvConfig(id=("forkgym.envs.gsm8k:GSM8KEnv",), path=str(gsm8k_file))
    assert isinstance(tool_env(make_envs(config)["forkgym.envs.gsm8k:GSM8KEnv"]), GSM8KEnv)
    assert trained_on(config, None, None) == ["forkgym.envs.gsm8k:GSM8KEnv"]
    assert trained_on(config, None, str(other)) == []
