"""Tools of Model Context Protocol servers: real ones, started over stdio and over HTTP on loopback."""

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task
from forkgym.tools.base import Tool, ToolError, ToolFailure, ToolSession
from forkgym.tools.mcp import mcp_tools, tool_name, tools_from_reference
from forkgym.tools.mcp_client import mcp_connection
from forkgym.tools.registry import MCP_PREFIXES

PROGRAM = Path(__file__).with_name("mcp_server.py")
COMMAND = shlex.join([sys.executable, str(PROGRAM)])
SMALL = shlex.join([sys.executable, "-S", str(PROGRAM.with_name("mcp_small_server.py"))])


class Caller:
    """Calls tools as an environment does: by the text between the markers."""

    def __init__(self, tools: tuple[Tool, ...]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.sessions: dict[str, ToolSession] = {tool.name: tool.new_session() for tool in tools}

    def __call__(self, name: str, text: str) -> str:
        return self.sessions[name].call(self.tools[name].arguments_from_text(text))


@pytest.fixture(scope="module")
def http_server() -> Iterator[str]:
    with subprocess.Popen([sys.executable, str(PROGRAM), "http"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}/mcp"
        process.terminate()


@pytest.fixture(scope="module")
def over_stdio() -> Caller:
    return Caller(tools_from_reference(f"mcp:{COMMAND}"))


@pytest.fixture(scope="module")
def over_http(http_server: str) -> Caller:
    return Caller(mcp_tools(http_server))


@pytest.fixture(params=["over_stdio", "over_http"])
def caller(request: pytest.FixtureRequest) -> Caller:
    found: Caller = request.getfixturevalue(request.param)
    return found


def test_a_server_s_tools_are_tools(caller: Caller) -> None:
    reverse, add_up, forget = (caller.tools[name] for name in ("reverse", "shop_add_up", "forget"))
    assert (reverse.name, reverse.description, reverse.text_parameter) == ("reverse", "Write a text backwards.", "text")
    assert reverse.keeps_limit
    assert not reverse.inline
    assert add_up.text_parameter is None
    assert add_up.parameters["required"] == ["price", "count"]
    price = {"description": "of one piece", "minimum": 0, "title": "Price", "type": "number"}
    assert add_up.parameters["properties"]["price"] == price
    assert forget.parameters["properties"] == {}


def test_calls(caller: Caller) -> None:
    assert caller("reverse", " <abc>\n") == "\n>cba< "
    assert caller("shop_add_up", '{"price": 1.5, "count": 2}') == "3 for None"
    assert caller("shop_add_up", '{"price": 1.5, "count": 2, "names": ["ä"]}') == "3 for ['ä']"
    caller("forget", "{}")
    assert caller("note", "one") == "one"
    assert caller("note", "two") == "one two"
    assert caller("forget", "{}") == "forgot 2"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("refuse", "a reason", "refused: a reason"),
        ("shop_add_up", '{"price": -1, "count": 2}', "shop_add_up: arguments: price: -1 is less than the minimum of 0"),
        ("shop_add_up", "2", "shop_add_up takes a JSON object with price, count, names"),
    ],
)
def test_the_models_mistakes(caller: Caller, name: str, text: str, words: str) -> None:
    with pytest.raises(ToolError) as caught:
        caller(name, text)
    assert str(caught.value) == words


def test_what_is_no_text_is_named_and_control_characters_go(over_stdio: Caller) -> None:
    assert over_stdio("mixed", "x").splitlines() == [
        "before x",
        "[image, not shown: image/png]",
        "a note",
        "[resource, not shown: file:///notes.bin]",
        "[resource: file:///more.txt]",
        "[31mafter",
    ]
    assert over_stdio("nothing", "x") == '{"text": "x"}'
    assert over_stdio("nothing", "") == "(no text)"


def test_long_output_is_cut(over_stdio: Caller) -> None:
    assert over_stdio("flood", '{"count": 30000}') == 20_000 * "x" + "\n[cut: 30000 characters, 20000 shown]"


@pytest.mark.usefixtures("bounded_memory")
def test_an_answer_that_is_too_large_is_the_models_mistake(caller: Caller) -> None:
    with pytest.raises(ToolError, match=r"^the answer has (more than 4000000|\d{9}) bytes"):
        caller("flood", '{"count": 100000000}')
    assert caller("reverse", "abc") == "cba"


def test_many_threads_share_a_connection(caller: Caller) -> None:
    words = [f"word{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(partial(caller, "reverse"), words)) == [word[::-1] for word in words]


def test_a_call_over_its_limit_is_given_up(http_server: str) -> None:
    caller = Caller(mcp_tools(http_server, only=["wait"], timeout_s=0.2))
    with pytest.raises(ToolError, match=r"wait took longer than 0.2 s"):
        caller("wait", '{"seconds": 60}')
    assert caller("wait", '{"seconds": 0}') == "waited 0"


def test_few_variables_reach_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "1")
    caller = Caller(mcp_tools(SMALL, only=["environment"], environment={"OWN_KEY": "2"}))
    assert caller.tools["environment"].description == 4_000 * "d" + "\n[cut: 5000 characters, 4000 shown]"
    names = caller("environment", "{}").split()
    assert "SECRET_KEY" not in names
    assert {"OWN_KEY", "PATH"} <= set(names)


class EchoEnv(ToolEnv):
    """One task, whose answer is a word."""

    def task(self, index: int) -> Task:
        return Task(f"echo-{index}", "Write abc backwards.", "cba")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return {"exact": float(answer == task.answer)}


def test_an_episode_with_shared_tools_survives_the_server_s_death(over_stdio: Caller) -> None:
    env = EchoEnv(tools=tools_from_reference(f"mcp:{COMMAND}"))
    env.reset(seed=0, options={"index": 0})
    observation, *_ = env.step("<reverse>abc</reverse>")
    assert "<result>cba</result>" in observation
    os.kill(int(over_stdio("process", "{}")), signal.SIGKILL)
    twin = env.fork()
    assert "<result>dcba</result>" in twin.step("<reverse>abcd</reverse>")[0]
    assert "refused: x" in env.step("<refuse>x</refuse>")[0]
    assert "is a required property" in env.step('<shop_add_up>{"count": 1}</shop_add_up>')[0]
    env.close()


def test_a_call_that_ends_the_server_twice_is_a_failure_of_the_infrastructure() -> None:
    caller = Caller(mcp_tools(SMALL, only=["crash", "note"]))
    with pytest.raises(ToolFailure, match="mcp_small_server.py': Connection closed"):
        caller("crash", "{}")
    assert caller("note", "a") == "a"


def test_a_server_that_stays_away_is_a_failure_of_the_infrastructure() -> None:
    with subprocess.Popen([sys.executable, str(PROGRAM), "http"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
            caller = Caller(mcp_tools(address, only=["reverse", "crash"]))
            assert caller("reverse", "abc") == "cba"
        finally:
            process.kill()
    for name in ("reverse", "crash"):
        with pytest.raises(ToolFailure, match="mcp server 'http://127.0.0.1:"):
            caller(name, "abc")


def call(tool: Tool, session: ToolSession, name: str, **arguments: str) -> str:
    return session.call(tool.arguments_from_text(json.dumps({"tool": name, "arguments": arguments})))


def test_episodes_with_a_server_each() -> None:
    (tool,) = tools_from_reference(f"mcp-episode:{SMALL}#note=remember,process,crash")
    assert tool.name == "small"
    assert tool.description.startswith("One of these tools, with its arguments:\n- remember(text): ddd")
    first, other = tool.new_session(), tool.new_session()
    assert call(tool, first, "remember", text="a") == "a"
    assert call(tool, other, "remember", text="b") == "b"
    twin = first.fork()
    assert call(tool, first, "remember", text="c") == "a c"
    assert call(tool, twin, "remember", text="d") == "a d"
    state = json.loads(json.dumps(twin.snapshot()))
    other.restore(state)
    assert call(tool, other, "remember", text="e") == "a d e"
    for session in (first, other, twin):
        session.close()


def test_an_episode_whose_server_dies_goes_on_with_another() -> None:
    (tool,) = mcp_tools(SMALL, only=["note"], session_per_episode=True)
    session = tool.new_session()
    assert session.call({"text": "a"}) == "a"
    for process in psutil.Process().children():
        if SMALL.split()[-1] in process.cmdline():
            process.kill()
    assert session.call({"text": "b"}) == "a b"
    session.close()


def test_the_server_of_a_forgotten_episode_ends() -> None:
    (tool,) = mcp_tools(SMALL, only=["process"], session_per_episode=True)
    server = psutil.Process(int(tool.new_session().call(tool.arguments_from_text("{}"))))
    gc.collect()  # the session is in no cycle, but the error of a test before may hold things
    server.wait(timeout=60)  # raises where it goes on


def test_an_episode_that_ends_its_server_twice() -> None:
    (tool,) = mcp_tools(SMALL, only=["note", "crash"], session_per_episode=True)
    session = tool.new_session()
    assert call(tool, session, "note", text="a") == "a"
    with pytest.raises(ToolFailure, match="Connection closed"):
        call(tool, session, "crash")
    assert call(tool, session, "note", text="b") == "a b"
    session.close()


def test_a_server_whose_answers_differ_cannot_be_forked() -> None:
    (tool,) = mcp_tools(SMALL, only=["process"], session_per_episode=True)
    session = tool.new_session()
    arguments = tool.arguments_from_text("{}")
    assert session.call(arguments) == session.call(arguments)
    twin = session.fork()
    with pytest.raises(ToolFailure, match="process answered otherwise than before"):
        twin.call(arguments)
    session.close()


def test_an_episode_starts_afresh_after_a_call_over_its_limit() -> None:
    (tool,) = mcp_tools(SMALL, only=["note", "sleep"], session_per_episode=True, timeout_s=1)
    session = tool.new_session()
    assert call(tool, session, "note", text="a") == "a"
    with pytest.raises(ToolError, match="sleep took longer than 1 s; its session starts afresh"):
        call(tool, session, "sleep")
    assert session.snapshot() == []
    assert call(tool, session, "note", text="b") == "b"
    session.close()


def test_errors_of_the_protocol() -> None:
    caller = Caller(mcp_tools(SMALL))
    with pytest.raises(ToolError, match="^refuse failed$"):
        caller("refuse", "{}")
    with pytest.raises(ToolFailure, match="internal failed"):
        caller("internal", "{}")
    with pytest.raises(ToolFailure, match="wrong answer of 'break-off'"):
        caller("break_off", "{}")
    assert caller("note", "a") == "a"  # on the same connection


def test_mistakes_in_the_arguments_of_one_of_several_tools(http_server: str) -> None:
    (tool,) = mcp_tools(http_server, only=["shop.add-up", "process"], session_per_episode=True)
    for text, words in (
        ('{"tool": "note"}', r"tool: 'note' is not one of \['shop_add_up', 'process'\]"),
        ('{"tool": "shop_add_up"}', "'arguments' is a required property"),
        ('{"tool": "shop_add_up", "arguments": {"price": 1}}', "arguments: 'count' is a required property"),
        ('{"tool": "process", "more": 1}', "Additional properties are not allowed"),
    ):
        with pytest.raises(ToolError, match=words):
            tool.arguments_from_text(text)
    assert tool.new_session().call(tool.arguments_from_text('{"tool": "process"}')).isdigit()


NO_SERVERS = [
    ("no-such-command --option", "there is no such command"),
    ("true", "Connection closed"),
    ("sh -c 'echo what went wrong >&2; exit 3'", "its log ends with: what went wrong"),
    ("http://127.0.0.1:9/mcp", "All connection attempts failed"),
    ("", "expected a command line or an http"),
    ("python 'unfinished", "No closing quotation"),
    (f"{SMALL} no-tools", "has no tools"),
    (f"{SMALL} endless-list", "has 800 tools, at most 128 can be used"),
    (f"{SMALL} bad-schema", "tool 'process': the schema of its arguments refers to itself without end; choose others"),
]


@pytest.mark.parametrize(("server", "words"), NO_SERVERS)
def test_servers_that_cannot_be_used(server: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        mcp_tools(server)
    assert str(caught.value).startswith(f"mcp server {server!r}")


def test_a_server_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_connection, "START_LIMIT_S", 0.1)
    with pytest.raises(ValueError, match=r"it was not ready within 0.1 s"):
        mcp_tools("sleep 60")


@pytest.mark.parametrize(
    ("only", "words"),
    [
        (["nope"], "has no tool 'nope'; expected some of reverse, shop.add-up, note"),
        (["note=reverse", "reverse"], "two of its tools would be called 'reverse'"),
        (["note=1st"], "tool name '1st': expected letters, digits and underscores"),
    ],
)
def test_tools_that_cannot_be_chosen(http_server: str, only: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mcp_tools(http_server, only=only)


def test_references(http_server: str) -> None:
    assert "mcp:x".startswith(MCP_PREFIXES)
    assert "mcp-episode:x".startswith(MCP_PREFIXES)
    assert not "mcp".startswith(MCP_PREFIXES)
    tools = tools_from_reference(f"mcp:{http_server}#shop.add-up,reverse=backwards")
    assert [tool.name for tool in tools] == ["shop_add_up", "backwards"]
    assert tools_from_reference(f"mcp:{http_server}#shop.add-up,reverse=backwards") is tools
    assert len(tools_from_reference(f"mcp:{http_server}#")) == 12
    with pytest.raises(ValueError, match="expected mcp:SERVER or mcp-episode:SERVER"):
        tools_from_reference("http://127.0.0.1/mcp")


@pytest.mark.parametrize(
    ("spelled", "name"), [("a.b-c", "a_b_c"), ("1st", "_1st"), ("é", "_"), ("x" * 100, "x" * 64), ("", "")]
)
def test_names(spelled: str, name: str) -> None:
    assert tool_name(spelled) == name


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of newer Pythons: it is what is tested
def test_a_forked_process_has_its_own_connection(over_stdio: Caller) -> None:
    pid = over_stdio("process", "{}")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, over_stdio("process", "{}").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() not in ("", pid)
    os.waitpid(child, 0)
    assert over_stdio("process", "{}") == pid


@pytest.mark.parametrize("manners", ["", " stubborn"])
def test_servers_end_with_the_process(manners: str) -> None:
    program = f"""
from forkgym.tools.mcp import mcp_tools
(tool,) = mcp_tools({SMALL + manners!r}, only=["process"])
print(tool.new_session().call(tool.arguments_from_text("{{}}")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
