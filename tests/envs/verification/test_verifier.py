"""Answers held against a gold answer: by text, by value, and in a process that can be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.envs.grading import NoNumber
from forkgym.envs.verification import verify_process
from forkgym.envs.verification.math_text import (
    choice,
    is_verifiable,
    key,
    named_values,
    restates,
    same_value,
    sides,
    tidy,
    value_of,
)
from forkgym.envs.verification.verifier import Verdict, math_equal, verdict_on
from forkgym.envs.verification.verify_process import VerifyProcess, shared_process
from forkgym.envs.verification.verify_worker import Word
from forkgym.tools.base import ToolFailure
from forkgym.tools.sandbox.layers import Layer, lock_down
from forkgym.tools.sandbox.limits import SandboxLimits

MEGABYTE = 1_000_000
ENDLESS = r"9^{9^{9^{9}}}"
# What the corpus expects otherwise, and why this project does not do it: nothing yet.
ANSWERED_OTHERWISE: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    """Start the program before anything is timed, and leave nothing behind."""
    shared_process().compare("x", "x")
    yield
    shared_process().close()


# The real program but for its library, which takes seconds to import: it starts at once.
QUICK_PROGRAM = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("verify_worker", {str(verify_process.PROGRAM)!r})
program = sys.modules["verify_worker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
def compare(gold, prediction):
    while prediction == "endless":
        pass
    if prediction == "memory":
        bytes(2**40)
    if prediction == "file":
        open("/etc/hostname").close()
    if prediction == "process":
        os.fork()
    if prediction == "noise":
        print("1 equal", flush=True)
    return program.Word.EQUAL if gold == prediction else program.Word.DIFFERENT
program.compare, program.WARM_UP = compare, ()
program.main()
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerifyProcess]:
    """A process of the quick program; its answers have half a minute, so that a busy machine makes none late."""
    path = tmp_path / "quick.py"
    path.write_text(QUICK_PROGRAM, encoding="utf-8")
    monkeypatch.setattr(verify_process, "PROGRAM", path)
    process = VerifyProcess(limit_s=30.0)
    yield process
    process.close()


# The text.


@pytest.mark.parametrize(
    ("answer", "expression"),
    [
        (r"Thus the answer is \boxed{\dfrac{1}{2}\ \mathrm{cm}}.", r"\frac{1}{2} \text{cm}"),
        ("The final answer is $42$.", "42"),
        (r"$$x = \left( 1, 2 \right)$$", "x = ( 1, 2 )"),
        (r"\(7\)", "7"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\tfrac{a}3", r"\frac{a}{3}"),
        (r"10{,}000", "10000"),
        (r"10\,000", "10000"),
        (r"5,\!000", "5,000"),
        ("\uff14\uff12", "42"),  # full width
        ("x\u00b2 \u2264 \u22123", r"x^{2} \le -3"),
        ("2pi", r"2\pi"),
        ("pier", "pier"),
        ("4\u221a15", r"4\sqrt{15}"),
        ("sqrt(1 + sqrt(2))", r"\sqrt{1 + \sqrt{2}}"),
        ("sqrt(2", r"\sqrt(2"),  # not closed
        ("sin(x) + 9*i", r"\sin(x) + 9i"),
        ("1\u202f800", "1800"),  # thin spaces group thousands
        ("**5**", "5"),
        (r"\mathbf{\frac{2}{3}}", r"\frac{2}{3}"),
        ("{{20,000}}", "20,000"),
        ("{1}^{2}", "{1}^{2}"),
        (r"\text{no solution}", r"\text{no solution}"),
        (r"\{x \mid x>0\}", "x>0"),
        (r"\{x\in\mathbb{R} | -1 < x \le 2\}", r"-1 < x \le 2"),
        ("41 == 42", "41 = 42"),
        (r"x \not= 2", r"x \ne 2"),
        ("The correct answer is **B**.", "B"),
        ("", ""),
        ("4\u200b2", None),  # a space of no width
        ("\u0664\u0662", None),  # Arabic digits
        ("\u00bd", None),
        ("1" * 1_001, None),
    ],
)
def test_tidy(answer: str, expression: str | None) -> None:
    assert tidy(answer) == expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("+5", Fraction(5)),
        ("- 5", Fraction(-5)),
        ("1,234.5", Fraction(2469, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("11/2", Fraction(11, 2)),
        (r"3 \times 10^{8}", Fraction(300_000_000)),
        (r"2.5\cdot10^{-1}", Fraction(1, 4)),
        (r"10 \text{ cm}", Fraction(10)),
        (r"10\text{ cm}^2", Fraction(10)),
        (r"90^\circ", Fraction(90)),
        ("12 dollars", Fraction(12)),
        ("12 in", Fraction(12)),
        (r"50\%", Fraction(50)),
        ("50 percent", Fraction(50)),
        (r"\text{42}", Fraction(42)),
        ("10cm", Fraction(10)),
        ("10 m", Fraction(10)),
        ("5 m/s", Fraction(5)),
        ("5 cm^2", Fraction(5)),
        ("5 square units", Fraction(5)),
        ("2 abc", None),  # a product
        ("30^\\circ C", Fraction(30)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"-1.1\overline{6}", Fraction(-7, 6)),
        ("0." + "1" * 100 + r"\overline{3}", NoNumber.TOO_LONG),
        (r"5\text{ or six}", None),
        ("\u20ac5", Fraction(5)),
        ("1e1000000000", NoNumber.TOO_LONG),
        ("1/0", NoNumber.ZERO_DENOMINATOR),
        ("2x", None),
        ("2 x", None),
        ("1, 2", None),
        ("41 or 42", None),
        ("1 2", None),
        ("4-2", None),
        ("x", None),
        ("", None),
    ],
)
def test_value_of(text: str, value: Fraction | NoNumber | None) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("gold", "prediction", "same"),
    [
        ("50%", "50", True),
        ("50", "50%", True),
        ("50%", "0.5", True),
        (r"\frac{1}{2}", "50%", True),
        ("50%", "50%", True),
        ("50%", "0.5%", False),  # both are percentages
        ("50%", "5000", False),
        (r"\frac{1}{3}", "0.333333", True),  # cut after six places
        (r"\frac{2}{3}", "0.666667", True),  # rounded
        (r"\frac{1}{3}", "0.333", False),
        (r"\frac{1}{3}", "0.333335", False),
        (r"\frac{10}{3}", "3.3333333333333335", True),  # Python's float
        (r"\frac{10}{3}", "3.3333333333333371", False),  # 3.8e-15 too much, where a float may be 3.3e-15 off
        ("0.333333", r"\frac{1}{3}", False),  # the gold is the exact one
        ("42", "42.0000001", False),
        (r"\frac{1}{8}", "0.1250001", False),  # it has a decimal of its own
        ("1000", "1.000", False),
        ("1e400", "1e400", False),  # beyond what is compared
        ("x", "2", None),
        ("2", "x", None),
    ],
)
def test_same_value(gold: str, prediction: str, same: bool | None) -> None:
    assert same_value(gold, prediction) is same


@pytest.mark.parametrize(
    ("gold", "verifiable"),
    [
        ("42", True),
        (r"\frac{1}{2}", True),
        (r"\text{Evelyn}", True),
        ("even", True),
        ("x", True),
        ("(A)", True),
        (r"\text{no solution}", True),
        ("6 and 8", True),
        ("x + y", True),
        ("-a - b", True),
        ("-ab - cd", True),
        ("abc + cde", True),
        ("N/A", False),
        ("B, C, D", True),
        ("\u2460\u2462", True),  # the first and the third
        ("", False),
        (" ", False),
        ("nan", False),
        ("see solution", False),
        ("Proof omitted.", False),
        ("\u0664\u0662", False),
        ("1" * 1_001, False),
    ],
)
def test_is_verifiable(gold: str, verifiable: bool) -> None:
    assert is_verifiable(gold) is verifiable


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("x = 2", ("2",)),
        (r"\theta = 2", ("2",)),
        ("f(x) = x^2", ("x^2",)),
        ("6/3 = 2", ("6/3", "2")),
        ("x = 41 = 42", ("41", "42")),
        ("x = 2, y = 3", ("x = 2, y = 3",)),
        ("x \\le 2", ("x \\le 2",)),
        ("x <= 2", ("x <= 2",)),
        ("= 2", ("= 2",)),
        ("2", ("2",)),
    ],
)
def test_sides(text: str, expressions: tuple[str, ...]) -> None:
    assert sides(text) == expressions


@pytest.mark.parametrize(
    ("text", "letter", "rest"),
    [
        ("(C) 5", "C", "5"),
        ("C: 5", "C", "5"),
        (r"\text{C. }5", "C", "5"),
        (r"\text{(C)} 5", "C", "5"),
        ("C", "C", ""),
        (r"\text{(C)}", "C", ""),
        ("5", "", "5"),
        ("c", "", "c"),
        ("A) 1 B) 2", "", "A) 1 B) 2"),
        ("(A)(B)", "", "(A)(B)"),
        ("C(5,2)", "", "C(5,2)"),
    ],
)
def test_choice(text: str, letter: str, rest: str) -> None:
    assert choice(text) == (letter, rest)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x = 2, y = 3", "(2,3)"),
        (r"\alpha_1=2 \text{ and } k=3", "(2,3)"),
        ("x=2, x=3", None),  # two solutions, in any order
        ("x=2", None),
        ("P=(1,2), Q=(3,4)", None),
        ("2, 3", None),
    ],
)
def test_named_values(text: str, values: str | None) -> None:
    assert named_values(text) == values


@pytest.mark.parametrize(
    ("prediction", "question", "copied"),
    [
        (r"\sqrt{50} - 4\sqrt{2}", r"Simplify $\sqrt{50}-4\sqrt{2}$.", True),
        (r"\frac{4}{6}", r"Write $\dfrac46$ in lowest terms.", True),
        ("120/4", "How much is 120/4?", True),
        (r"\frac{1}{2}", r"Is $\frac{1}{2}$ or $\frac{1}{3}$ larger?", False),  # it cannot be reduced
        ("12", "Is 12 or 13 larger?", False),
        ("0.5", "Is 0.5 or 0.4 larger?", False),
        (r"\sqrt{2}", r"Simplify $\sqrt{50} - 4\sqrt{3}$.", False),
        ("x", "Solve for x.", False),
        (r"{120} \cdot \frac{1}{4}", r"How much is $120\times\frac14$?", True),
        ("2x-y+3=0", "Write $2x - y + 3 = 0$ with y on the left.", True),
        ("x+1", "Is x+12 or 1+x the larger one?", False),  # there is another number
    ],
)
def test_restates(prediction: str, question: str, copied: bool) -> None:
    assert restates(prediction, question) is copied


# The verdict.


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"),
        ("1024", r"\boxed{2^{10}}"),
        ("x+1", r"\boxed{1+x}"),
        (r"(x+1)^2", r"\boxed{x^2+2x+1}"),
        (r"\frac{1}{x+1}", r"\boxed{(x+1)^{-1}}"),
        ("1,2", r"\boxed{\{2, 1\}}"),
        ("6 and 8", "8, 6"),
        ("x=2", r"\boxed{2}"),
        ("2", r"\boxed{x = 2}"),
        ("x=2", r"\boxed{2=x}"),
        ("y=2x+3", r"\boxed{2x+3}"),
        ("2", r"\boxed{6/3 = 2}"),
        ("4", r"\boxed{2+2=4}"),  # worked out, and true
        ("[1,2]", r"\boxed{1 \le x \le 2}"),
        ("x<2", r"\boxed{2>x}"),
        (r"(-\infty, 3)", r"\boxed{(-\infty,3)}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ \frac{4}{2} \end{pmatrix}}"),
        (r"\text{Evelyn}", r"\boxed{evelyn}"),
        (r"\text{(C)}", r"\boxed{C}"),
        ("C", r"\boxed{\text{(C)}}"),
        (r"\pi", r"\boxed{3.141593}"),  # six places, as for fractions
        (r"12\text{ inches}", r"\boxed{12 in}"),
        ("10", r"\boxed{10 cm}"),
        (r"\$5,\!000", r"\boxed{5000}"),
        ("x + c", r"\boxed{c+x}"),
        (r"5\sqrt{2}", r"\boxed{5\sqrt{2} cm}"),
        ("C: 5", r"\boxed{C}"),
        ("C: 5", r"\boxed{5}"),
        ("12", r"\boxed{\textbf{(C)}\ 12}"),
        ("C", r"\boxed{\textbf{(C)}\ 12}"),
        (r"\{x|-1<x<2\}", r"\boxed{(-1,2)}"),
        ("x=2,y=3", r"\boxed{2, 3}"),
        ("x=2,x=3", r"\boxed{3, 2}"),
        ("x=5", r"\boxed{x=10/2=5}"),
        ("-35+9i", r"\boxed{-35 + 9*i}"),
        (r"\frac{\ln 2}{3}", r"\boxed{ln(2)/3}"),
        ("k = 5 + 20 = 25", r"\boxed{k = 5 + 20 = 25}"),
    ],
)
def test_equal(gold: str, prediction: str) -> None:
    assert math_equal(gold, prediction)


@pytest.mark.parametrize(
    ("gold", "prediction", "verdict"),
    [
        ("2", r"\boxed{2x}", Verdict.DIFFERENT),
        ("(1,2)", r"\boxed{[1,2]}", Verdict.DIFFERENT),
        ("(2,1)", r"\boxed{(1,2)}", Verdict.DIFFERENT),
        ("42", r"\boxed{41 = 42}", Verdict.DIFFERENT),
        ("42", r"\boxed{x = 41 = 42}", Verdict.DIFFERENT),
        ("4", r"\boxed{2+2}", Verdict.DIFFERENT),
        ("120", r"\boxed{5!}", Verdict.DIFFERENT),
        ("10", r"\boxed{\binom{5}{2}}", Verdict.DIFFERENT),
        ("12", r"\boxed{\log_{2}{4096}}", Verdict.DIFFERENT),  # a value that is left to find
        (r"\frac{1}{2}", r"\boxed{\sin(30^\circ)}", Verdict.DIFFERENT),
        ("12", r"\boxed{|-12|}", Verdict.DIFFERENT),
        ("2", r"\boxed{\frac{d}{dx}2x}", Verdict.DIFFERENT),
        ("k+2m", r"\boxed{k+2}", Verdict.DIFFERENT),  # no metres
        ("2-3m", r"\boxed{-1}", Verdict.DIFFERENT),
        ("no", r"\boxed{on}", Verdict.DIFFERENT),
        ("x=2,y=3", r"\boxed{(3,2)}", Verdict.DIFFERENT),
        ("x=5", r"\boxed{x=4=5}", Verdict.DIFFERENT),
        ("x=5", r"\boxed{x=4 \quad x=5}", Verdict.DIFFERENT),
        ("x=5", r"\boxed{x=4 \lor x=5}", Verdict.DIFFERENT),
        ("42", r"\boxed{41 == 42}", Verdict.DIFFERENT),
        ("5", r"\boxed{5\text{ or six}}", Verdict.DIFFERENT),
        ("C: 5", r"\boxed{D}", Verdict.DIFFERENT),
        ("C: 5", r"\boxed{D: 5}", Verdict.DIFFERENT),
        ("A", r"\boxed{(A)(B)}", Verdict.DIFFERENT),
        ("x=2", r"\boxed{x=x}", Verdict.DIFFERENT),
        ("x=2", r"\boxed{0=0}", Verdict.DIFFERENT),
        ("x<2", r"\boxed{x \le 2}", Verdict.DIFFERENT),
        (r"\text{even}", r"\boxed{neve}", Verdict.DIFFERENT),  # a product of the same variables
        (r"\sqrt{2}", r"\boxed{\sqrt{2} \text{ or } \sqrt{3}}", Verdict.DIFFERENT),
        (r"\pi", r"\boxed{3.14}", Verdict.DIFFERENT),
        ("3", r"\boxed{\frac{0}{0}}", Verdict.DIFFERENT),
        ("3", r"\boxed{NaN}", Verdict.DIFFERENT),
        ("NaN", "3", Verdict.DIFFERENT),
        ("3", r"\boxed{\frac{}", Verdict.UNREADABLE),
        ("3", "4\u200b2", Verdict.UNREADABLE),
        ("3", r"\boxed{}", Verdict.EMPTY),
        ("see solution", "see solution", Verdict.UNVERIFIABLE),
        ("", "", Verdict.UNVERIFIABLE),
    ],
)
def test_not_equal(gold: str, prediction: str, verdict: Verdict) -> None:
    assert verdict_on(gold, prediction) is verdict


def test_hostile_answers(shared_attacks: Path, tmp_path: Path, bounded_memory: None) -> None:
    text = (shared_attacks / "calculator.jsonl").read_text(encoding="utf-8").replace("{{NONCE}}", tmp_path.name)
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    rows = [row for row in rows if row["kind"] == "verify"]
    assert len(rows) == 36
    wrong: list[str] = []
    for row in rows:
        begun_s = time.monotonic()
        correct = math_equal(row["input"]["gold"], row["input"]["prediction"])
        took_s = time.monotonic() - begun_s
        if (correct != row["expect"]["correct"] and row["id"] not in ANSWERED_OTHERWISE) or took_s > 3.0:
            wrong.append(f"{row['id']}: {correct} after {took_s:.1f} s, expected {row['expect']}")
    assert wrong == []
    assert not Path(f"/tmp/evil_{tmp_path.name}").exists()


@given(st.text() | st.text(alphabet="0123456789+-/.,=^_$%\\{}() boxedfracsqrt", max_size=60))
def test_any_text_is_read(text: str) -> None:
    expression = tidy(text)
    if expression is not None:
        value = value_of(expression)
        assert value is None or same_value(expression, expression) is isinstance(value, Fraction)
        assert all(side in expression for side in sides(expression))
        assert key(expression) == key(expression.replace(" ", "  "))
        assert not (restates(expression, text) and isinstance(value, Fraction) and value.denominator == 1 == len(text))


@pytest.mark.parametrize("text", ["$" * MEGABYTE, "{" * MEGABYTE, "1 " * MEGABYTE, r"\boxed{" * MEGABYTE])
def test_a_megabyte_is_no_answer(text: str) -> None:
    assert not math_equal("5", text)


# The process.


def test_an_endless_comparison_is_killed(bounded_memory: None) -> None:
    begun_s = time.monotonic()
    assert verdict_on(r"\sqrt{2}", ENDLESS) is Verdict.TIMEOUT
    assert 2.0 <= time.monotonic() - begun_s <= 3.0
    assert verdict_on(r"\sqrt{2}", ENDLESS) is Verdict.TIMEOUT  # known by now
    assert time.monotonic() - begun_s <= 3.0


def test_endless_comparisons_delay_nobody(quick: VerifyProcess) -> None:
    program = quick.open().process
    with ThreadPoolExecutor(4) as pool:
        endless = [pool.submit(quick.open().ask, "x", "endless", 2.0) for _ in range(4)]
        others = [quick.compare("x", "x") for _ in range(20)]
        assert not any(future.done() for future in endless)
        assert [future.result() for future in endless] == [Word.TIMEOUT] * 4
    assert others == [Word.EQUAL] * 20
    # The program is the same one, and none of its children is left.
    assert quick.open().process is program
    assert psutil.Process(program.pid).children() == []


def test_answers_go_to_who_asked(quick: VerifyProcess) -> None:
    answers = ["x" if number % 2 else "y" for number in range(200)]
    with ThreadPoolExecutor(32) as pool:
        words = list(pool.map(partial(quick.compare, "x"), answers))
    assert words == [Word.DIFFERENT, Word.EQUAL] * 100


def layers_hold() -> bool:
    """Whether this machine keeps files and processes out of reach; found out in a process that is given up for it."""
    pid = os.fork()
    if pid == 0:
        report = lock_down(SandboxLimits(), [])
        os._exit(1 if report[Layer.LANDLOCK] or report[Layer.SECCOMP] else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("prediction", ["memory", "file", "process", "noise"])
def test_a_child_can_only_answer(quick: VerifyProcess, prediction: str) -> None:
    if prediction in ("file", "process") and not layers_hold():
        pytest.skip("needs a kernel with Landlock and seccomp")
    # Neither an error nor a forged answer is anybody's but its own.
    assert quick.compare(prediction, prediction) is Word.UNREADABLE
    assert quick.compare("x", "y") is Word.DIFFERENT


def test_a_comparison_that_something_else_ends_is_the_infrastructures_fault(quick: VerifyProcess) -> None:
    program = quick.open().process
    assert quick.compare("x", "x") is Word.EQUAL
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(quick.compare, "x", "endless")
        while not outcome.done():  # as a machine does that runs out of memory
            for child in psutil.Process(program.pid).children():
                with suppress(psutil.NoSuchProcess):  # it ended between being listed and being killed
                    child.kill()
        with pytest.raises(ToolFailure, match="failed 3 times, at last: something else ended the comparison"):
            outcome.result()
    assert quick.open().process is program


def test_many_comparisons_leave_nothing_behind(quick: VerifyProcess) -> None:
    assert quick.compare("x", "x") is Word.EQUAL
    this, program = psutil.Process(), psutil.Process(quick.open().process.pid)
    before = this.num_fds(), this.num_threads(), program.num_fds()
    for _ in range(100):
        quick.compare("x", "y")
    assert (this.num_fds(), this.num_threads(), program.num_fds()) == before
    assert program.children() == []


def test_a_program_that_was_killed_is_replaced(quick: VerifyProcess) -> None:
    first = quick.open().process
    assert quick.compare("x", "x") is Word.EQUAL
    os.kill(first.pid, signal.SIGKILL)
    assert quick.compare("x", "x") is Word.EQUAL
    assert quick.open().process.pid != first.pid


def test_a_program_that_is_stuck_is_replaced(quick: VerifyProcess) -> None:
    first = quick.open()
    assert quick.compare("x", "x") is Word.EQUAL
    os.kill(first.process.pid, signal.SIGSTOP)
    quick.limit_s = 0.5
    assert quick.compare("x", "x") is Word.EQUAL
    assert first.process.returncode == -signal.SIGKILL


def test_a_program_that_cannot_run_is_the_infrastructures_fault(tmp_path: Path, quick: VerifyProcess) -> None:
    (tmp_path / "quick.py").write_text("raise SystemExit(1)\n", encoding="utf-8")
    with pytest.raises(ToolFailure, match="failed 3 times, at last: it has ended"):
        quick.compare("x", "y")


def test_a_system_without_room_for_the_program_is_the_infrastructures_fault(
    quick: VerifyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(verify_process, "Connection", fail)
    with pytest.raises(ToolFailure, match="failed 3 times, at last: .* temporarily unavailable"):
        quick.compare("x", "y")


def test_a_failure_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gold: str, prediction: str) -> Word:
        raise ToolFailure("no program")

    with monkeypatch.context() as patch:
        patch.setattr(shared_process(), "compare", fail)
        with pytest.raises(ToolFailure):
            verdict_on("x+7", "7+x")
    assert verdict_on("x+7", "7+x") is Verdict.EQUAL


def test_the_program_sees_nothing_of_this_process() -> None:
    program = psutil.Process(shared_process().open().process.pid)
    assert not {"PATH", "HOME", "HF_HUB_OFFLINE"} & set(program.environ())
    assert program.cwd() == "/"
    assert program.num_fds() == 4  # its input, its output, the terminal for errors, and its selector
    assert os.getsid(program.pid) == program.pid


def test_a_forked_process_starts_its_own(quick: VerifyProcess) -> None:
    assert quick.compare("x", "x") is Word.EQUAL
    reader, writer = os.pipe()
    mine = quick.open().process.pid
    pid = os.fork()
    if pid == 0:
        try:
            word = quick.compare("x", "x")
            os.write(writer, f"{word.value} {quick.open().process.pid != mine}".encode())
            quick.close()
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"equal True"
    os.close(reader)
    assert quick.compare("x", "x") is Word.EQUAL
    assert quick.open().process.pid == mine


def test_the_program_ends_with_the_process_that_started_it(quick: VerifyProcess) -> None:
    code = (
        "import os, pathlib\n"
        "from forkgym.envs.verification import verify_process\n"
        f"verify_process.PROGRAM = pathlib.Path({str(verify_process.PROGRAM)!r})\n"
        "process = verify_process.VerifyProcess()\n"
        "print(process.open().process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"  # nothing is cleaned up
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ended = threading.Event()
    for _ in range(300):
        if not psutil.pid_exists(int(done.stdout)):
            break
        ended.wait(0.1)
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.parametrize(
    ("gold", "prediction"),
    [
        (r"1 + \lim_{x\to0}\frac{\sin x}{x}", "2"),
        ("|x-3|", "|3-x|"),
        (r"x+\lfloor 3.5\rfloor", "3+x"),
        (r"\frac{d}{dx}x^3", "3x^2"),
        (r"\sqrt[3]{x}", "x^{1/3}"),
        (r"\frac{1+\sqrt5}{2}", "1.618034"),
        ("x=2,y=3", "(2,3)"),
        ("2^{x}", r"e^{x\ln2}"),
        ("3+4i", "4i+3"),
        (r"x+\begin{vmatrix}1&2\\3&4\end{vmatrix}", "x-2"),
    ],
)
def test_a_child_says_what_this_process_would(gold: str, prediction: str) -> None:
    # What a library imports late, it can read in the child as well.
    assert math_equal(gold, prediction)
