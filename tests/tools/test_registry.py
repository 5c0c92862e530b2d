"""Tools by name, from each place that can name one."""

import subprocess
import sys
from pathlib import Path

import pytest

from forkgym.tools.base import Tool, as_tool
from forkgym.tools.calculator import CALCULATOR
from forkgym.tools.registry import BUILT_IN, MCP_PREFIXES, resolve_tool, resolve_tools

# A user's file: it needs its own entry in sys.modules, for the dataclass with postponed annotations.
USER_FILE = '''
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class WordCount:
    """Count all words so far."""

    total: int = field(default=0)

    def __call__(self, text: str) -> str:
        self.total += len(text.split())
        return str(self.total)


def shout(text: str) -> str:
    """Write in capitals."""
    return text.upper()


def undocumented(text: str) -> str:
    return text


class Place:
    shout = staticmethod(shout)


these = [shout, WordCount]
those = (shout, undocumented)
nothing = ()
'''


def whisper(text: str) -> str:
    """Write in small letters."""
    return text.lower()


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "my tools.py"
    path.write_text(USER_FILE)
    return path


def test_a_built_in_tool() -> None:
    assert resolve_tool("calculator") is CALCULATOR


def test_tools_and_functions_themselves() -> None:
    assert resolve_tool(CALCULATOR) is CALCULATOR
    assert resolve_tool(whisper).new_session().call({"text": "AYR"}) == "ayr"
    with pytest.raises(TypeError, match="a tool is a typed function, or a class whose objects are called, got <built"):
        resolve_tool(len)


def test_importing_the_registry_is_cheap() -> None:
    code = "import sys, forkgym.tools.registry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    own = {name for name in loaded if name.startswith("forkgym.")}
    assert own == {f"forkgym.tools{part}" for part in ("", ".base", ".references", ".registry")}
    assert not {"numpy", "httpx", "asyncio", "mcp", "sympy", "trafilatura"} & set(loaded)


def test_the_built_in_tools_have_the_names_that_they_are_listed_under() -> None:
    assert {name: resolve_tool(name).name for name in BUILT_IN} == {name: name for name in BUILT_IN}


def test_search_without_passages() -> None:
    with pytest.raises(ValueError, match="tool 'search' needs passages to search in, which this environment does not"):
        resolve_tool("search")


def test_an_attribute_of_a_module() -> None:
    assert resolve_tool("forkgym.tools.calculator:CALCULATOR") is CALCULATOR
    assert resolve_tool("forkgym.tools.calculator:calculator").name == "calculator"
    # A function of the standard library with types and a docstring of its own is refused for want of types.
    with pytest.raises(ValueError, match="tool 'textwrap:dedent': tool dedent: argument 'text' has no type"):
        resolve_tool("textwrap:dedent")


def test_a_function_and_a_class_in_a_file(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_tool(f"{user_file}:shout").new_session().call({"text": "ayr"}) == "AYR"
    assert resolve_tool(f"{user_file}:Place.shout").name == "shout"
    monkeypatch.chdir(user_file.parent)
    counter = resolve_tool("my tools.py:WordCount")
    assert counter.name == "word_count"
    session = counter.new_session()
    assert [session.call({"text": text}) for text in ("a b", "c")] == ["2", "3"]


def test_a_file_is_run_once(user_file: Path) -> None:
    first = resolve_tool(f"{user_file}:WordCount").new_session()
    user_file.write_text("raise RuntimeError('run again')")
    second = resolve_tool(f"{user_file.parent}/../{user_file.parent.name}/{user_file.name}:WordCount").new_session()
    assert type(vars(first)["instance"]) is type(vars(second)["instance"])


def test_files_of_the_same_name_do_not_meet(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool.py").write_text(f'def f(x: str) -> str:\n    """Say."""\n    return "{folder}"\n')
    tools = [resolve_tool(f"{tmp_path}/{folder}/tool.py:f") for folder in ("one", "two")]
    sessions = [tool.new_session() for tool in tools]
    assert [session.call({"x": ""}) for session in sessions] == ["one", "two"]
    functions = [vars(session)["function"] for session in sessions]
    assert [vars(sys.modules[function.__module__])["f"] for function in functions] == functions


def test_an_error_in_a_users_code_propagates_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_tool.py").write_text("import module_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in ("broken_tool:f", f"{tmp_path}/broken_tool.py:f"):
        for _ in range(2):
            with pytest.raises(ModuleNotFoundError, match="module_that_is_not_there"):
                resolve_tool(source)
    assert not [name for name in sys.modules if name.startswith("broken_tool")]


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed beside forkgym and brings tools."""
    (tmp_path / "other_package.py").write_text(USER_FILE)
    info = tmp_path / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    points = ["loud = other_package:shout", "gone = other_package:gone", "lost = lost_package:f"]
    points += ["these = other_package:these", "nothing = other_package:nothing"]
    (info / "entry_points.txt").write_text("\n".join(["[forkgym.tools]", *points]))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed_package")
def test_an_entry_point_of_another_package() -> None:
    assert resolve_tool("loud").new_session().call({"text": "ayr"}) == "AYR"
    with pytest.raises(ValueError, match="tool 'gone': its entry point 'other_package:gone' cannot be loaded: "):
        resolve_tool("gone")
    with pytest.raises(ValueError, match="tool 'lost': its entry point 'lost_package:f' cannot be loaded: No module"):
        resolve_tool("lost")


@pytest.mark.usefixtures("installed_package")
def test_one_name_for_several_tools(user_file: Path) -> None:
    for source in ("these", f"{user_file}:these"):
        assert [tool.name for tool in resolve_tools(source)] == ["shout", "word_count"]
        with pytest.raises(ValueError, match=f"tool '{source}' stands for shout, word_count, expected one tool"):
            resolve_tool(source)
    with pytest.raises(ValueError, match=r"those': tool undocumented has no docstring"):
        resolve_tools(f"{user_file}:those")
    with pytest.raises(ValueError, match="tool 'nothing' is an empty list, expected at least one tool"):
        resolve_tools("nothing")


def test_the_tools_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    mcp = pytest.importorskip("forkgym.tools.mcp")
    assert MCP_PREFIXES == (mcp.SHARED, mcp.PER_EPISODE)
    asked: list[str] = []

    def tools_from_reference(source: str) -> tuple[Tool, ...]:
        asked.append(source)
        return (CALCULATOR, as_tool(whisper))

    monkeypatch.setattr(mcp, "tools_from_reference", tools_from_reference)
    for source in ("mcp:python server.py", "mcp-episode:http://localhost:9/mcp#add"):
        assert [tool.name for tool in resolve_tools(source)] == ["calculator", "whisper"]
    assert asked == ["mcp:python server.py", "mcp-episode:http://localhost:9/mcp#add"]


@pytest.mark.usefixtures("installed_package")
def test_an_unknown_name_is_told_what_exists() -> None:
    with pytest.raises(ValueError, match="unknown tool 'calc'; expected ") as caught:
        resolve_tool("calc")
    names = "calculator, gone, lost, loud, nothing, python, these, visit"
    assert f"{names}, 'mcp:SERVER', 'module:attribute' or 'path/to/file.py:Name'" in str(caught.value)


# A source, and what the error says.
UNKNOWN = [
    ("", "unknown tool ''"),
    (":", "unknown tool ':'"),
    ("forkgym.tools.calculator:", "unknown tool"),
    (":calculator", "unknown tool"),
    ("no_such_module:f", "there is no module 'no_such_module'"),
    ("no_such_module.part:f", "there is no module 'no_such_module'"),
    ("forkgym.tools.nowhere:f", "there is no module 'forkgym.tools.nowhere'"),
    ("..base:f", "'..base' is no module name"),
    ("a folder/file.txt:f", "'a folder/file.txt' is no module name and does not end in .py"),
    ("nowhere/file.py:f", "there is no file 'nowhere/file.py'"),
    ("forkgym.tools.calculator:nothing", "forkgym.tools.calculator has no attribute 'nothing'"),
    ("math:pi", "a tool is a typed function, or a class whose objects are called, got 3.14"),
    ("math:sqrt", "a tool is a typed function, or a class whose objects are called, got <built-in function sqrt>"),
]


@pytest.mark.parametrize(("source", "words"), UNKNOWN)
def test_unknown_sources(source: str, words: str) -> None:
    with pytest.raises(ValueError, match="tool") as caught:
        resolve_tool(source)
    message = str(caught.value)
    assert repr(source) in message
    assert words in message
    assert "\n" not in message


def test_a_function_in_a_file_that_cannot_be_a_tool(user_file: Path) -> None:
    with pytest.raises(ValueError, match="tool undocumented has no docstring"):
        resolve_tool(f"{user_file}:undocumented")
