"""The contract of a tool as code, for its author: `check_tool` says in words what is broken."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

from forkgym.tools.base import Tool, ToolError, ToolFailure, ToolSession, ToolStop
from forkgym.tools.limits import ToolTimeout, call_within_limit
from forkgym.tools.registry import resolve_tool

Arguments = Mapping[str, Any]
# What came of a call: "result", "error" or "stop", and the text that the model sees.
Outcome = tuple[str, str]

MAX_TEXT_CHARACTERS = 100_000  # of a result; an environment cuts a longer one
GRACE_S = 0.3  # by which a tool that keeps its own limit may be late

# What stands between the markers of a call may be anything.
ODD_TEXTS = (
    *("", " ", "\n", "\0", "\ud800", "\u0663", "nan", "-1e999999999", "1/0", "9" * 10_000),
    *("(" * 1_000, "}" * 1_000, "[" * 10_000, "\\boxed{", "<answer>1</answer>", "%s {} {0} $x", "../../../", "http://"),
    *("null", "[]", "{", "{}", "NaN", '{"no such argument": 1}'),
)
# Values for an argument, by its type in JSON; none that fits a type and is large enough to fill the memory.
ODD_VALUES: Mapping[str, Sequence[Any]] = {
    "string": ODD_TEXTS,
    "integer": (0, -1, 10**30, -(10**30)),
    "number": (0.0, -1.0, 1e308, 5e-324),
    "boolean": (False, True),
    "array": ([], [None], [[[]]]),
    "object": ({}, {"": None}),
    "null": (None,),
}
ANYTHING: Sequence[Any] = ("x", 0, -1, 0.5, True, None, [], {})


def check_tool(tool: str | Callable[..., Any] | Tool, *, calls: Sequence[Arguments | str] = ()) -> None:
    """Check that a tool keeps the contract of `Tool` and `ToolSession`.

    Whatever its arguments, a call ends in time with a text that is not too long, or with ToolError, ToolStop or
    ToolFailure. What only its author knows is shown by example: in a fresh session, ``calls`` in this order give the
    same every time, in any thread, whether or not the session was forked, snapshot and restored along the way.
    Without ``calls`` none of that is checked. Make them show the state, where there is one: some that change it, and
    then some that depend on it.

    The tool is called about a hundred times, and must be up if it needs a server.

    Args:
        tool: A function, class or tool, or its name as on the command line.
        calls: Arguments by name, or texts as between the markers of a call.

    Raises:
        AssertionError: It does not keep the contract; the message says how.
    """
    try:
        resolved = resolve_tool(tool)
    except (TypeError, ValueError) as error:
        raise AssertionError(str(error)) from error
    check_introduction(resolved)
    examples = [example_arguments(resolved, call) for call in calls]
    check_odd_texts(resolved)
    check_odd_arguments(resolved, examples[0] if examples else None)
    check_state(resolved)
    if examples:
        expected = play(resolved, examples)
        check_repeats(resolved, examples, expected)
        check_stateless(resolved, examples, expected)
        check_forks(resolved, examples, expected)
        check_snapshots(resolved, examples, expected)


def require(condition: bool, sentence: str) -> None:
    """Raise an AssertionError that says what is broken, also where Python ignores ``assert``."""
    if not condition:
        raise AssertionError(sentence)


# Calls.


def open_session(tool: Tool) -> ToolSession:
    """Start a session, which the caller closes."""
    session: Any = tool.new_session()
    require(isinstance(session, ToolSession), f"{tool.name}: new_session() returns {session!r}, expected a ToolSession")
    assert isinstance(session, ToolSession)
    return session


def call(tool: Tool, session: ToolSession, arguments: Arguments) -> Outcome:
    """Call once, and check what any call has to keep."""
    what = f"{tool.name}({shown(arguments)})"
    begun_s = time.monotonic()
    try:
        kind, text = "result", call_within_limit(tool, session, arguments)
    except ToolError as error:
        kind, text = "error", str(error)
        require(text != "", f"{what} raises a ToolError without a message: the model learns nothing from it")
    except ToolStop as stop:
        kind, text = "stop", str(stop)
    except ToolFailure as failure:
        raise AssertionError(f"{what} cannot be checked, its infrastructure fails: {failure}") from failure
    except ToolTimeout as error:
        raise AssertionError(f"{what} takes longer than timeout_s, {tool.timeout_s:g} s") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AssertionError(f"{what} raises {error!r}; what the model got wrong is a ToolError") from error
    took_s = time.monotonic() - begun_s
    require(
        took_s <= tool.timeout_s + GRACE_S,
        f"{what} takes {took_s:.1f} s, timeout_s is {tool.timeout_s:g}; a tool that is inline or keeps_limit ends in "
        "time by itself",
    )
    untyped: Any = text
    require(isinstance(untyped, str), f"{what} returns {shown(untyped)}, expected a string")
    length = f"{what} gives {len(text)} characters, expected at most {MAX_TEXT_CHARACTERS}"
    require(len(text) <= MAX_TEXT_CHARACTERS, length)
    if encodable(arguments):
        require(encodable(text), f"{what} gives {shown(text)}, half a surrogate pair, which no tokenizer takes")
    return kind, text


def proceed(tool: Tool, session: ToolSession, examples: Sequence[Arguments]) -> list[Outcome]:
    """Call with each until one stops the episode, and return what came of them."""
    outcomes: list[Outcome] = []
    for arguments in examples:
        outcomes.append(call(tool, session, arguments))
        if outcomes[-1][0] == "stop":
            break
    return outcomes


def play(tool: Tool, examples: Sequence[Arguments]) -> list[Outcome]:
    """Call with each in a fresh session."""
    with closing(open_session(tool)) as session:
        return proceed(tool, session, examples)


def shown(value: object) -> str:
    """Show a value in a message, not at any length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def encodable(value: object) -> bool:
    """Whether all texts in a value can be written in UTF-8."""
    try:
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# The contract, point by point.


def check_introduction(tool: Tool) -> None:
    """What the model is shown of a tool: a description, and the JSON schema of an object."""
    require(tool.description.strip() != "", f"{tool.name} has no description: the model is shown it")
    try:
        schema = json.loads(json.dumps(tool.parameters, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{tool.name}: its schema is no JSON value: {error}") from error
    described: Any = schema.get("properties")
    require(isinstance(described, dict), f"{tool.name}: its schema has no properties, expected that of an object")


def example_arguments(tool: Tool, example: Arguments | str) -> dict[str, Any]:
    """The arguments of an example, which the schema has to accept."""
    try:
        return tool.arguments_from_text(example) if isinstance(example, str) else tool.validate(example)
    except ToolError as error:
        raise AssertionError(f"{tool.name}: the example {shown(example)} is refused: {error}") from error


def check_odd_texts(tool: Tool) -> None:
    """Any text between the markers is arguments or a ToolError, and any call comes to an end."""
    candidates = [read(tool, tool.arguments_from_text, text) for text in ODD_TEXTS]
    try_all(tool, [arguments for arguments in candidates if arguments is not None])


def check_odd_arguments(tool: Tool, example: Arguments | None) -> None:
    """So are any values by name, with the others as in the example, or of the right types."""
    properties: Mapping[str, Any] = tool.parameters["properties"]
    base: Arguments = example or {name: next(odd_values(properties[name])) for name in properties}
    changed = [{**base, name: value} for name in properties for value in odd_values(properties[name])]
    whole: list[Any] = [{}, {"no such argument": 1}, {**base, "no such argument": 1}, [], None, "x"]
    candidates = [read(tool, tool.validate, one) for one in [*changed, *whole]]
    try_all(tool, [arguments for arguments in candidates if arguments is not None])


def odd_values(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Values that a property's schema may accept, and then some that it may not."""
    yield from schema.get("enum", ())
    for one in (schema, *schema.get("anyOf", ())):
        yield from ODD_VALUES.get(one.get("type", ""), ())
    yield from ANYTHING


def read(tool: Tool, reader: Callable[[Any], dict[str, Any]], source: object) -> dict[str, Any] | None:
    """The arguments that a tool reads from what a call holds, or None where it refuses them."""
    try:
        return reader(source)
    except ToolError:
        return None
    except Exception as error:
        raise AssertionError(f"{tool.name}: reading {shown(source)} raises {error!r}, expected ToolError") from error


def try_all(tool: Tool, calls: Sequence[Arguments]) -> None:
    """Make all calls in one session, or in as few as there may be where some stop the episode."""
    # What cannot be encoded comes last and alone: a session may repeat what it was given.
    for kind in (True, False):
        remaining = [arguments for arguments in calls if encodable(arguments) is kind]
        while remaining:
            done = play(tool, remaining)
            remaining = remaining[len(done) :]


def check_state(tool: Tool) -> None:
    """A session forks, goes through JSON and closes, twice too."""
    session = open_session(tool)
    twin: Any = session.fork()
    require(isinstance(twin, ToolSession), f"{tool.name}: fork() returns {shown(twin)}, expected a ToolSession")
    session.restore(through_json(tool, session.snapshot()))
    for closed in (session, twin):
        closed.close()
        try:
            closed.close()
        except Exception as error:
            raise AssertionError(f"{tool.name}: closing a session a second time raises {error!r}") from error


def through_json(tool: Tool, state: Any) -> Any:
    """A snapshot as another process reads it."""
    try:
        copied = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{tool.name}: snapshot() is no JSON value: {error}") from error
    require(copied == state, f"{tool.name}: snapshot() is {shown(state)}, and once through JSON {shown(copied)}")
    return copied


def check_repeats(tool: Tool, examples: Sequence[Arguments], expected: Sequence[Outcome]) -> None:
    """A fresh session knows nothing of earlier ones, and may be called from any thread."""
    compare(tool, examples, play(tool, examples), expected, "in another fresh session")
    # Rollouts run the tools in an executor. In this thread the session is made, as an environment's reset does.
    with closing(open_session(tool)) as session, ThreadPoolExecutor(1) as executor:
        outcomes = executor.submit(proceed, tool, session, examples).result()
    compare(tool, examples, outcomes, expected, "in another thread")


def check_stateless(tool: Tool, examples: Sequence[Arguments], expected: Sequence[Outcome]) -> None:
    """A session that says it is stateless answers a call as if it were the only one, also beside others."""
    with closing(open_session(tool)) as session, ThreadPoolExecutor(len(expected)) as executor:
        if not session.stateless:
            return
        alone = [outcome for arguments in examples[: len(expected)] for outcome in play(tool, [arguments])]
        compare(tool, examples, alone, expected, "alone, of a session that says it is stateless")
        together = list(executor.map(partial(call, tool, session), examples[: len(expected)]))
        compare(tool, examples, together, expected, "beside other calls of a session that says it is stateless")


def check_forks(tool: Tool, examples: Sequence[Arguments], expected: Sequence[Outcome]) -> None:
    """Before every call, a fork that gets the same calls does the same, and one that gets others disturbs nobody."""
    for turn in range(len(expected)):
        session = open_session(tool)
        proceed(tool, session, examples[:turn])
        follower, stray = session.fork(), session.fork()
        with closing(stray):
            proceed(tool, stray, [*reversed(examples), *examples])
        with closing(session):
            outcomes = proceed(tool, session, examples[turn:])
            compare(tool, examples[turn:], outcomes, expected[turn:], f"when a fork at call {turn} went its own way")
        with closing(follower):
            outcomes = proceed(tool, follower, examples[turn:])
            compare(
                tool, examples[turn:], outcomes, expected[turn:], f"in a fork at call {turn}, after its parent's end"
            )


def check_snapshots(tool: Tool, examples: Sequence[Arguments], expected: Sequence[Outcome]) -> None:
    """Before every call, a session that restores a snapshot goes on as the one that it was taken from."""
    for turn in range(len(expected)):
        with closing(open_session(tool)) as session, closing(open_session(tool)) as other:
            proceed(tool, session, examples[:turn])
            snapshot = session.snapshot()
            state = through_json(tool, snapshot)
            proceed(tool, other, examples)
            other.restore(state)
            again = other.snapshot()
            require(again == state, f"{tool.name}: a snapshot is {shown(again)} once restored, it was {shown(state)}")
            outcomes = proceed(tool, other, examples[turn:])
            compare(tool, examples[turn:], outcomes, expected[turn:], f"restored from the snapshot at call {turn}")
            outcomes = proceed(tool, session, examples[turn:])
            compare(tool, examples[turn:], outcomes, expected[turn:], f"after a snapshot at call {turn}")
            require(snapshot == state, f"{tool.name}: calls change a snapshot that was taken before them")


def compare(
    tool: Tool, examples: Sequence[Arguments], outcomes: Sequence[Outcome], expected: Sequence[Outcome], where: str
) -> None:
    """Say which call came out in another way than expected."""
    for arguments, one, other in zip(examples, outcomes, expected, strict=False):
        require(
            one == other,
            f"{tool.name}({shown(arguments)}) gives {shown(one[1])} {where}, and {shown(other[1])} without",
        )
    require(len(outcomes) == len(expected), f"{tool.name} stops the episode at another call {where}")
