"""The script that prints how to start a server."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.test_scripts import load


def serve(*arguments: str, **settings: Any) -> int:
    script = load("serve_policy")
    status: int = script.main(script.ServePolicyConfig(*arguments, **settings))
    return status


def test_it_prints_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    script = load("serve_policy")
    assert serve("embedded", port=8123, slots=32, vllm=script.VllmConfig(max_context=100_000)) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[0] == "env"
    for flag, value in (("--port", "8123"), ("--max-num-seqs", "32"), ("--max-logprobs", "640")):
        assert words[words.index(flag) + 1] == value
    assert words[words.index("--max-model-len") + 1] == "4096"  # the model's own limit
    assert Path(words[words.index("--model") + 1], "tokenizer.json").is_file()


def test_it_becomes_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    started: list[tuple[str, tuple[str, ...], dict[str, str]]] = []

    def execve(path: str, command: tuple[str, ...], environment: dict[str, str]) -> None:
        started.append((path, command, environment))

    monkeypatch.setattr(os, "execve", execve)
    serve("embedded", run=True)
    ((path, command, environment),) = started
    assert path == command[0]
    assert "vllm.entrypoints.openai.api_server" in command
    assert (environment["KEPT"], environment["VLLM_NO_USAGE_STATS"]) == ("yes", "1")


@pytest.mark.parametrize(
    ("model", "host", "words"),
    [
        ("embedded", "0.0.0.0", "error: host is '0.0.0.0', from where others may reach the server"),
        ("no/folder/here", "127.0.0.1", "error: model 'no/folder/here': expected 'embedded', a folder that holds one"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], model: str, host: str, words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        serve(model, host=host)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert error.count("\n") == 1
