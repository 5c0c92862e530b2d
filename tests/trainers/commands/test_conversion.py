"""What fits a field's type on a command line and in a YAML file, and what is said of what does not."""

from __future__ import annotations

import datetime
from typing import Any, Literal

import pytest

from forkgym.trainers.commands.conversion import convert_words, convert_yaml, metavar, shown, words_of

Color = Literal["red", "blue"]


@pytest.mark.parametrize(
    ("words", "kind", "value"),
    [
        (["3"], int, 3),
        (["-3"], int, -3),
        (["3"], float, 3.0),
        (["2e-4"], float, 0.0002),
        ([], bool, True),
        (["true"], bool, True),
        (["false"], bool, False),
        (["3"], str, "3"),
        (["none"], str, "none"),
        ([""], str, ""),
        (["blue"], Color, "blue"),
        (["3"], int | None, 3),
        (["none"], int | None, None),
        (["none"], Literal["some", "none"] | None, "none"),
        (["null"], Literal["some", "none"] | None, None),
        (["none"], Literal["some"] | None, None),
        (["None"], str | None, None),
        (["a"], tuple[str, ...], ("a",)),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        (["1", "2"], tuple[int, ...], (1, 2)),
        (["a"], tuple[str, ...] | None, ("a",)),
        (["none"], tuple[str, ...] | None, None),
    ],
)
def test_words_become_the_type_of_the_field(words: list[str], kind: Any, value: object) -> None:
    converted = convert_words(words, kind)
    assert (converted, type(converted)) == (value, type(value))


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["abc"], int, "'abc', expected a whole number"),
        (["1.5"], int, "'1.5', expected a whole number"),
        (["1", "2"], int, "'1 2', expected a whole number"),
        ([], int, "without a value, expected a whole number"),
        ([], tuple[str, ...], "without a value, expected a list, each item text"),
        (["x"], tuple[int, ...], "'x', expected a list, each item a whole number"),
        (["abc"], float, "'abc', expected a number"),
        (["nan"], float, "'nan', expected a number"),
        (["inf"], float, "'inf', expected a number"),
        (["maybe"], bool, "'maybe', expected true or false"),
        (["green"], Color, "'green', expected one of red, blue"),
        (["none"], int, "'none', expected a whole number"),
        (["abc"], int | None, "'abc', expected a whole number"),
        (["\udcff"], str, "'\\udcff', expected text"),
    ],
)
def test_words_that_do_not_fit_are_named_with_what_was_expected(words: list[str], kind: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        convert_words(words, kind)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        ("2e-4", float, 0.0002),
        (True, bool, True),
        ("3", str, "3"),
        ("2e-4", str, "2e-4"),
        ("red", Color, "red"),
        (None, int | None, None),
        (3, int | None, 3),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ([], tuple[str, ...], ()),
        (["a"], tuple[str, ...] | None, ("a",)),
        (datetime.date(2024, 1, 31), str, "2024-01-31"),
    ],
)
def test_yaml_becomes_the_type_of_the_field(given: object, kind: Any, value: object) -> None:
    converted = convert_yaml(given, kind)
    assert (converted, type(converted)) == (value, type(value))


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("3", int, "'3', expected a whole number"),
        (3.0, int, "3.0, expected a whole number"),
        (True, int, "true, expected a whole number"),
        (None, int, "null, expected a whole number"),
        (1, bool, "1, expected true or false"),
        ("yes", bool, "'yes', expected true or false"),
        ("abc", float, "'abc', expected a number"),
        ("nan", float, "'nan', expected a number"),
        (float("inf"), float, "inf, expected a number"),
        (3, str, "3, expected text"),
        ("a", tuple[str, ...], "'a', expected a list, each item text"),
        (["a", 3], tuple[str, ...], "['a', 3], expected a list, each item text"),
        ({"a": 1}, int, "{'a': 1}, expected a whole number"),
        ({datetime.date(2024, 1, 31): 1}, int, "{datetime.date(2024, 1, 31): 1}, expected a whole number"),
        (CIRCLE, str, "[[...]], expected text"),
    ],
)
def test_yaml_that_does_not_fit_is_named_with_what_was_expected(given: object, kind: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        convert_yaml(given, kind)
    assert str(caught.value) == message


def test_a_wrong_value_is_not_shown_at_any_length() -> None:
    # 80 characters: a quote, 76 letters, three dots
    assert shown("x" * 1000) == "'" + "x" * 76 + "..."


def test_an_option_says_what_it_takes() -> None:
    assert [metavar(kind) for kind in (int, float, str, bool)] == ["INT", "FLOAT", "TEXT", "[true|false]"]
    assert metavar(Color) == "{red,blue}"
    assert metavar(tuple[str, ...]) == metavar(tuple[str, ...] | None) == "TEXT [TEXT ...]"
    assert metavar(int | str | None) == "INT|TEXT"


def test_a_default_is_shown_in_words_that_give_it() -> None:
    kinds: list[tuple[Any, object]] = [
        (int, -3),
        (float, 2e-4),
        (bool, False),
        (str | None, None),
        (tuple[str, ...], ("a", "b")),
    ]
    for kind, value in kinds:
        assert convert_words(words_of(value), kind) == value
