"""Hostile programs in the Python tool, every one inside a containment of the test's own.

The corpus is hostile for real: run as root outside a sandbox, one of its programs ends every process of the machine.
So the sandbox under test runs inside namespaces of an ordinary user, with limits on memory and processes around the
whole run, and ``attack_runner.py`` refuses to start where it finds itself anywhere else.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forkgym.envs.grammars import resolve_grammar
from tests.tools.sandbox.containment import run_contained, skip_without_containment

RUNNER = Path(__file__).parent / "sandbox" / "attack_runner.py"
RUN_TIMEOUT_S = 200
LATE_S = 10.0  # beyond a call's limit, on a machine that is busy with other tests: the figure is measured elsewhere


@pytest.fixture(scope="module")
def report(shared_attacks: Path) -> dict[str, Any]:
    """Run the whole corpus once."""
    skip_without_containment()
    lines = (shared_attacks / "python.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    command = (sys.executable, "-P", str(RUNNER))
    done = run_contained(*command, stdin=json.dumps(cases), timeout_s=RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert [result["id"] for result in found["results"]] == [case["id"] for case in cases]
    return found


def complaints(result: dict[str, Any]) -> list[str]:
    """What a case did that it should not have done."""
    expect, outcome, stdout = result["expect"], result["outcome"], result["stdout"]
    wrong = [] if outcome in expect["outcome"] else [f"outcome {outcome}, expected {expect['outcome']}"]
    needed = expect.get("stdout_contains", []) + (expect.get("stdout_contains_if_ok", []) if outcome == "ok" else [])
    wrong += [f"output without {text!r}" for text in needed if text not in stdout]
    wrong += [f"output with {text!r}" for text in expect.get("stdout_excludes", []) if text in stdout]
    if stdout != expect.get("stdout_equals", stdout):
        wrong.append(f"output {stdout!r}")
    wrong += [f"left {path}" for path in result["files"]]
    latest_s = expect.get("max_wall_s", result["timeout_s"]) + LATE_S
    if result["wall_s"] > latest_s:
        wrong.append(f"took {result['wall_s']:.1f} s")
    observation = resolve_grammar("arpo").render_results([result["shown"]], ("python",))
    wrong += [f"observation with {text!r}" for text in expect.get("rendered_excludes", []) if text in observation]
    if result["next"] != ["ok", "42\n"]:
        wrong.append(f"the next call gave {result['next']}")
    return [f"{complaint} ({stdout[-200:]!r})" for complaint in wrong]


def test_every_hostile_program_is_contained_and_answered(report: dict[str, Any]) -> None:
    found = {result["id"]: wrong for result in report["results"] if (wrong := complaints(result))}
    assert found == {}


def test_no_process_outlives_its_session(report: dict[str, Any]) -> None:
    assert report["processes"] <= report["max_processes"]


def test_the_process_that_calls_hardly_grows(report: dict[str, Any]) -> None:
    assert report["grown_mib"] <= 100


def test_the_runner_refuses_to_start_outside_its_containment() -> None:
    done = subprocess.run([sys.executable, "-P", str(RUNNER)], input="[]", capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no containment" in done.stderr
    assert done.stdout == ""
