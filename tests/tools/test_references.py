"""References: which texts are any, and what is said of those that lead nowhere."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from forkgym.tools.references import is_reference, load_entry_point, load_place, load_reference


@pytest.mark.parametrize(
    ("source", "is_one"),
    [("math:pi", True), ("a/b.py:C.d", True), (r"C:\a\b.py:F", True), ("pi", False), ("math:", False), (":pi", False)],
)
def test_what_a_reference_looks_like(source: str, is_one: bool) -> None:
    assert is_reference(source) is is_one


def test_modules_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class Outer:\n    inner = 3\nRUN_FROM = __file__\n")
    assert load_reference("math:pi", "number") == 3.141592653589793
    assert load_reference(f"{tmp_path}/mine.py:Outer.inner", "number") == 3
    monkeypatch.chdir(tmp_path)
    assert load_reference("mine.py:RUN_FROM", "file") == str(tmp_path / "mine.py")
    assert load_place("mine.py:Outer", "class") is load_place(f"{tmp_path}/mine.py:anything", "class")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pi", "unknown grammar 'pi'; expected 'module:attribute' or 'path/to/file.py:Name'"),
        ("math:tau.x", "grammar 'math:tau.x': math has no attribute 'tau.x'"),
        ("nowhere.py:pi", "grammar 'nowhere.py:pi': there is no file 'nowhere.py' (seen from "),
        ("no_module:pi", "grammar 'no_module:pi': there is no module 'no_module'"),
        ("a b:pi", "grammar 'a b:pi': 'a b' is no module name and does not end in .py"),
    ],
)
def test_references_that_lead_nowhere(source: str, said: str) -> None:
    with pytest.raises(ValueError, match="grammar") as caught:
        load_reference(source, "grammar")
    assert str(caught.value).startswith(said)


def test_entry_points() -> None:
    assert load_entry_point(EntryPoint("pi", "math:pi", "group"), "number") == 3.141592653589793
    with pytest.raises(ValueError, match="number 'pie': its entry point 'math:pie' cannot be loaded: "):
        load_entry_point(EntryPoint("pie", "math:pie", "group"), "number")
