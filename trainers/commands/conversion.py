"""Values of settings: what a command line or a YAML file gives, converted to the type that a field declares.

Types are ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``tuple[X, ...]`` and unions of these with None. pydantic
converts; what it says of a value that does not fit is replaced by the few words that a user needs. It is imported where
it is used, which ``--help`` does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

NONE_WORDS = ("none", "None", "null")
LONGEST_VALUE = 80  # characters of a wrong value in a message


def convert_words(words: Sequence[str], kind: Any) -> Any:
    """Convert what a command line gives for a field.

    Args:
        words: What stands behind the option's name; none of them means true.
        kind: The field's type.

    Raises:
        ValueError: It does not fit; the message goes on from "--name is".
    """
    alternatives = alternatives_of(kind)
    if not words:
        if bool in alternatives:
            return True
        raise ValueError(f"without a value, expected {expected(kind)}")
    # A choice that is called none is that choice; null still leaves the field open.
    choices = [choice for one in alternatives if get_origin(one) is Literal for choice in get_args(one)]
    if len(words) == 1 and words[0] in NONE_WORDS and words[0] not in choices and NoneType in alternatives:
        return None
    several = len(words) > 1 or any(get_origin(one) is tuple for one in alternatives)
    return validate(list(words) if several else words[0], " ".join(words), kind, strict=False)


def convert_yaml(value: object, kind: Any) -> Any:
    """Convert what a YAML file gives for a field: a list to a tuple, a whole number to a float, and nothing else.

    Args:
        value: As PyYAML reads it.
        kind: The field's type.

    Raises:
        ValueError: It does not fit; the message goes on from "name is".
    """
    # PyYAML speaks YAML 1.1, in which 2e-4 is text: a number has a dot there.
    is_text_number = isinstance(value, str) and float in alternatives_of(kind)
    return validate(value, value, kind, strict=not is_text_number)


def validate(value: object, original: object, kind: Any, strict: bool) -> Any:
    """Convert with pydantic.

    Args:
        value: Goes through JSON, by whose rules a list is good for a tuple even if strict.
        original: Is shown where it does not fit.
        kind: The type wanted.
        strict: Whether text is no good for a number or a bool.

    Raises:
        ValueError: It does not fit, or is infinite or not a number.
    """
    from pydantic import TypeAdapter
    from pydantic_core import to_json

    adapter: TypeAdapter[Any] = TypeAdapter(kind, config={"allow_inf_nan": False})
    try:
        return adapter.validate_json(to_json(value), strict=strict)
    except ValueError as error:  # pydantic's own are such
        raise ValueError(f"{shown(original)}, expected {expected(kind)}") from error


def alternatives_of(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, of another type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def expected(kind: Any) -> str:
    """Say in a message what a type takes."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list, each item {expected(get_args(kind)[0])}"
    if len(alternatives_of(kind)) > 1:
        return " or ".join(expected(one) for one in alternatives_of(kind) if one is not NoneType)
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))


def metavar(kind: Any) -> str:
    """Say behind an option in the help what its type takes."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        one = metavar(get_args(kind)[0])
        return f"{one} [{one} ...]"
    if len(alternatives_of(kind)) > 1:
        return "|".join(metavar(one) for one in alternatives_of(kind) if one is not NoneType)
    return {bool: "[true|false]", int: "INT", float: "FLOAT", str: "TEXT"}.get(kind, "VALUE")


def words_of(value: object) -> list[str]:
    """Return the words that stand for a value on a command line."""
    if isinstance(value, tuple):
        return [str(item) for item in cast(tuple[object, ...], value)]
    return [str(value).lower() if value is None or isinstance(value, bool) else str(value)]


def shown(value: object) -> str:
    """Show a value in a message, not at any length."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
