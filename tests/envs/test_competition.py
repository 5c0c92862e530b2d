"""MATH, MATH-500 and AIME: their rows as tasks, their score, and the hub's own rows where it can be reached."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import gymnasium as gym
import httpx
import pytest

from forkgym.envs.checking import check_tool_env
from forkgym.envs.competition import AIMEEnv, CompetitionMathEnv, MATH500Env, MATHEnv, cached_taskset
from forkgym.envs.math_env import copied
from forkgym.envs.sources import DataError
from forkgym.envs.tasks import SolutionStep, StopReason, Task
from forkgym.envs.verification.verify_process import shared_process
from forkgym.tools.base import ToolFailure
from tests.envs.small_competitions import AIME_ROWS, MATH500_ROWS, MATH_ROWS

TOOLS = ("calculator",)


def file_of(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def answer(env: CompetitionMathEnv, index: int, text: str) -> tuple[float, dict[str, Any]]:
    env.reset(options={"index": index})
    _, reward, _, _, info = env.step(f"<answer>{text}</answer>")
    return reward, info


def test_rows_of_math(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        env = MATHEnv(path=file_of(tmp_path, MATH_ROWS), tools=TOOLS)
    assert caplog.messages == ["math/test: left out 1 of 3 rows, which have no verifiable answer"]
    assert env.num_tasks == 2
    first, second = env.task(0), env.task(1)
    assert (first.question, first.answer, first.uid) == (MATH_ROWS[0]["problem"], r"2\sqrt{2}", "math/test/0")
    assert (second.answer, second.uid) == (r"\frac{1}{2}", "math/test/2")  # the place in the source
    assert second.metadata["subject"] == "Counting & Probability"
    assert second.metadata["level"] == "Level 1"
    assert first.solution == (SolutionStep(r"2\sqrt{2}"),)
    with pytest.raises(IndexError):
        env.task(2)


def test_rows_of_math_500(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = MATH500Env(path=file_of(tmp_path, MATH500_ROWS), tools=TOOLS)
    assert "left out 1 of 3" in caplog.text
    assert env.num_tasks == 2
    task = env.task(0)
    assert (task.answer, task.uid) == ("(-3,3)", "math500/test/0")
    assert (task.metadata["level"], task.metadata["source_id"]) == ("2", "test/algebra/1.json")


def test_rows_of_both_aimes(tmp_path: Path) -> None:
    env = AIMEEnv(path=file_of(tmp_path, AIME_ROWS), tools=TOOLS)
    assert [env.task(index).answer for index in range(2)] == ["25", "009"]
    assert [env.task(index).metadata["source_id"] for index in range(2)] == ["2024-I-0", "0"]
    assert answer(env, 0, r"\boxed{025}")[0] == 1.0
    assert answer(env, 1, r"\boxed{9}")[0] == 1.0
    assert answer(env, 1, r"\boxed{90}")[0] == 0.0


def test_a_column_may_be_null(tmp_path: Path) -> None:
    row = {"problem": "How many?", "solution": None, "answer": 7, "subject": None, "level": None, "unique_id": None}
    task = MATH500Env(path=file_of(tmp_path, [row]), tools=TOOLS).task(0)
    assert (task.answer, task.metadata["solution"]) == ("7", "")


@pytest.mark.parametrize(("path", "asked"), [(None, "train"), ("Maxwell-Jia/AIME_2024", "train"), ("o/d", "test")])
def test_the_hubs_name_of_a_split(monkeypatch: pytest.MonkeyPatch, path: str | None, asked: str) -> None:
    splits: list[str] = []

    def load_dataset(**arguments: Any) -> datasets.Dataset:
        splits.append(arguments["split"])
        return datasets.Dataset.from_list(AIME_ROWS[:1])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cached_taskset.cache_clear()
    AIMEEnv(path=path, tools=TOOLS)
    cached_taskset.cache_clear()
    assert splits == [asked]


@pytest.mark.parametrize(
    ("text", "question", "gold", "is_copied"),
    [
        (r"\boxed{2x-y+3=0}", "Write $2x - y + 3 = 0$ with y on the left.", "y=2x+3", True),
        (r"\boxed{1 \le x \le 2}", r"Write $1 \le x \le 2$ as an interval.", "[1,2]", True),
        (r"\boxed{2\sqrt{3}}", r"Which? A: $2\sqrt{3}$ B: $\sqrt{2}$", r"A: 2\sqrt{3}", False),  # one of the choices
        (r"\boxed{(A) 2\sqrt{3}}", r"Which? A: $2\sqrt{3}$ B: $\sqrt{2}$", r"2\sqrt{3}", False),
    ],
)
def test_what_is_copied_out_of_the_question(text: str, question: str, gold: str, is_copied: bool) -> None:
    assert copied(text, Task(question, gold)) is is_copied


def test_a_file_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="math/test: no row has an answer"):
        MATHEnv(path=file_of(tmp_path, [MATH_ROWS[1]]), tools=TOOLS)
    with pytest.raises(DataError, match="expected the columns problem or Problem"):
        MATHEnv(path=file_of(tmp_path, [{"question": "a", "answer": "1"}]), tools=TOOLS)


@pytest.mark.parametrize(
    ("text", "reward", "extraction"),
    [
        (r"\boxed{2\sqrt{2}}", 1.0, ""),
        (r"\boxed{\sqrt{8}}", 1.0, ""),
        (r"\boxed{2.828427}", 1.0, ""),
        (r"\boxed{\sqrt{2}}", 0.0, ""),
        (r"\boxed{\sqrt{50} - 3\sqrt{2}}", 0.0, ""),  # equal, and nothing was worked out
        (r"\boxed{x = \sqrt{50}-3\sqrt{2}}", 0.0, ""),
        (r"\boxed{}", 0.0, "empty"),
        (r"\boxed{\frac{}", 0.0, "unreadable"),
        ("1" * 2_000, 0.0, "unreadable"),
    ],
)
def test_score(tmp_path: Path, text: str, reward: float, extraction: str) -> None:
    env = MATHEnv(path=file_of(tmp_path, MATH_ROWS), tools=TOOLS)
    earned, info = answer(env, 0, text)
    assert (earned, info["reward/correct"], info["accuracy"]) == (reward, reward, reward)
    assert info["extraction"] == extraction
    assert info["reward/grading_timeout"] == 0.0
    assert info["stop_reason"] == StopReason.ANSWERED


def test_a_timeout_is_counted_and_earns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared_process().compare("x", "x")  # it has started
    monkeypatch.setattr(shared_process(), "limit_s", 0.2)
    env = MATHEnv(path=file_of(tmp_path, MATH_ROWS), tools=TOOLS)
    earned, info = answer(env, 0, r"\boxed{8^{8^{8^{8}}}}")
    assert (earned, info["reward/correct"], info["reward/grading_timeout"]) == (0.0, 0.0, 1.0)
    assert info["extraction"] == "timeout"
    assert info["stop_reason"] == StopReason.ANSWERED


def test_a_failed_comparison_is_not_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gold: str, prediction: str) -> str:
        raise ToolFailure("no program")

    monkeypatch.setattr(shared_process(), "compare", fail)
    env = MATHEnv(path=file_of(tmp_path, MATH_ROWS), tools=TOOLS)
    earned, info = answer(env, 0, r"\boxed{1+\sqrt{3}}")
    assert (earned, info["stop_reason"]) == (0.0, StopReason.TOOL_FAILURE)
    assert info["failure"] == "score: no program"


@pytest.mark.parametrize(("kind", "rows"), [(MATHEnv, MATH_ROWS), (MATH500Env, MATH500_ROWS), (AIMEEnv, AIME_ROWS)])
def test_the_contract_is_kept(tmp_path: Path, kind: type[CompetitionMathEnv], rows: list[dict[str, Any]]) -> None:
    check_tool_env(kind(path=file_of(tmp_path, rows), tools=TOOLS))


# The hub's own rows. The tests run with the hub switched off, so this one asks it from another process.

HUB_CHECK = """
import sys
import gymnasium as gym
import forkgym.envs
env = gym.make(sys.argv[1], tools=["calculator"], **({"path": sys.argv[2]} if len(sys.argv) > 2 else {})).unwrapped
env.reset(options={"index": 0})
_, reward, _, _, _ = env.step(env.render_step(env.current_task.solution[-1]))
print(env.num_tasks, reward)
"""


@pytest.fixture(scope="module")
def hub() -> None:
    try:
        httpx.head("https://huggingface.co", timeout=3.0)
    except httpx.HTTPError as error:
        pytest.skip(f"needs the Hugging Face hub, which cannot be reached: {error}")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        (["forkgym/MATH-v0"], 4_900),
        (["forkgym/MATH-v0", "EleutherAI/hendrycks_math:algebra"], 1_100),
        (["forkgym/MATH500-v0"], 490),
        (["forkgym/AIME-v0"], 30),
        (["forkgym/AIME-v0", "math-ai/aime25"], 30),
    ],
)
def test_rows_of_the_hub(arguments: list[str], least: int) -> None:
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", HUB_CHECK, *arguments], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    size, reward = done.stdout.split()
    assert int(size) >= least
    assert float(reward) == 1.0


def test_the_ids_are_registered() -> None:
    for name, kind in (("MATH", "MATHEnv"), ("MATH500", "MATH500Env"), ("AIME", "AIMEEnv")):
        assert gym.spec(f"forkgym/{name}-v0").entry_point == f"forkgym.envs.competition:{kind}"
