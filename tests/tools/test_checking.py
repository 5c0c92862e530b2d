"""`check_tool` passes the tools of ours, and says what is wrong with broken ones."""

import dataclasses
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import pytest
from pydantic import BaseModel, RootModel

from forkgym.tools.base import Tool, ToolError, ToolFailure, ToolSession, ToolStop, as_tool
from forkgym.tools.calculator import CALCULATOR
from forkgym.tools.checking import Arguments, check_tool
from forkgym.tools.passages import Passage
from forkgym.tools.search import PassageIndex, search_tool

SEARCH = search_tool(PassageIndex([Passage("Ayr", "A town in Scotland."), Passage("Ayr", "A river.")]))


def clip(text: str, length: int = 3, side: Literal["left", "right"] = "left", marks: list[str] | None = None) -> str:
    """Cut a text to a length, 0 to 10."""
    if not 0 <= length <= 10:
        raise ToolError(f"length is {length}, expected 0 to 10")
    kept = text[:length] if side == "left" else text[len(text) - length :]
    return kept + "".join(marks or ())


class Notes:
    """Keep notes; 'stop' ends it all."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, note: str) -> str:
        """Say which note it was, and the one before."""
        if note == "stop":
            raise ToolStop("stopped")
        self.notes.append(note[:10])
        return f"{len(self.notes)}: {' after '.join(reversed(self.notes[-2:]))}"


class NoArguments(BaseModel):
    """Names no argument."""


class Clock(ToolSession):
    """Tell the time, as a tool of a server may, without a question."""

    stateless: ClassVar[bool] = True

    def call(self, arguments: Mapping[str, Any]) -> str:
        assert not arguments
        return "noon"


CLOCK = Tool("clock", "Tell the time.", NoArguments, Clock)
EXAMPLES = ("one", "two", "three")


GOOD: list[tuple[Any, Sequence[Arguments | str]]] = [
    (CALCULATOR, ["1 + 1", "2 * (3", {"expression": "7 / 0"}]),
    ("calculator", []),
    ("python", ["x = [1]", "x.append(2); print(x)", "len(x)", "y"]),
    (SEARCH, ["a town", {"query": "river"}]),
    (clip, [{"text": "abcdef"}, '{"text": "abcdef", "side": "right", "length": 2}', {"text": "", "length": 99}]),
    (Notes, EXAMPLES),
    (Notes, ["one", "stop", "two"]),
    (CLOCK, []),
    (CLOCK, ["{}", {}]),
]


@pytest.mark.parametrize(("tool", "calls"), GOOD)
def test_good_tools_pass(tool: Any, calls: Sequence[Arguments | str]) -> None:
    check_tool(tool, calls=calls)


# Broken from the start.


def undocumented(text: str) -> str:
    return text


class Listed(RootModel[list[str]]):
    """Describes no object."""


class Picky(BaseModel):
    text: str

    def __init__(self, **values: Any) -> None:
        super().__init__(text=values["text"])


# Whatever the arguments.


def careless(text: str) -> str:
    """Read a number."""
    return str(float(text))


def selective(number: int) -> str:
    """Raise for what few think of."""
    return "x" * number


def quits(text: str) -> str:
    """Leave the process."""
    raise SystemExit(text)


def silent(text: str) -> str:
    """Refuse, and do not say why."""
    if not text:
        raise ToolError
    return "1"


def measure(text: str) -> str:
    """Return something else than it says."""
    return cast("str", len(text))


def verbose(text: str) -> str:
    """Say much."""
    return text * 20


def half(text: str) -> str:
    """Return half a pair."""
    return "\ud800" if text == "nan" else "1"


def slow(text: str) -> str:
    """Take its time."""
    time.sleep(0.5)
    return text


def down(text: str) -> str:
    """Have no server."""
    raise ToolFailure("nothing listens on port 9")


# In their sessions.


class Counter:
    """Count; what the broken ones below are but for one thing."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> str:
        """Say how often it was called."""
        self.count += 1
        return str(self.count)


class Shared(Counter):
    """Count over all episodes."""

    total = 0

    def __call__(self, text: str) -> str:
        """Say how often any was called."""
        Shared.total += 1
        return str(Shared.total)


class CountingSession(ToolSession):
    """Has a state, and denies it."""

    stateless: ClassVar[bool] = True

    def __init__(self) -> None:
        self.texts: list[str] = []

    def call(self, arguments: Mapping[str, Any]) -> str:
        self.texts.append(arguments["text"])
        return " ".join(self.texts[-2:])

    def snapshot(self) -> Any:
        return list(self.texts)

    def restore(self, state: Any) -> None:
        self.texts = list(state)


class ForksIntoItself(Counter):
    """Fork by itself."""

    def fork(self) -> "ForksIntoItself":
        return self


class Forgetful(Counter):
    """Forks start afresh."""

    def fork(self) -> "Forgetful":
        return Forgetful()


class Unsaved(Counter):
    """Snapshot nothing."""

    def snapshot(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        assert state is None


class SetState(Counter):
    """Snapshot a set."""

    def snapshot(self) -> Any:
        return {self.count}


class TupleState(Counter):
    """Snapshot a tuple, which JSON makes a list."""

    def snapshot(self) -> Any:
        return (self.count,)

    def restore(self, state: Any) -> None:
        (self.count,) = state


class Unrestored(Counter):
    """Ignore what is restored."""

    def restore(self, state: Any) -> None:
        del state
        self.count = 0


class LiveSnapshot:
    """Hand out the state itself."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str) -> str:
        """Say how often it was called."""
        self.lines.append(text[:1])
        return str(len(self.lines))

    def snapshot(self) -> Any:
        return self.lines

    def restore(self, state: Any) -> None:
        self.lines = list(state)


class ClosesOnce(Counter):
    """Mind being closed again."""

    closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Handle:
    """Something outside the process that forks share."""

    def __init__(self) -> None:
        self.open = True


class SharedHandle(Counter):
    """Let go of what its forks need."""

    def __init__(self, handle: Handle | None = None) -> None:
        super().__init__()
        self.handle = handle or Handle()

    def __call__(self, text: str) -> str:
        """Say how often it was called."""
        assert self.handle.open
        return super().__call__(text)

    def fork(self) -> "SharedHandle":
        twin = SharedHandle(self.handle)
        twin.count = self.count
        return twin

    def snapshot(self) -> Any:
        return self.count

    def restore(self, state: Any) -> None:
        self.count = state

    def close(self) -> None:
        self.handle.open = False


class OneThread:
    """Use a library that minds the thread, after the first call."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:")

    def __call__(self, text: str) -> str:
        """Say 1."""
        return str(self.connection.execute("select 1").fetchone()[0])

    def fork(self) -> "OneThread":
        return OneThread()

    def snapshot(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        assert state is None

    def close(self) -> None:
        self.connection.close()


def dice(text: str) -> str:
    """Draw a number."""
    return str(random.random())


class ForksIntoANumber(ToolSession):
    """Forks into a number."""

    def call(self, arguments: Mapping[str, Any]) -> str:
        return "1"

    def fork(self) -> Any:
        return 1


def with_parts(source: Callable[..., Any] = Counter, **parts: Any) -> Tool:
    return dataclasses.replace(as_tool(source), **parts)


# A tool, and what is said of it. These are found without an example.
BROKEN: list[tuple[Any, str]] = [
    (undocumented, "tool undocumented has no docstring"),
    ("no_such_tool", "unknown tool 'no_such_tool'"),
    (with_parts(description=" "), "counter has no description"),
    (with_parts(arguments_model=Listed), "its schema has no properties, expected that of an object"),
    (with_parts(arguments_model=Picky), "reading .* raises KeyError"),
    (with_parts(new_session=Counter), "new_session.. returns .*Counter.*, expected a ToolSession"),
    (with_parts(new_session=ForksIntoANumber), "fork.. returns 1, expected a ToolSession"),
    (careless, r"careless\({'text': ''}\) raises ValueError.*; what the model got wrong is a ToolError"),
    (selective, r"selective\({'number': 10{30}}\) raises OverflowError"),
    (quits, "raises SystemExit"),
    (as_tool(quits, inline=True), "raises SystemExit"),
    (silent, r"silent\({'text': ''}\) raises a ToolError without a message"),
    (measure, "returns 0, expected a string"),
    (verbose, r"verbose\(.* gives 200000 characters, expected at most 100000"),
    (half, r"half\({'text': 'nan'}\) gives '\\ud800', half a surrogate pair"),
    (as_tool(slow, timeout_s=0.05), "takes longer than timeout_s, 0.05 s"),
    (
        as_tool(slow, timeout_s=0.05, inline=True),
        "takes 0.5 s, timeout_s is 0.05; a tool that is inline or keeps_limit",
    ),
    (with_parts(slow, timeout_s=0.05, keeps_limit=True), "takes 0.5 s, timeout_s is 0.05"),
    (down, "cannot be checked, its infrastructure fails: nothing listens on port 9"),
    (ClosesOnce, "closing a session a second time raises AssertionError"),
    (SetState, "snapshot.. is no JSON value: .*set"),
    (TupleState, r"snapshot.. is \(0,\), and once through JSON \[0\]"),
]
# These need one.
BROKEN_IN_EXAMPLES: list[tuple[Any, str]] = [
    (clip, "clip: the example 'one' is refused: clip takes a JSON object with text, length, side, marks"),
    (dice, "in another fresh session"),
    (Shared, r"shared\(.*\) gives '\d+' in another fresh session, and '\d+' without"),
    (OneThread, r"raises ProgrammingError\('SQLite objects created in a thread"),
    (
        with_parts(new_session=CountingSession),
        r"gives 'two' alone, of a session that says it is stateless, and 'one two' without",
    ),
    # The fork made six calls before the fourth, which is the first of the parent.
    (ForksIntoItself, "gives '7' when a fork at call 0 went its own way, and '1' without"),
    (Forgetful, "gives '1' in a fork at call 1, after its parent's end, and '2' without"),
    (SharedHandle, r"raises AssertionError"),
    (Unsaved, "gives '4' restored from the snapshot at call 0, and '1' without"),
    (Unrestored, "a snapshot is {'count': 0} once restored, it was {'count': 1}"),
    (LiveSnapshot, "calls change a snapshot that was taken before them"),
]


@pytest.mark.parametrize(("tool", "said"), BROKEN)
def test_broken_tools_are_found(tool: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_tool(tool)


@pytest.mark.parametrize(("tool", "said"), BROKEN_IN_EXAMPLES)
def test_broken_tools_are_found_by_example(tool: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_tool(tool, calls=EXAMPLES)


def test_the_tool_that_is_broken_above_passes() -> None:
    check_tool(Counter, calls=EXAMPLES)
