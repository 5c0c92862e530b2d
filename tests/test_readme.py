"""What the README shows, works."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_environment_loop(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[0], {})
    printed = capsys.readouterr().out
    assert "<result>84</result>" in printed
    assert printed.endswith("0.0 <result>42</result>\n")


def test_the_grammar_can_be_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "plans.py").write_text(BLOCKS[1])
    env = gym.make("forkgym/WordMath-v0", grammar=f"{tmp_path}/plans.py:PLANS")
    env.reset(options={"index": 0})
    assert env.step("<plan>Add.</plan><calculator>1 + 2</calculator>")[0] == "<output>3</output>"
    assert env.step("<final>3</final>")[2]


def test_the_tool_can_be_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "units.py").write_text(BLOCKS[2])
    assert len(BLOCKS[2].strip().splitlines()) <= 15
    env = gym.make("forkgym/WordMath-v0", tools=["calculator", f"{tmp_path}/units.py:convert"])
    env.reset(options={"index": 0})
    assert env.step("<convert>3 mi km</convert>")[0] == "<result>4.82803 km</result>"
    assert "expected" in env.step("<convert>a mile</convert>")[0]


def test_the_environment_passes_its_check(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: gym.registry.pop("Square-v0", None))
    exec(BLOCKS[3], {"__name__": "readme"})
    env = gym.make("Square-v0")
    env.reset(options={"index": 12})
    assert env.step("<answer>144</answer>")[1] == 1.0


def test_every_file_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:tools|envs|agents|trainers|scripts)/[\w/]+\.py)`", README)
    named += re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
