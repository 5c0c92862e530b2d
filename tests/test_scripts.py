"""The scripts from the outside: runs that are short, and mistakes that are answered in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from transformers import AutoTokenizer

from forkgym.agents.loading import model_location
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.trainers.runs.reporting import Progress

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY_RUN = (
    "--trainer.num_steps 3 --rollout.num_generations 4 --rollout.initial_generations 2 --rollout.tasks_per_step 2 "
    "--rollout.max_turn_tokens 16 --evaluation.num_tasks 2 --trainer.log_rollouts_every 2"
).split()
TIMES = ("time/rollout_s", "time/train_s", "time/sync_s")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def train(*arguments: str) -> int:
    script = load("train_arpo")
    status: int = script.main(script.read_config([*TINY_RUN, *arguments]))
    return status


def evaluate(*arguments: str) -> int:
    script = load("evaluate")
    status: int = script.main(script.parse_command_line(script.EvaluateConfig, arguments=[*arguments]))
    return status


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_a_run_leaves_what_the_readme_says_and_the_same_seed_the_same(tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert train("--run_dir", str(tmp_path / name)) == 0
    run = tmp_path / "first"
    present = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "learning_curve.png",
        "rollouts/step-000002.jsonl",
        "checkpoints/step-000003",
    } <= present
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    wanted = (
        "reward/mean reward/std accuracy groups/valid_fraction turns/mean tool_calls/mean tokens/sampled "
        "tokens/trained entropy/mean loss grad_norm accuracy/forkgym/WordMath-v0 accuracy/forkgym/MultiHop-v0"
    ).split()
    assert all(name in row for row in rows for name in (*wanted, *TIMES))
    gaps = [row["mismatch/max"] for row in rows if not row["step_skipped"]]
    assert 0 < max(gaps) < 1e-4
    assert untimed(rows) == untimed(metrics(tmp_path / "second"))
    assert (run / "evaluation.json").read_text() == (tmp_path / "second" / "evaluation.json").read_text()


def test_what_the_agent_measures_of_itself_is_in_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(agent: TransformersAgent) -> dict[str, float]:
        return {"probe_gap": 0.25}

    monkeypatch.setattr(TransformersAgent, "figures", figures)
    assert train("--run_dir", str(tmp_path / "run"), "--trainer.num_steps", "1", "--evaluation.num_tasks", "0") == 0
    assert [row["agent/probe_gap"] for row in metrics(tmp_path / "run")] == [0.25]


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train("--run_dir", str(whole)) == 0

    def interrupt(self: Progress, step: int, metrics: object) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupt)
        assert train("--run_dir", str(parts)) == 130
    assert f"--run_dir {parts} --resume" in capsys.readouterr().out
    assert len(metrics(parts)) == 2
    script = load("train_arpo")
    assert script.main(script.read_config(["--run_dir", str(parts), "--resume"])) == 0
    assert untimed(metrics(parts)) == untimed(metrics(whole))
    assert (parts / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def run(action: Callable[..., int], *arguments: str) -> str:
        folder = tmp_path / "refused"
        extra = () if action is evaluate else ("--run_dir", str(folder))
        with pytest.raises(SystemExit) as stop:
            action(*arguments, *extra)
        assert stop.value.code == 2
        printed = capsys.readouterr().err.strip()
        assert len(printed.splitlines()) == 1
        assert not folder.exists()
        return printed

    return run


def test_unknown_names_are_refused(refused: Callable[..., str]) -> None:
    assert "'forkgym/Nothing-v0'" in refused(train, "--env.id", "forkgym/Nothing-v0")
    assert "forkgym/GSM8K-v0" in refused(evaluate, "--env.id", "forkgym/Nothing-v0")
    assert "hammer" in refused(train, "--env.tools", "hammer")
    assert "xml" in refused(train, "--env.grammar", "xml")
    assert "num_stepz" in refused(train, "--trainer.num_stepz", "3")
    assert "no/such/model" in refused(train, "--agent.model", "no/such/model")
    assert "many" in refused(train, "--trainer.num_steps", "many")
    assert "rollout.num_generations" in refused(train, "--rollout.num_generations", "1")


def test_bad_data_files_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    def file(text: str) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text(text)
        return str(path)

    gsm8k = ("--env.id", "forkgym/GSM8K-v0", "--env.path")
    assert "missing.jsonl" in refused(train, *gsm8k, str(tmp_path / "missing.jsonl"))
    assert "rows.jsonl" in refused(train, *gsm8k, file('{"question": "1?"\n'))
    assert "answer" in refused(train, *gsm8k, file('{"question": "1?"}\n'))
    assert "rows.jsonl" in refused(train, *gsm8k, file(""))
    assert "env.path" in refused(train, "--env.id", "forkgym/WordMath-v0", "--env.path", file("{}"))


@pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
def test_a_tokenizer_without_an_end_or_padding_is_refused(
    refused: Callable[..., str], tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    tokenizer = cast("Any", AutoTokenizer.from_pretrained(model_location("embedded")))
    setattr(tokenizer, missing, None)
    tokenizer.save_pretrained(folder)
    assert missing in refused(train, "--agent.model", str(folder))


def test_an_earlier_run_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(SystemExit) as stop:
        train("--run_dir", str(tmp_path))
    assert stop.value.code == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "precious\n"


def test_a_tool_that_is_down_stops_a_run_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from forkgym.tools.base import ToolFailure\n\n"
        "def calculator(expression: str) -> str:\n"
        '    """Fail."""\n'
        '    raise ToolFailure("no route to host")\n'
    )
    run = tmp_path / "run"
    options = ("--env.id", "forkgym/WordMath-v0", "--env.tools", f"{file}:calculator", "--evaluation.num_tasks", "0")
    assert train("--run_dir", str(run), *options) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: wordmath-1/train/")
    assert said.endswith(
        f"trajectories failed, the last with calculator: no route to host; the last good state is in {run}/checkpoints"
    )
    assert (run / "checkpoints" / "step-000000").is_dir()
    assert not (run / "metrics.jsonl").exists()


def test_without_tools_the_oracle_answers_at_once(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ("--env.id", "forkgym/WordMath-v0", "--env.tools", "nothing", "--env.max_turns", "1")
    assert evaluate("--agent.kind", "oracle", "--num_tasks", "5", *options, "--output", str(output)) == 0
    (result,) = json.loads(output.read_text()).values()
    assert (result["accuracy"], result["turns/mean"], result["tool_calls/mean"]) == (1.0, 1.0, 0.0)


UNSOLVED = """
from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task


class Unsolved(ToolEnv):
    def task(self, index):
        return Task("What?", answer="That.", uid=f"unsolved/{index}")
"""


def test_an_oracle_without_a_solution_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unsolved.py").write_text(UNSOLVED)
    assert evaluate("--agent.kind", "oracle", "--num_tasks", "1", "--env.id", f"{tmp_path}/unsolved.py:Unsolved") == 1
    said = "error: task 'unsolved/0' has no solution, expected at least one turn for the oracle\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("grammar", ["arpo", "search_r1", "hermes"])
def test_the_oracle_evaluates_to_one(tmp_path: Path, grammar: str) -> None:
    output = tmp_path / "results.json"
    options = ("--agent.kind", "oracle", "--num_tasks", "20", "--env.grammar", grammar)
    assert evaluate(*options, "--output", str(output)) == 0
    results = json.loads(output.read_text())
    assert set(results) == {"forkgym/WordMath-v0", "forkgym/MultiHop-v0"}
    for result in results.values():
        assert result["accuracy"] == result["accuracy/sampled"] == result["pass@k"] == 1.0
        assert result["interval"][0] < 1.0 == result["interval"][1]
        assert result["stop_reasons"] == {"answered": 20}


@pytest.mark.parametrize("env_id", ["forkgym/GSM8K-v0", "forkgym/HotpotQA-v0"])
def test_three_steps_on_real_data(shared_data: Path, tmp_path: Path, env_id: str) -> None:
    file = {"GSM8K": "gsm8k/train.jsonl", "HotpotQA": "hotpotqa/dev_distractor_100.json"}[env_id[8:-3]]
    options = ["--env.id", env_id, "--env.path", str(shared_data / file), "--run_dir", str(tmp_path / "run")]
    assert train(*options, "--rollout.max_turn_tokens", "32") == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    assert all(row["tokens/sampled"] > 0 and row[f"accuracy/{env_id}"] <= 0.5 for row in rows)
