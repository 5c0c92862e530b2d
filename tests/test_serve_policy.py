"""The script that prints how to start a server."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "serve_policy.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_it_prints_the_line() -> None:
    done = run("embedded", "--port", "8123", "--slots", "32", "--vllm.max_context", "100000")
    assert (done.returncode, done.stderr) == (0, "")
    words = shlex.split(done.stdout)
    assert words[0] == "env"
    for flag, value in (("--port", "8123"), ("--max-num-seqs", "32"), ("--max-logprobs", "640")):
        assert words[words.index(flag) + 1] == value
    assert words[words.index("--max-model-len") + 1] == "4096"  # the model's own limit
    assert Path(words[words.index("--model") + 1], "tokenizer.json").is_file()


def test_mistakes_are_one_line() -> None:
    done = run("embedded", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: host is '0.0.0.0', from where others may reach the server")
    assert done.stderr.count("\n") == 1
