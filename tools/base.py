"""What a tool is: a name, a schema, a time limit, and a session for each episode."""

from __future__ import annotations

import copy
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError, create_model
from pydantic_core import from_json

CAMEL_CASE_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
DEFAULT_TIMEOUT_S = 10.0
MAX_PATH_CHARACTERS = 60  # of the place of a bad argument, which may be a name that the model made up


class ToolError(Exception):
    """The model's mistake: its message becomes the observation. Any other exception is a bug and propagates."""


class ToolStop(Exception):
    """Ends the episode: a tool such as "submit" raises it, and its message becomes the last observation."""


class ToolFailure(Exception):
    """The infrastructure's fault, such as a worker that cannot be started or a server that is down.

    A tool raises it after its own retries. The episode ends there with the stop reason ``tool_failure``; it is never
    scored as the model's, and a trainer masks it. The message is shown to whoever reads the log.
    """


class ToolSession(ABC):
    """The state of one tool in one episode.

    A session of a tool without state keeps the defaults. One with state overrides ``fork`` where a deep copy is not
    an exact one, and ``snapshot`` and ``restore`` with a JSON value that rebuilds it.

    Attributes:
        stateless: Whether calls leave nothing behind, so that several may run at the same time.
    """

    stateless: ClassVar[bool] = False

    @abstractmethod
    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run once; ``arguments`` fit the tool's schema. Raises ``ToolError`` for what the model got wrong."""

    def fork(self) -> ToolSession:
        """Return an exact and independent copy."""
        return copy.deepcopy(self)

    def snapshot(self) -> Any:
        """Return the state as a JSON value; None where there is none."""
        return None

    def restore(self, state: Any) -> None:
        """Take on a state that ``snapshot`` returned."""
        if state is not None:
            raise ValueError(f"{type(self).__name__} keeps no state, so it cannot take on {state!r}")

    def close(self) -> None:  # noqa: B027 -- most sessions hold nothing
        """Let go of what the session holds outside this process."""


@dataclass(frozen=True)
class Tool:
    """A tool as environments and grammars see it.

    Attributes:
        name: What the policy writes between the angle brackets of a call: letters, digits and underscores.
        description: Shown to the model.
        arguments_model: Validates a call's arguments and gives the JSON schema.
        new_session: Makes the session of one episode.
        timeout_s: Wall-clock limit of one call, seconds.
        inline: Quick and bounded in time by construction, so it runs in the caller's thread and needs no clock. Calls
            of other tools run beside the caller and are given up after ``timeout_s``.
        keeps_limit: The tool keeps ``timeout_s`` by itself (it waits on a process or a socket with a deadline), so
            that nobody has to watch it. It says what was too slow by a `ToolError`, or by a `ToolFailure`.
    """

    name: str
    description: str
    arguments_model: type[BaseModel]
    new_session: Callable[[], ToolSession]
    timeout_s: float = DEFAULT_TIMEOUT_S
    inline: bool = False
    keeps_limit: bool = False

    def __post_init__(self) -> None:
        """Check the name and the limit."""
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name, re.ASCII):
            raise ValueError(f"tool name {self.name!r}: expected letters, digits and underscores, no digit first")
        if not self.timeout_s > 0:
            raise ValueError(f"tool {self.name}: timeout_s is {self.timeout_s}, expected a positive number of seconds")

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        return self.arguments_model.model_json_schema()

    @cached_property
    def argument_names(self) -> tuple[str, ...]:
        """The names of the arguments, in the schema's order."""
        return tuple(self.arguments_model.model_fields)

    @cached_property
    def text_parameter(self) -> str | None:
        """The name of the one text argument, or None where a call must be JSON."""
        fields = self.arguments_model.model_fields
        if len(fields) != 1:
            return None
        ((name, field),) = fields.items()
        return name if field.annotation is str else None

    def arguments_from_text(self, text: str) -> dict[str, Any]:
        """Read what stands between the markers of a call: the one text argument, or a JSON object where there are more.

        Raises:
            ToolError: The text is not JSON, or does not fit the schema.
        """
        if self.text_parameter is not None:
            return self.validate({self.text_parameter: text})
        try:
            # Unlike json.loads, it refuses half a surrogate pair, which no tokenizer takes, and deep nesting.
            arguments = from_json(text, allow_inf_nan=False)
        except (TypeError, ValueError) as error:  # TypeError: half a surrogate pair in the text itself
            raise self.no_object() from error
        return self.validate(arguments)

    def validate(self, arguments: Any) -> dict[str, Any]:
        """Check arguments against the schema.

        Raises:
            ToolError: They do not fit it.
        """
        if not isinstance(arguments, Mapping):
            raise self.no_object()
        try:
            # The core of ``model_validate``, without its own overhead, which is as large again.
            model = self.arguments_model.__pydantic_validator__.validate_python(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])[:MAX_PATH_CHARACTERS] or "arguments"
            raise ToolError(f"{self.name}: {where}: {first['msg']}") from error
        return {name: getattr(model, name) for name in self.argument_names}

    def no_object(self) -> ToolError:
        """What to say to a call without an object of arguments."""
        names = ", ".join(self.parameters.get("properties", {}))
        return ToolError(f"{self.name} takes a JSON object with {names}" if names else f"{self.name} takes {{}}")


class FunctionSession(ToolSession):
    """A session of a tool that is a plain function: no state, so a fork is the session itself."""

    stateless: ClassVar[bool] = True

    def __init__(self, function: Callable[..., str]) -> None:
        self.function = function

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Call the function."""
        return self.function(**arguments)

    def fork(self) -> FunctionSession:
        """Return this session: there is nothing to copy."""
        return self


class ObjectSession(ToolSession):
    """A session of a tool that is a class: one object an episode, called for each call."""

    def __init__(self, instance: Any) -> None:
        self.instance = instance

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Call the object."""
        result: str = self.instance(**arguments)
        return result

    def fork(self) -> ObjectSession:
        """Copy the object by its own ``fork``, or deeply where it has none."""
        own = getattr(self.instance, "fork", None)
        return ObjectSession(own() if own is not None else copy.deepcopy(self.instance))

    def snapshot(self) -> Any:
        """The object's own ``snapshot``, or its attributes."""
        own = getattr(self.instance, "snapshot", None)
        return own() if own is not None else copy.deepcopy(self.instance.__dict__)

    def restore(self, state: Any) -> None:
        """The object's own ``restore``, or its attributes set."""
        own = getattr(self.instance, "restore", None)
        if own is not None:
            own(state)
        else:
            attributes: dict[str, Any] = self.instance.__dict__
            attributes.clear()  # one that was set after the snapshot has to go
            attributes.update(copy.deepcopy(state))

    def close(self) -> None:
        """The object's own ``close``, where it has one."""
        own = getattr(self.instance, "close", None)
        if own is not None:
            own()


def as_tool(
    source: Tool | Callable[..., Any],
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    inline: bool = False,
) -> Tool:
    """Make a tool of a typed function with a docstring, or of a class whose objects are called.

    A class is instantiated without arguments once an episode; its name in snake case is the tool's name, and
    ``fork``, ``snapshot``, ``restore`` and ``close`` are used where it has them. ``source`` that is a tool already is
    returned as it is.

    Args:
        source: The function, class or tool.
        name: What the policy calls it; the function's or class's own name by default.
        timeout_s: Wall-clock limit of one call, seconds.
        inline: See ``Tool``.

    Raises:
        TypeError: ``source`` is neither a function nor a class with ``__call__`` and no required arguments, an argument
            has no type or one without a JSON schema, or there is no docstring.
    """
    if isinstance(source, Tool):
        return source
    is_class = inspect.isclass(source)
    untyped: Any = source
    function = untyped.__call__ if is_class else untyped
    if not callable(function) or not (inspect.ismethod(function) or inspect.isfunction(inspect.unwrap(function))):
        raise TypeError(f"a tool is a typed function, or a class whose objects are called, got {source!r}")
    own_name: str = untyped.__name__
    if is_class:
        own_name = CAMEL_CASE_BOUNDARY.sub("_", own_name).lower()
        try:
            inspect.signature(source).bind()
        except TypeError as error:
            raise TypeError(f"tool {own_name} is instantiated without arguments: {error}") from error
    description = inspect.getdoc(source)
    if not description:
        raise TypeError(f"tool {own_name} has no docstring: the model is shown it")
    return Tool(
        name=own_name if name is None else name,
        description=description,
        arguments_model=arguments_model(own_name, function, skip_self=is_class),
        new_session=(lambda: ObjectSession(source())) if is_class else (lambda: FunctionSession(source)),
        timeout_s=timeout_s,
        inline=inline,
    )


def arguments_model(name: str, function: Callable[..., Any], *, skip_self: bool) -> type[BaseModel]:
    """Build the model that validates a call from a function's signature."""
    try:
        hints = get_type_hints(function, include_extras=True)  # the extras are limits and descriptions for the schema
    except NameError as error:
        raise TypeError(f"tool {name}: the type of an argument is unknown: {error}") from error
    fields: dict[str, Any] = {}
    parameters = list(inspect.signature(function).parameters.values())[1 if skip_self else 0 :]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: argument {parameter} has no name of its own; list the arguments one by one")
        if parameter.name not in hints:
            raise TypeError(f"tool {name}: argument {parameter.name!r} has no type")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    if not fields:
        raise TypeError(f"tool {name} takes no argument; a call always carries one")
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    try:
        model: type[BaseModel] = create_model(name, __config__=config, **fields)
        model.model_json_schema()
    except PydanticUserError as error:
        raise TypeError(f"tool {name}: an argument has no JSON schema: {error.message.splitlines()[0]}") from error
    if list(model.model_fields) != list(fields):
        # Names with a leading underscore, and ``model_config``, mean something else to pydantic, which drops them.
        dropped = ", ".join(name for name in fields if name not in model.model_fields)
        raise TypeError(f"tool {name}: rename the arguments {dropped}")
    return model
