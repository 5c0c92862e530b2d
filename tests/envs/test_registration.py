"""What importing ``forkgym.envs`` does, and does not do."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.envs.registration import load_env_creator

import forkgym.envs
from forkgym.envs.base import ToolEnv

ENV_IDS = [env_id for env_id, _, _ in forkgym.envs.ENVS]
HEAVY = ("torch", "transformers", "datasets", "pandas", "bm25s")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_environment_is_registered() -> None:
    names = (
        "GSM8K MATH MATH500 AIME HotpotQA 2WikiMultihopQA MuSiQue Bamboogle WebWalkerQA VerlMath VerlSearch "
        "WordMath MultiHop Mixture"
    )
    assert sorted(ENV_IDS) == sorted(f"forkgym/{name}-v0" for name in names.split())
    assert set(ENV_IDS) <= set(gym.registry)


@pytest.mark.parametrize(("env_id", "entry_point"), [row[:2] for row in forkgym.envs.ENVS])
def test_an_entry_point_is_an_environment(env_id: str, entry_point: str) -> None:
    made_by = load_env_creator(entry_point)
    assert isinstance(made_by, type) and issubclass(made_by, ToolEnv)
    assert gym.spec(env_id).entry_point == entry_point


def test_import_is_light() -> None:
    code = f"import sys, forkgym.envs; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(code) == "[]"


def test_make_imports_by_itself(gsm8k_file: Path) -> None:
    code = (
        "import gymnasium as gym\n"
        f"env = gym.make('forkgym.envs:forkgym/GSM8K-v0', path={str(gsm8k_file)!r})\n"
        "print(env.reset(options={'index': 2})[1]['question'])"
    )
    assert run_python(code) == "How many legs has a cat?"


def test_every_argument_of_the_design_is_accepted(gsm8k_file: Path) -> None:
    env = gym.make(
        "forkgym/GSM8K-v0", split="test", path=str(gsm8k_file), tools=["calculator"], grammar="arpo", max_turns=6
    )
    bare = env.unwrapped
    assert isinstance(bare, ToolEnv)
    assert (bare.tool_names, bare.grammar.name, bare.max_turns) == (("calculator",), "arpo", 6)


def test_plugins_are_the_modules_of_the_entry_point_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "third_party_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('third_party/Words-v0', entry_point='forkgym.envs.wordmath:WordMathEnv')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    groups: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        groups.append(group)
        return [EntryPoint("words", "third_party_envs", group)]

    monkeypatch.setattr(forkgym.envs, "entry_points", entry_points)
    assert "third_party/Words-v0" not in gym.registry

    forkgym.envs.load_plugins()

    assert groups == ["forkgym.envs"]
    assert isinstance(gym.make("third_party/Words-v0").unwrapped, ToolEnv)
    del gym.registry["third_party/Words-v0"]
