"""The script of the cold start from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoTokenizer

from forkgym.agents.building import load_policy
from forkgym.agents.config import AgentConfig
from forkgym.agents.loading import model_location
from forkgym.trainers.sft import training as sft
from tests.agents.tiny import make_model
from tests.test_scripts import SCRIPTS, UNSOLVED, evaluate, load, metrics, train

SHORT = ("--sft.num_demonstrations", "16", "--sft.batch_size", "4", "--sft.micro_batch_size", "2")
MATH = ("--env.id", "forkgym/WordMath-v0")


def fine_tune(*arguments: str) -> int:
    script = load("train_sft")
    status: int = script.main(script.parse_command_line(script.SftRunConfig, arguments=[*arguments]))
    return status


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(AgentConfig(model=str(folder))).model.state_dict()


def test_a_run_leaves_a_model_and_the_same_seed_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("first", "0"), ("second", "0"), ("third", "1")):
        assert fine_tune(*SHORT, *MATH, "--run_dir", str(tmp_path / name), "--seed", seed) == 0
    run = tmp_path / "first"
    said = capsys.readouterr().out
    assert said.startswith("Making demonstrations ...\n16 demonstrations of ")
    assert "\nOptimizer steps: 4; no warm-up.\n" in said
    assert f"python scripts/evaluate.py --agent.model {run}/model --env.id forkgym/WordMath-v0\n" in said
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        "config.yaml",
        "metrics.jsonl",
        "model",
    }
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(
        {"loss", "grad_norm", "learning_rate", "tokens/trained", "epoch", "time/train_s"} <= set(row) for row in rows
    )
    untimed = [[row[name] for name in ("loss", "grad_norm")] for row in rows]
    assert untimed == [[row[name] for name in ("loss", "grad_norm")] for row in metrics(tmp_path / "second")]
    one, same, other = (weights(tmp_path / name / "model") for name in ("first", "second", "third"))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_embedded_policy_learns_the_solutions(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--sft.num_demonstrations", "320", "--sft.batch_size", "16")
    assert fine_tune(*MATH, *options, "--run_dir", str(run)) == 0
    losses = [row["loss"] for row in metrics(run)]
    assert len(losses) == 20
    # The first is that of the policy as it comes. Half of its bad habits go.
    assert sum(losses[-5:]) / 5 < losses[0] / 2
    # The model is one that the other scripts take.
    output = tmp_path / "results.json"
    model = ("--agent.model", str(run / "model"))
    assert evaluate(*MATH, *model, "--num_tasks", "20", "--rollout.max_turn_tokens", "64", "--output", str(output)) == 0
    (result,) = json.loads(output.read_text()).values()
    assert result["accuracy"] >= 0.6  # without: 0.25
    assert train(*MATH, *model, "--run_dir", str(tmp_path / "rl"), "--trainer.num_steps", "1") == 0


def test_adapters_can_be_trained_in_place_of_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = tmp_path / "run"
    options = ("--agent.lora.rank", "2", "--agent.lora.target_modules", "q_proj", "--sft.learning_rate", "1e-2")
    assert fine_tune(*MATH, *SHORT, *options, "--run_dir", str(run)) == 0
    before, after = load_policy(AgentConfig()).model.state_dict(), weights(run / "model")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    # Merged into a plain model, as the other scripts take it.
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(4)}


def test_conversations_are_learnt_with_a_real_tokenizer(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path, run = tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "run"
    make_model(vocabulary=6400, max_position_embeddings=512).save_pretrained(folder)
    AutoTokenizer.from_pretrained(shared_data / "tokenizer").save_pretrained(folder)
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "7"}]}
        for question in ("3 + 4?", "5 + 2?", "word " * 600)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--sft.conversations", str(path), "--sft.batch_size", "2", "--sft.micro_batch_size", "1"]
    options += ["--sft.epochs", "3", "--agent.model", str(folder)]
    assert fine_tune(*options, "--run_dir", str(run)) == 0
    said = capsys.readouterr().out
    assert "of which the policy writes 4 (" in said  # twice "7" and the end of a message
    assert "Left out: 1 of 3 (33.3%) too long (above 512 tokens)." in said
    assert "--env.grammar hermes --env.id ..." in said
    assert [row["tokens/trained"] for row in metrics(run)] == [4, 4, 4]


def test_interrupted_it_leaves_the_model_as_it_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sft.fine_tune

    def interrupted(tuning: Any, demonstrations: Any, on_step: Callable[[Mapping[str, float]], None]) -> None:
        def stop(figures: Mapping[str, float]) -> None:
            on_step(figures)
            if figures["step"] == 2:
                raise KeyboardInterrupt

        real(tuning, demonstrations, stop)

    monkeypatch.setattr(sft, "fine_tune", interrupted)
    run = tmp_path / "run"
    assert fine_tune(*SHORT, *MATH, "--run_dir", str(run)) == 130
    assert "Stopped after " in capsys.readouterr().out
    assert len(metrics(run)) == 2
    assert weights(run / "model")


def test_a_loss_that_is_not_finite_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise sft.SftError("loss is nan in step 1; a lower learning rate may help")

    monkeypatch.setattr(sft, "fine_tune", broken)
    run = tmp_path / "run"
    assert fine_tune(*SHORT, *MATH, "--run_dir", str(run)) == 1
    assert capsys.readouterr().err.strip().endswith("a lower learning rate may help; no model is saved")
    assert not (run / "model").exists()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        folder = tmp_path / "refused"
        with pytest.raises(SystemExit) as stop:
            fine_tune(*arguments, "--run_dir", str(folder))
        assert stop.value.code == 2
        printed = capsys.readouterr().err.strip()
        assert len(printed.splitlines()) == 1
        assert not folder.exists()
        return printed.removeprefix("error: ")

    return run


def test_bad_settings_are_refused(refused: Callable[..., str]) -> None:
    assert "seed is -1" in refused("--seed", "-1")
    assert "agent.kind is 'oracle', expected transformers" in refused("--agent.kind", "oracle")
    assert "sft.num_demonstrations is 1, expected at least one for each of the 2" in refused(
        "--sft.num_demonstrations", "1"
    )
    assert "did you mean --sft.epochs?" in refused("--sft.epoch", "1")
    assert "expected no env settings with it" in refused("--sft.conversations", "rows.jsonl", *MATH)
    assert "'forkgym/Nothing-v0'" in refused("--env.id", "forkgym/Nothing-v0")
    assert "no/such/model" in refused("--agent.model", "no/such/model")
    assert refused(*MATH, *SHORT, "--sft.warmup_steps", "10") == (
        "sft.warmup_steps is 10, expected at most 4, as many as this run has steps"
    )
    assert refused(*MATH, *SHORT, "--sft.max_tokens", "10").startswith(
        "sft.max_tokens is 10, but the shortest demonstration of forkgym/WordMath-v0 has "
    )


def test_an_environment_whose_tasks_have_no_solutions_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "unsolved.py").write_text(UNSOLVED)
    said = refused("--env.id", f"{tmp_path}/unsolved.py:Unsolved", "--sft.num_demonstrations", "3")
    assert said == (
        f"{tmp_path}/unsolved.py:Unsolved: no task can be demonstrated (3 without a solution), expected an environment "
        "whose tasks say how they are solved, or sft.conversations"
    )


def test_a_tokenizer_without_a_chat_template_is_refused_where_one_is_needed(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    load_policy(AgentConfig()).model.save_pretrained(folder)
    tokenizer = cast("Any", AutoTokenizer.from_pretrained(model_location("embedded")))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    model = ("--agent.model", str(folder))
    assert "no chat template" in refused(*model, "--sft.conversations", str(tmp_path / "rows.jsonl"))
    assert "no chat template" in refused(*model, *MATH, *SHORT, "--env.grammar", "hermes")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(SystemExit) as stop:
        fine_tune(*SHORT, *MATH, "--run_dir", str(tmp_path))
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: run_dir {tmp_path} holds something already, expected a new folder; name another --run_dir\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_tool_that_is_down_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from forkgym.tools.base import ToolFailure\n\n"
        "def calculator(expression: str) -> str:\n"
        '    """Fail."""\n'
        '    raise ToolFailure("no route to host")\n'
    )
    run = tmp_path / "run"
    assert fine_tune(*SHORT, *MATH, "--env.tools", f"{file}:calculator", "--run_dir", str(run)) == 1
    assert capsys.readouterr().err.strip().endswith("the last with calculator: no route to host")
    assert not run.exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train_sft.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / 'train_sft.py')!r}, run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert not done.code\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert "--sft.max_tokens INT" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
