"""The tool ``python``: what the model sees, and sessions that are kept, copied and stored."""

import textwrap
import time
from typing import NoReturn

import psutil
import pytest

from forkgym.tools.base import ToolError, ToolSession
from forkgym.tools.python import PYTHON, python_tool, without_fence
from forkgym.tools.sandbox.limits import SandboxLimits
from forkgym.tools.sandbox.sessions import SERVERS, ServerSettings
from tests.tools.sandbox.processes import wait_until, workers

LIMITED = python_tool(SandboxLimits(timeout_s=0.5, output_bytes=2_000))


def run(session: ToolSession, code: str) -> str:
    return session.call({"code": code})


def ended(why: str) -> str:
    return f"[{why}. The session has ended and its variables are gone; the next call starts afresh.]"


def test_it_takes_text_and_keeps_its_own_limit() -> None:
    assert PYTHON.name == "python"
    assert PYTHON.text_parameter == "code"
    assert PYTHON.keeps_limit and not PYTHON.inline
    assert LIMITED.timeout_s == 0.5
    assert "There is the standard library, numpy, sympy, but no network" in PYTHON.description
    with pytest.raises(ToolError, match="at most 1000000 characters"):
        PYTHON.arguments_from_text("x" * 1_000_001)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(1 + 1)", "2\n"),
        ("a = 3\na * 14", "42\n"),
        ("'text'", "'text'\n"),
        ("None", ""),
        ("x = 1", ""),
        ("", ""),
        ("for i in range(2):\n    print(i)", "0\n1\n"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out')", "out\nerr\nout\n"),
        ("print('no newline', end='')\n1", "no newline1\n"),
        ("import sys\nsys.exit()", ""),
        ("print('\\ud800')", "\\ud800\n"),
        ("import os\nn = os.write(1, b'\\xff\\n')", "\N{REPLACEMENT CHARACTER}\n"),
        ("print('a\\0b\\x1b[2J\\u202ec\\r\\nd\\re')", "a\\x00b\\x1b[2J\\u202ec\nd\\re\n"),
        ("import numpy as np\nprint(np.arange(3).sum())", "3\n"),
        ("from sympy import *\nsolve(Symbol('x')**2 - 4)", "[-2, 2]\n"),
        ("import os\nopen('a.txt', 'w').write('abc')\nopen(os.getcwd() + '/a.txt').read()", "'abc'\n"),
    ],
)
def test_what_is_shown(code: str, output: str) -> None:
    assert run(PYTHON.new_session(), code) == output


def test_an_exception_shows_the_lines_of_the_code_and_nothing_else() -> None:
    session = PYTHON.new_session()
    run(session, "def f(n):\n    return 1 // n")
    assert run(session, "print('before')\nf(0)") == (
        "before\n"
        "Traceback (most recent call last):\n"
        '  File "<call 2>", line 2, in <module>\n'
        '  File "<call 1>", line 2, in f\n'
        "ZeroDivisionError: integer division or modulo by zero\n"
    )
    library = run(session, "import json\njson.loads('{')")
    assert library.count("File ") == 1
    assert "json.decoder.JSONDecodeError: Expecting property name" in library


def test_a_deep_traceback_is_short() -> None:
    shown = run(PYTHON.new_session(), "def f(n):\n    return g(n)\ndef g(n):\n    return f(n)\nf(0)")
    assert shown.count("File ") <= 8
    assert shown.endswith("RecursionError: maximum recursion depth exceeded\n")


def test_an_exception_that_cannot_be_shown_still_names_its_type() -> None:
    code = "class Odd(Exception):\n    def __str__(self): raise SystemExit\nraise Odd"
    assert "Odd" in run(PYTHON.new_session(), code)


def test_a_long_error_is_cut_and_ends_no_session() -> None:
    session = PYTHON.new_session()
    run(session, "x = 1")
    shown = run(session, "raise ValueError('a' * 10**6 + 'end')")
    assert shown.startswith('Traceback (most recent call last):\n  File "<call 2>", line 1')
    assert " ... " in shown and shown.endswith("aaaend\n")
    assert len(shown) == 4_005
    assert "too many nested parentheses" in run(session, "(" * 100_000)
    assert run(session, "x") == "1\n"


def test_syntax_errors_are_shown_with_the_place() -> None:
    shown = run(PYTHON.new_session(), "1 +\n")
    assert 'File "<call 1>", line 1' in shown
    assert shown.endswith("SyntaxError: invalid syntax\n")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\nx\n```", "x = 1\nx\n"),
        ("\n  ```py\nx\n```  \n", "x\n"),
        ("```\nx\n```", "x\n"),
        ("````\n```\n````", "```\n"),
        ("```python\n```", ""),
        ("x = '```'", "x = '```'"),
        ("```python\nx", "```python\nx"),
        ("```rust\nx\n```", "```rust\nx\n```"),
        ("```python\nx\n```\nand more", "```python\nx\n```\nand more"),
    ],
)
def test_a_fence_around_everything_is_taken_off_once(text: str, code: str) -> None:
    assert without_fence(text) == code


def test_taking_off_a_fence_is_linear_in_the_text() -> None:
    for text in ("`" * 10**6, "```\n" + " " * 10**6, "```\n" * 250_000, "``` " + " " * 10**6 + "x\n"):
        begin = time.process_time()
        without_fence(text)
        assert time.process_time() - begin < 1.0  # a quadratic one takes minutes


def test_variables_are_kept_and_sessions_are_apart() -> None:
    one, other = PYTHON.new_session(), PYTHON.new_session()
    run(one, "x = 1")
    assert run(one, "x + 1") == "2\n"
    assert "NameError" in run(other, "x")


def test_a_call_beyond_its_time_ends_the_session_and_shows_what_it_wrote() -> None:
    session = LIMITED.new_session()
    run(session, "x = 1")
    assert run(session, "print('begun')\nwhile True: pass") == "begun\n" + ended("timeout: took longer than 0.5 s")
    assert "NameError" in run(session, "x")


def test_a_flood_ends_the_session_and_is_cut() -> None:
    shown = run(LIMITED.new_session(), "while True: print('x' * 99)")
    assert shown.endswith("\n" + ended("output_limit: wrote more than 2000 bytes"))
    assert len(shown) < 1_200


def test_output_at_the_cap_is_whole_and_one_byte_more_is_not() -> None:
    session = LIMITED.new_session()
    assert run(session, "print('x' * 1999)") == "x" * 1_999 + "\n"
    assert "output_limit" in run(session, "print('x' * 2000)")


def test_code_that_ends_its_process_or_crashes_it_says_so() -> None:
    session = PYTHON.new_session()
    assert run(session, "import os\nos._exit(3)") == ended("error: the code ended its own process with status 3")
    crash = run(session, "import ctypes\nctypes.string_at(0)")
    assert crash == ended("crash: the process crashed with SIGSEGV")
    assert run(session, "1") == "1\n"


def test_memory_that_is_not_there_is_an_error_and_the_session_goes_on() -> None:
    session = python_tool(SandboxLimits(memory_bytes=64 * 2**20)).new_session()
    assert run(session, "x = 1\ny = [bytearray(10**6) for _ in range(100)]").endswith("\nMemoryError\n")
    assert run(session, "x") == "1\n"


def test_threads_do_not_run_between_calls() -> None:
    session = PYTHON.new_session()
    run(session, "import threading\ndef count():\n    while True: pass")
    run(session, "threading.Thread(target=count, daemon=True).start()")
    server = SERVERS.get(ServerSettings())
    wait_until(lambda: any(worker.num_threads() == 2 for worker in workers(server, psutil.STATUS_STOPPED)))
    assert run(session, "threading.active_count()") == "2\n"


def test_clock_and_randomness_are_the_same_in_every_session() -> None:
    code = textwrap.dedent("""
        import datetime, os, random, secrets, tempfile, time, uuid
        import numpy as np
        print(time.time(), time.monotonic(), time.perf_counter_ns(), time.strftime("%H:%M"), time.gmtime().tm_year)
        print(datetime.datetime.now(), datetime.date.today(), datetime.datetime.now(datetime.timezone.utc))
        print(random.random(), random.Random().random(), random.SystemRandom().random(), secrets.token_hex(4))
        print(np.random.rand(), np.random.default_rng().random(), np.random.RandomState().rand())
        print(uuid.uuid4(), uuid.uuid1(), os.urandom(4), os.getrandom(4), hash("x"), tempfile.mkdtemp(), os.getpid())
        before = time.time()
        time.sleep(0.01)
        print(round(time.time() - before, 3), list({"a", "b", "c"}))
    """)
    first, second = run(PYTHON.new_session(), code), run(PYTHON.new_session(), code)
    assert "2025-01-01" in first and "Error" not in first
    assert first == second


def test_a_fork_carries_the_state_and_shares_nothing() -> None:
    session = PYTHON.new_session()
    run(session, "import random\nx = [1]\ndef f(): return x\ndraws = [random.random()]")
    twin = session.fork()
    run(session, "x.append(2)\nnext_draw = random.random()")
    assert run(twin, "f()") == "[1]\n"
    assert run(session, "f()") == "[1, 2]\n"
    assert run(twin, "random.random()") == run(session, "next_draw")
    grandchild = twin.fork()
    twin.close()
    session.close()
    assert run(grandchild, "x") == "[1]\n"


def test_a_fork_after_a_killed_session_begins_afresh() -> None:
    session = LIMITED.new_session()
    run(session, "x = 1")
    run(session, "while True: pass")
    run(session, "y = 2")
    twin = session.fork()
    assert run(twin, "y") == "2\n"
    assert "NameError" in run(twin, "x")


def test_errors_are_part_of_the_history() -> None:
    session = PYTHON.new_session()
    run(session, "x = 1\nobject()\nraise ValueError(object())")
    assert run(session.fork(), "x") == "1\n"


def test_a_snapshot_is_the_history_and_restores_elsewhere() -> None:
    session = PYTHON.new_session()
    run(session, "x = 20")
    run(session, "x += 1\nx")
    assert session.snapshot() == [["x = 20", "ok", ""], ["x += 1\nx", "ok", "21\n"]]
    other = PYTHON.new_session()
    run(other, "y = 0")
    other.restore(session.snapshot())
    assert run(other, "x * 2") == "42\n"
    assert "NameError" in run(other, "y")


def test_a_copy_that_cannot_be_repeated_says_so_and_starts_afresh() -> None:
    session = PYTHON.new_session()
    session.restore([["x = 2\n1 + 1", "ok", "3\n"]])
    assert run(session, "x") == (
        "[unrepeatable: this copy of the session ran the earlier calls again, and their output was different. The "
        "session has ended and its variables are gone; the next call starts afresh.]"
    )
    assert "NameError" in run(session, "x")
    assert run(session.fork(), "1") == "1\n"  # of a history that can be repeated


def test_a_session_without_calls_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_server(settings: ServerSettings) -> NoReturn:
        pytest.fail("a server was started")

    monkeypatch.setattr(SERVERS, "get", no_server)
    session = PYTHON.new_session()
    twin = session.fork()
    twin.restore(session.snapshot())
    twin.close()
    session.close()
