"""The tool contract: schemas of typed functions and classes, sessions with state, and the model's mistakes."""

import json
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from forkgym.tools.base import FunctionSession, Tool, ToolError, as_tool


def echo(text: str) -> str:
    """Say it again."""
    return text


def book(
    city: Annotated[str, Field(min_length=2, description="where to")],
    nights: int,
    *,
    price: float = 80.0,
    room: Literal["single", "double"] = "single",
    names: list[str] | None = None,
) -> str:
    """Book a room."""
    return f"{city} {nights} {price} {room} {names}"


def double(number: int) -> str:
    """Double a number."""
    return str(2 * number)


class RunningTotal:
    """Add up the numbers of all calls."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int, times: int = 1) -> str:
        self.numbers.extend([number] * times)
        return str(sum(self.numbers))


class Dice:
    """Roll a die; the sequence is the object's own business."""

    closed = 0

    def __init__(self) -> None:
        self.state = [7]

    def __call__(self, sides: int) -> str:
        self.state[0] = self.state[0] * 16807 % 2147483647
        return str(self.state[0] % sides + 1)

    def fork(self) -> "Dice":
        twin = Dice()
        twin.restore(self.snapshot())
        return twin

    def snapshot(self) -> int:
        return self.state[0]

    def restore(self, state: int) -> None:
        self.state = [state]

    def close(self) -> None:
        Dice.closed += 1


BOOK = as_tool(book)
TOTAL = as_tool(RunningTotal)


def test_a_function_of_one_text() -> None:
    tool = as_tool(echo)
    assert (tool.name, tool.description, tool.text_parameter) == ("echo", "Say it again.", "text")
    assert (tool.timeout_s, tool.inline) == (10.0, False)
    for text in ("", " {not json} ", "<answer>"):
        assert tool.new_session().call(tool.arguments_from_text(text)) == text


def test_the_schema_of_several_typed_arguments() -> None:
    assert BOOK.text_parameter is None
    schema = BOOK.parameters
    assert schema["required"] == ["city", "nights"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert list(properties) == ["city", "nights", "price", "room", "names"]
    assert properties["city"] == {"title": "City", "type": "string", "minLength": 2, "description": "where to"}
    assert properties["nights"]["type"] == "integer"
    assert (properties["price"]["type"], properties["price"]["default"]) == ("number", 80.0)
    assert properties["room"]["enum"] == ["single", "double"]
    assert properties["names"]["anyOf"] == [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]
    json.dumps(schema)


def test_json_arguments_become_typed_ones() -> None:
    arguments = BOOK.arguments_from_text('{"city": "Ayr", "nights": "2", "names": ["Zoë"]}')
    assert arguments == {"city": "Ayr", "nights": 2, "price": 80.0, "room": "single", "names": ["Zoë"]}
    assert BOOK.new_session().call(arguments) == "Ayr 2 80.0 single ['Zoë']"
    assert BOOK.validate({"city": "Ayr", "nights": 1, "room": "double"})["room"] == "double"


# The text of a call, and what the model is told.
MISTAKES = [
    ("", "book takes a JSON object with city, nights, price, room, names"),
    ("Ayr", "book takes a JSON object with"),
    ("[1]", "book takes a JSON object with"),
    ("null", "book takes a JSON object with"),
    ('{"city": "Ayr"', "book takes a JSON object with"),
    ("[" * 100_000, "book takes a JSON object with"),
    ('{"city": "\\ud83d", "nights": 1}', "book takes a JSON object with"),
    ('{"city": "Ayr"}', "book: nights: Field required"),
    ('{"city": "Ayr", "nights": "two"}', "book: nights: Input should be a valid integer"),
    ('{"city": "A", "nights": 1}', "book: city: String should have at least 2 characters"),
    ('{"city": "Ayr", "nights": 1, "room": "suite"}', "book: room: Input should be 'single' or 'double'"),
    ('{"city": "Ayr", "nights": 1, "names": ["a", 2]}', "book: names.1: Input should be a valid string"),
    ('{"city": "Ayr", "nights": 1, "price": 1e999}', "book: price: Input should be a finite number"),
    ('{"city": "Ayr", "nights": 1, "pets": 1}', "book: pets: Extra inputs are not permitted"),
    ('{"city": "Ayr", "nights": ' + "9" * 5000 + "}", "book"),
    ('{"city": "Ayr", "nights": 1, "' + "x" * 5000 + '": 1}', "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_the_models_mistakes_are_tool_errors(text: str, words: str) -> None:
    with pytest.raises(ToolError) as caught:
        BOOK.arguments_from_text(text)
    message = str(caught.value)
    assert words in message
    assert len(message) < 200
    message.encode()


def test_one_argument_that_is_no_text_is_json() -> None:
    tool = as_tool(double)
    assert tool.text_parameter is None
    assert tool.new_session().call(tool.arguments_from_text('{"number": 21}')) == "42"
    with pytest.raises(ToolError, match="double takes a JSON object with number"):
        tool.arguments_from_text("21")


def test_limits_on_the_one_text_argument_are_kept() -> None:
    def short(text: Annotated[str, Field(max_length=3)]) -> str:
        """Keep it short."""
        return text

    tool = as_tool(short)
    assert tool.arguments_from_text("abc") == {"text": "abc"}
    with pytest.raises(ToolError, match="short: text: String should have at most 3 characters"):
        tool.arguments_from_text("abcd")


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["city", "nights", "price"]), inner),
)


@given(st.text() | JSON_VALUES.map(json.dumps))
def test_any_text_gives_arguments_or_a_tool_error(text: str) -> None:
    try:
        arguments = BOOK.arguments_from_text(text)
    except ToolError:
        return
    assert isinstance(arguments["city"], str)
    assert math.isfinite(arguments["price"])
    arguments["city"].encode()


def test_a_class_has_an_object_for_each_episode() -> None:
    assert (TOTAL.name, TOTAL.description) == ("running_total", "Add up the numbers of all calls.")
    first, second = TOTAL.new_session(), TOTAL.new_session()
    assert first.call({"number": 2, "times": 3}) == "6"
    assert second.call({"number": 5}) == "5"


@given(st.lists(st.integers(-9, 9)), st.lists(st.integers(-9, 9)), st.lists(st.integers(-9, 9)))
def test_a_fork_is_exact_and_independent(before: list[int], one: list[int], other: list[int]) -> None:
    session = TOTAL.new_session()
    for number in before:
        session.call({"number": number})
    twin = session.fork()
    for number in one:
        session.call({"number": number})
    for number in other:
        twin.call({"number": number})
    assert session.call({"number": 0}) == str(sum(before) + sum(one))
    assert twin.call({"number": 0}) == str(sum(before) + sum(other))


@pytest.mark.parametrize(("source", "arguments"), [(RunningTotal, {"number": 3}), (Dice, {"sides": 1000})])
def test_a_snapshot_survives_json_and_later_calls(source: type, arguments: dict[str, int]) -> None:
    tool = as_tool(source)
    session = tool.new_session()
    session.call(arguments)
    state = session.snapshot()
    text = json.dumps(state)
    expected = [session.call(arguments) for _ in range(3)]
    assert json.dumps(state) == text  # the calls did not change the snapshot
    fresh = tool.new_session()
    for target in (fresh, session):  # into a new session, and back in time
        target.restore(json.loads(text))
        assert [target.call(arguments) for _ in range(3)] == expected
    state_again = json.loads(text)
    fresh.restore(state_again)
    fresh.call(arguments)
    assert json.dumps(state_again) == text  # nor did the session keep hold of it


def test_restore_forgets_what_was_set_after_the_snapshot() -> None:
    class Note:
        """Keep the last note."""

        def __call__(self, text: str) -> str:
            before = getattr(self, "last", "nothing")
            self.last = text
            return before

    session = as_tool(Note).new_session()
    state = session.snapshot()
    assert [session.call({"text": text}) for text in ("a", "b")] == ["nothing", "a"]
    session.restore(state)
    assert session.call({"text": "c"}) == "nothing"


def test_a_class_with_its_own_fork_snapshot_and_close() -> None:
    session = as_tool(Dice).new_session()
    session.call({"sides": 6})
    assert session.snapshot() == 7 * 16807
    twin = session.fork()
    assert twin.snapshot() == 7 * 16807
    assert session.call({"sides": 100}) == twin.call({"sides": 100})
    closed = Dice.closed
    session.close()
    assert Dice.closed == closed + 1
    TOTAL.new_session().close()  # a class need not have one


def test_a_function_has_no_state() -> None:
    session = as_tool(echo).new_session()
    assert isinstance(session, FunctionSession)
    assert session.fork() is session
    assert session.snapshot() is None
    session.restore(None)
    session.close()
    with pytest.raises(ValueError, match="FunctionSession keeps no state, so it cannot take on"):
        session.restore({"count": 1})


def test_errors_of_the_tool_itself_propagate() -> None:
    def divide(text: str) -> str:
        """Divide by zero."""
        return str(1 / 0) + text

    def refuse(text: str) -> str:
        """Refuse."""
        raise ToolError(f"not {text}")

    with pytest.raises(ZeroDivisionError):
        as_tool(divide).new_session().call({"text": ""})
    with pytest.raises(ToolError, match="not this"):
        as_tool(refuse).new_session().call({"text": "this"})


def test_names_limits_and_tools_themselves() -> None:
    tool = as_tool(echo, name="say", timeout_s=0.5, inline=True)
    assert (tool.name, tool.timeout_s, tool.inline) == ("say", 0.5, True)
    assert as_tool(tool) is tool
    for name in ("", "two words", "1st", "tag>", "é", "a\n"):
        with pytest.raises(ValueError, match="expected letters, digits and underscores"):
            as_tool(echo, name=name)
    for timeout_s in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected a positive number of seconds"):
            as_tool(echo, timeout_s=timeout_s)


def test_functions_that_keep_their_signature_when_wrapped() -> None:
    tool = as_tool(lru_cache(echo))
    assert tool.new_session().call({"text": "a"}) == "a"


class Uncallable:
    """Has no call."""


class NeedsArgument:
    """Has to be told where."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self, text: str) -> str:
        return self.place + text


def no_docstring(text: str) -> str:
    return text


def untyped(text):  # type: ignore[no-untyped-def]  # pyright: ignore
    """Say it."""
    return text  # pyright: ignore


def open_ended(*texts: str) -> str:
    """Say all."""
    return " ".join(texts)


def no_arguments() -> str:
    """Say nothing."""
    return ""


def hidden(_text: str) -> str:
    """Say what has a name that pydantic keeps for itself."""
    return _text


def configured(model_config: str, text: str) -> str:
    """Say what has another such name."""
    return model_config + text


def unknown_type(text: "Unheard") -> str:  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore
    """Say what has no type."""
    return str(text)  # pyright: ignore


def without_schema(text: Uncallable) -> str:
    """Say what no JSON can be."""
    return str(text)


def takes_function(text: Callable[[], str]) -> str:
    """Say what a function returns."""
    return text()


# What cannot be a tool, and why.
NO_TOOLS: list[tuple[Any, str]] = [
    ("echo", "got 'echo'"),
    (None, "got None"),
    (len, "got <built-in function len>"),
    (Dice(), "got <.*Dice object"),
    (partial(echo, text="a"), "got functools.partial"),
    (Uncallable, "got <class"),
    (int, "got <class 'int'>"),
    (NeedsArgument, "tool needs_argument is instantiated without arguments: missing a required argument: 'place'"),
    (no_docstring, "tool no_docstring has no docstring: the model is shown it"),
    (untyped, "tool untyped: argument 'text' has no type"),
    (open_ended, r"tool open_ended: argument \*texts: str has no name of its own"),
    (no_arguments, "tool no_arguments takes no argument"),
    (hidden, "tool hidden: rename the arguments _text"),
    (configured, "tool configured: rename the arguments model_config"),
    (unknown_type, "tool unknown_type: the type of an argument is unknown: name 'Unheard' is not defined"),
    (without_schema, "tool without_schema: an argument has no JSON schema"),
    (takes_function, "tool takes_function: an argument has no JSON schema"),
]


@pytest.mark.parametrize(("source", "words"), NO_TOOLS)
def test_what_cannot_be_a_tool(source: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        as_tool(source)
    assert "\n" not in str(caught.value)


def test_a_tool_made_by_hand() -> None:
    class Arguments(BaseModel):
        query: str

    def reverse(query: str) -> str:
        return query[::-1]

    tool = Tool("reverse", "Write it backwards.", Arguments, new_session=lambda: FunctionSession(reverse))
    assert tool.new_session().call(tool.arguments_from_text("abc")) == "cba"
