"""An environment and a tool in files, named on the command line of the scripts."""

import json
from pathlib import Path
from shutil import copy

import pytest

from tests.test_scripts import evaluate, metrics, train

EXAMPLE = Path(__file__).parent / "forkgym_example"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the files of the example below it."""
    (tmp_path / "mine").mkdir()
    for name in ("units.py", "letters.py"):
        copy(EXAMPLE / name, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_on_files_is_resumed_where_it_was_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("--env.id", "mine/letters.py:LettersEnv", "--env.tools", "mine/units.py:convert", "calculator")
    run = folder / "run"
    assert train(*named, "--run_dir", str(run)) == 0
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all("accuracy/letters.py:LettersEnv" in row for row in rows)
    assert set(json.loads((run / "evaluation.json").read_text())["after"]) == {"letters.py:LettersEnv"}
    assert '"env_id": "letters.py:LettersEnv"' in (run / "rollouts" / "step-000002.jsonl").read_text()

    assert train("--run_dir", str(run), "--resume") == 0
    monkeypatch.chdir(folder / "mine")
    with pytest.raises(SystemExit) as stop:
        train("--run_dir", str(run), "--resume")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "error: environment 'mine/letters.py:LettersEnv': there is no file 'mine/letters.py' (seen from /" in err


@pytest.mark.parametrize("grammar", ["arpo", "search_r1", "hermes"])
def test_an_oracle_on_a_file(folder: Path, grammar: str) -> None:
    named = ("--env.id", str(folder / "mine" / "letters.py:LettersEnv"), "--env.grammar", grammar)
    assert evaluate(*named, "--agent.kind", "oracle", "--num_tasks", "5", "--output", "results.json") == 0
    assert json.loads((folder / "results.json").read_text())["letters.py:LettersEnv"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--env.id", "nowhere.py:Env"), "environment 'nowhere.py:Env': there is no file 'nowhere.py'"),
        (("--env.id", "mine/letters.py:Lettres"), "mine/letters.py has no attribute 'Lettres'"),
        (("--env.tools", "mine/units.py:METRES"), "a tool is a typed function, or a class whose objects are called"),
        (("--env.id", "mine/letters.py:LettersEnv", "--env.path", "rows.jsonl"), "takes no such option"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    for script in (train, evaluate):
        with pytest.raises(SystemExit) as stop:
            script(*options)
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.startswith("error: ") and err.count("\n") == 1
        assert said in err
    assert [path.name for path in folder.iterdir()] == ["mine"]  # no run has been started
