"""Whether a conversation is one, and the environment would take what the assistant does in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from forkgym.trainers.sft.messages import HERMES, Conversation, DescribedTool, Message, required_by

# Keywords with which a JSON schema allows names that its properties do not list.
OPENING_KEYWORDS = frozenset({"patternProperties", "$ref", "allOf", "anyOf", "oneOf"})


class AnyName(tuple[str, ...]):
    """The names of tools that nobody has listed: every name is among them."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        """Whether a tool of this name may be called."""
        return True


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A call that has no result yet.

    Attributes:
        place: Among the calls of its message, from 0.
        id: None where the conversation gives it none.
        tool: The tool's name.
    """

    place: int
    id: str | None
    tool: str


def check(conversation: Conversation) -> tuple[Message, ...]:
    """Check a conversation: [system] user, then assistant by turns with tools or the user, and no malformed message.

    Every message of the assistant is read as the environment reads a turn; where the conversation has tools, its calls
    are of those, with the arguments that they list.

    Returns:
        Its messages; the results of several calls in the order of the calls.

    Raises:
        ValueError: It is not so; names the first message with which something is wrong, from 0.
    """
    waiting: Sequence[WaitingCall] = ()
    before, asked = "nothing", 0
    order: list[tuple[int, int]] = []  # by message: whose turn it is or follows, and which of its calls it answers
    for place, message in enumerate(conversation.messages):
        problem, answered = misplaced(message, before, waiting), -1
        if not problem and message.role == "assistant":
            asked = place
            waiting, problem = read(message, conversation.tools)
        elif not problem and message.role == "tool":
            answered, problem = answered_by(message, waiting)
            waiting = [call for call in waiting if call.place != answered]
        if problem:
            raise ValueError(f"messages.{place} {problem}")
        order.append((asked if message.role == "tool" else place, answered))
        before = message.role
    if before != "assistant":
        raise ValueError(f"the conversation ends with {before}, expected an assistant's message")
    return tuple(conversation.messages[place] for place in sorted(range(len(order)), key=order.__getitem__))


def misplaced(message: Message, before: str, waiting: Sequence[WaitingCall]) -> str:
    """What is wrong with a message after one of the role ``before``; empty where nothing is."""
    role = message.role
    if role != "assistant" and message.tool_calls:
        return f"is of the role {role} and has tool_calls, expected them in an assistant's message"
    if message.function_call:
        return "has a function_call, expected it among tool_calls"
    if not (message.content or message.tool_calls or (role == "tool" and message.content == "")):
        return f"is of the role {role} and has no content"
    if role == "tool":
        return "" if waiting else "is a tool's result, but no call before it waits for one"
    if waiting:
        return f"is of the role {role}, while a call before it waits for its result"
    allowed = {"nothing": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
    expected = allowed.get(before, ("assistant",))
    return "" if role in expected else f"is of the role {role} after {before}, expected {' or '.join(expected)}"


def answered_by(result: Message, waiting: Sequence[WaitingCall]) -> tuple[int, str]:
    """The place of the call that a result is of, or what is wrong with it; the latter is empty where nothing is.

    The id decides, then the tool's name, where the result has them, and then the order of the calls.
    """
    known = result.tool_call_id
    same = [call for call in waiting if known is not None and call.id == known]
    possible = same or [call for call in waiting if None in (call.id, known)]
    if not possible:
        ids = ", ".join(repr(call.id) for call in waiting)
        return -1, f"has the tool_call_id {known!r}, expected one of {ids}"
    named = [call for call in possible if result.name in (None, "", call.tool)]
    if not named:
        tools = " or ".join(dict.fromkeys(repr(call.tool) for call in possible))
        return -1, f"has the name {result.name!r}, expected {tools}"
    # A result without an id is rather that of a call without one.
    return min(named, key=lambda call: known is None and call.id is not None).place, ""


def read(message: Message, tools: Sequence[DescribedTool]) -> tuple[Sequence[WaitingCall], str]:
    """The calls of an assistant's message, or what is wrong with it; the latter is empty where nothing is."""
    if len(message.thoughts) > 1:
        return (), "has several thoughts, expected one of reasoning_content, reasoning and thinking"
    if message.weight == 0:
        return (), "has the weight 0, expected 1 or none: every message of the assistant is learnt"
    described = {tool.function.name: tool.function.parameters for tool in tools}
    parsed = HERMES.parse(message.text, tuple(described) if described else AnyName())
    if parsed.error is not None:
        return (), f"is malformed: {parsed.correction}"
    for call in parsed.calls if described else ():
        misfit = misfit_of(call.arguments or {}, described[call.tool])
        if misfit:
            return (), f"calls {call.tool} {misfit}"
    # The calls in the content come first, and have no ids.
    ids = [None] * (len(parsed.calls) - len(message.tool_calls)) + [call.id for call in message.tool_calls]
    numbered = enumerate(zip(parsed.calls, ids, strict=True))
    return [WaitingCall(place, name, call.tool) for place, (call, name) in numbered], ""


def misfit_of(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Where the names of arguments do not fit a JSON schema; empty where they do.

    A name that the properties do not list is allowed only where the schema says so: a tool of this package would
    refuse it, and the model is told of no other. A schema without properties allows any.
    """
    properties, given = parameters.get("properties"), list(arguments)
    missing = [name for name in required_by(parameters) if name not in given]
    if missing:
        return f"without the argument {missing[0]!r}, which its parameters require"
    is_open = parameters.get("additionalProperties", False) is not False or OPENING_KEYWORDS & parameters.keys()
    if is_open or not isinstance(properties, Mapping):
        return ""
    listed = [str(name) for name in cast("Mapping[str, Any]", properties)]
    unknown = [name for name in given if name not in listed]
    return f"with the argument {unknown[0]!r}, expected {' or '.join(map(repr, listed)) or 'none'}" if unknown else ""
