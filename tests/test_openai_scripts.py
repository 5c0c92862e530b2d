"""The scripts with a chat endpoint: evaluation works, training is refused, mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.agents.chat_server import said, serving, wrong
from tests.test_scripts import evaluate, train

OPENAI = ("--agent.kind", "openai", "--agent.model", "m", "--num_tasks", "2", "--agent.openai.base_url")


def test_evaluation(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    with serving(lambda _: said("<answer>\\boxed{no}")) as server:
        assert evaluate(*OPENAI, server.url, "--output", str(output)) == 0
    results = json.loads(output.read_text())
    assert set(results) == {"forkgym/WordMath-v0", "forkgym/MultiHop-v0"}
    for result in results.values():
        assert (result["accuracy"], result["num_tasks"], result["stop_reasons"]) == (0.0, 2, {"answered": 2})
    assert len(server.bodies) == 8  # two environments, two tasks, greedy and sampled
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {(0.0, 512), (1.0, 512)}


def test_errors_of_the_endpoint_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: wrong(401, "no key")) as server:
        assert evaluate(*OPENAI, server.url) == 1
    wanted = f"error: {server.url}/chat/completions answered with status 401 (is OPENAI_API_KEY right?): no key\n"
    assert capsys.readouterr().err == wanted
    with serving(lambda _: said("x")) as server:
        assert evaluate(*OPENAI, server.url, "--agent.openai.native_tools", "true") == 1
    assert capsys.readouterr().err.startswith("error: agent.openai.native_tools is true, but turns of this grammar")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--agent.kind", "openai"), "agent.model is not given"),
        (("--agent.kind", "openai", "--agent.openai.base_url", "ftp://x"), "agent.openai.base_url is 'ftp://x'"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate(*arguments)
    said_line = capsys.readouterr().err.strip()
    assert caught.value.code == 2
    assert words in said_line
    assert "\n" not in said_line


def test_training_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train("--run_dir", str(tmp_path / "run"), "--agent.kind", "openai", "--agent.model", "m")
    said_line = capsys.readouterr().err.strip()
    assert said_line.startswith("error: agent.kind 'openai': a chat endpoint tells neither the tokens")
    assert "\n" not in said_line
    assert not (tmp_path / "run").exists()
