"""Arguments that a JSON schema describes, as the pydantic model that a `Tool` wants.

The schema comes from outside, so checking against it costs a bounded time whatever the policy writes: references
outside the schema are not followed, and its regular expressions are left for the server to check, because a pattern
that backtracks would let one argument stop the process.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, RootModel, create_model, model_validator
from pydantic_core import PydanticCustomError

from forkgym.tools.web.plain_text import printable

MAX_SCHEMA_CHARACTERS = 20_000
MAX_PROBLEM_CHARACTERS = 160
MAX_PLACE_CHARACTERS = 60  # of where a problem is, which may be a name that the model made up


class ObjectArguments(RootModel[dict[str, Any]]):
    """Arguments as one JSON object; `Tool.validate` returns it as ``{"root": object}``."""

    described_by: ClassVar[Mapping[str, Any]]

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:  # noqa: ARG003
        """The schema that the model was made of; it has no other form."""
        return copy.deepcopy(dict(cls.described_by))


class TextArguments(BaseModel):
    """One text argument, which a tag grammar writes as it is."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    described_by: ClassVar[Mapping[str, Any]]

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:  # noqa: ARG003
        """The schema that the model was made of; it has no other form."""
        return copy.deepcopy(dict(cls.described_by))


def arguments_model(name: str, schema: Mapping[str, Any]) -> type[ObjectArguments | TextArguments]:
    """Make the model whose schema is ``schema`` and which accepts what fits it.

    Args:
        name: The model's name.
        schema: A JSON schema of an object; one without ``properties`` is read as one that names none.

    Returns:
        A `TextArguments` where the object has one property and that is a text, else an `ObjectArguments`.

    Raises:
        ValueError: It is no JSON schema of an object, is longer than ``MAX_SCHEMA_CHARACTERS`` as JSON, or refers to
            itself without end.
    """
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"the schema of its arguments has {size} characters, at most {MAX_SCHEMA_CHARACTERS} are read")
    described_by = {**schema, "properties": schema.get("properties", {})}
    problem_with = checker(described_by)

    def fits(value: Any) -> Any:
        problem = problem_with(value)
        if problem is not None:
            raise PydanticCustomError("schema", "{problem}", {"problem": problem})
        return value

    text = text_property(described_by)
    fields: dict[str, Any] = {} if text is None else {text: (str, ...)}
    base: Any = ObjectArguments if text is None else TextArguments
    validators: dict[str, Any] = {"fits": model_validator(mode="before")(fits)}
    model: Any = create_model(name, __base__=base, __validators__=validators, **fields)
    model.described_by = described_by
    made: type[ObjectArguments | TextArguments] = model
    return made


def text_property(schema: Mapping[str, Any]) -> str | None:
    """The name of an object's one property, where that is any text and the name can be an attribute of a model."""
    properties: Mapping[str, Any] = schema["properties"]
    if len(properties) != 1:
        return None
    ((name, described),) = properties.items()
    if not isinstance(described, Mapping):
        return None
    described = cast("Mapping[str, Any]", described)
    free = described.get("type") == "string" and not {"enum", "const"} & {*described}
    usable = name.isidentifier() and not name.startswith("_") and not hasattr(BaseModel, name)
    return name if free and usable else None


def checker(schema: Mapping[str, Any]) -> Callable[[Any], str | None]:
    """Make the function that says in words how a value fails to fit, or None where it fits.

    Raises:
        ValueError: See ``arguments_model``.
    """
    from jsonschema import exceptions
    from referencing.exceptions import Unresolvable

    validator = validator_of(schema)
    too_deep = "it is nested too deeply"

    def problem_with(value: Any) -> str | None:
        try:
            found = cast(Any, exceptions.best_match(validator.iter_errors(value)))
        except Unresolvable:  # the server can follow what this schema refers to, or nobody can
            return None
        except RecursionError:
            return too_deep
        if found is None:
            return None if is_json(value) else "it is no JSON value"
        place = ".".join(str(part) for part in found.absolute_path)
        if not place:
            return problem_of(found)
        return f"{abridged(printable(place), MAX_PLACE_CHARACTERS)}: {problem_of(found)}"

    if problem_with({}) == too_deep:
        raise ValueError("the schema of its arguments refers to itself without end")
    return problem_with


def validator_of(schema: Mapping[str, Any]) -> Any:
    """Make the library's validator for a schema, less its regular expressions.

    Raises:
        ValueError: It is no schema of an object.
    """
    from jsonschema import Draft202012Validator, SchemaError, validators
    from referencing import Registry

    draft: Any = validators.validator_for(schema, default=Draft202012Validator)
    try:
        draft.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"the schema of its arguments is wrong: {problem_of(error)}") from error
    if schema.get("type") != "object" or not isinstance(schema["properties"], Mapping):
        raise ValueError("the schema of its arguments describes no object")
    additional: Any = draft.VALIDATORS["additionalProperties"]

    def unchecked(*_: Any) -> Iterator[Any]:
        return iter(())

    def unless_by_pattern(validator: Any, value: Any, instance: Any, part: Mapping[str, Any]) -> Iterator[Any]:
        return iter(()) if "patternProperties" in part else additional(validator, value, instance, part)

    lenient = cast(Any, validators).extend(
        draft,
        {
            "pattern": unchecked,
            "patternProperties": unchecked,
            "unevaluatedProperties": unchecked,  # it matches the patterns, too
            "additionalProperties": unless_by_pattern,
        },
    )
    # An explicit empty registry: a reference is looked up in the schema, never fetched.
    empty: Registry[Any] = Registry()
    return lenient(schema, registry=empty)


def problem_of(error: Any) -> str:
    """What a validation error says; it repeats the value, which may be long."""
    return abridged(printable(str(error.message)), MAX_PROBLEM_CHARACTERS)


def is_json(value: Any) -> bool:
    """Whether a value can be sent: no NaN, and no half of a surrogate pair in any text."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def abridged(text: str, max_chars: int) -> str:
    """Leave out the middle of a long text.

    >>> abridged("0123456789", 6)
    '012...789'
    """
    half = max_chars // 2
    return text if len(text) <= max_chars else f"{text[:half]}...{text[-half:]}"
