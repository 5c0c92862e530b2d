"""Run the calls of one turn: side by side, each within its tool's limit, results in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from forkgym.envs.grammar import Call, ParseError
from forkgym.tools.base import Tool, ToolError, ToolFailure, ToolSession, ToolStop
from forkgym.tools.limits import ToolTimeout, call_within_limit

MAX_RESULT_CHARACTERS = 100_000  # of all results of a turn together, before their tags are escaped


@dataclass(frozen=True, slots=True)
class CallDone:
    """What came of one call.

    Attributes:
        output: What the model is shown.
        ran: Whether the tool was called; it is not where its arguments do not fit.
        error: What was wrong with the arguments.
        stopped: Whether the tool ended the episode.
        failure: What the infrastructure failed with, empty where it did not.
    """

    output: str
    ran: bool = True
    error: ParseError | None = None
    stopped: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class CallsDone:
    """What came of a turn's calls together: see `CallDone`; ``tools`` are those that ran, in order."""

    outputs: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    error: ParseError | None = None
    stopped: bool = False
    failure: str = ""


def run_calls(
    calls: Sequence[Call],
    tools: Mapping[str, Tool],
    sessions: Mapping[str, ToolSession],
    renew: Callable[[str], None],
) -> CallsDone:
    """Run the calls of a turn.

    Calls of different tools run side by side, and so do those of one tool whose sessions hold no state; calls of one
    session with state run in order, and so do those of inline tools, in this thread where they are all there is.

    Args:
        calls: One or more.
        tools: By name.
        sessions: By the name of their tool; read anew for each call.
        renew: Replaces the session of a tool whose call was given up.
    """
    if len(calls) == 1:  # as in most turns, and a good part of a step's time otherwise
        one = run_call(calls[0], tools, sessions, renew)
        output = shortened(one.output, MAX_RESULT_CHARACTERS)
        return CallsDone((output,), (calls[0].tool,) if one.ran else (), one.error, one.stopped, one.failure)

    def run_lane(places: Sequence[int]) -> list[CallDone]:
        return [run_call(calls[place], tools, sessions, renew) for place in places]

    lanes: dict[object, list[int]] = {}
    for place, call in enumerate(calls):
        tool = tools[call.tool]
        key = "inline" if tool.inline else place if sessions[call.tool].stateless else tool.name
        lanes.setdefault(key, []).append(place)
    if len(lanes) == 1:
        done = run_lane(range(len(calls)))
    else:
        done = [CallDone("")] * len(calls)
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="calls") as executor:
            for places, results in zip(lanes.values(), executor.map(run_lane, lanes.values()), strict=True):
                for place, result in zip(places, results, strict=True):
                    done[place] = result
    size = MAX_RESULT_CHARACTERS // len(done)
    return CallsDone(
        outputs=tuple(shortened(one.output, size) for one in done),
        tools=tuple(call.tool for call, one in zip(calls, done, strict=True) if one.ran),
        error=next((one.error for one in done if one.error is not None), None),
        stopped=any(one.stopped for one in done),
        failure=next((one.failure for one in done if one.failure), ""),
    )


def run_call(
    call: Call, tools: Mapping[str, Tool], sessions: Mapping[str, ToolSession], renew: Callable[[str], None]
) -> CallDone:
    """Run one call; only what is a bug in a tool raises."""
    tool = tools[call.tool]
    try:
        arguments = tool.arguments_from_text(call.text) if call.arguments is None else tool.validate(call.arguments)
    except ToolError as mistake:
        return CallDone(f"Error: {mistake}", ran=False, error=ParseError.BAD_ARGUMENTS)
    try:
        try:
            return CallDone(call_within_limit(tool, sessions[call.tool], arguments))
        except ToolTimeout as timeout:
            renew(call.tool)  # which may fail as a call may
            return CallDone(f"Error: {timeout}; its session starts afresh.")
    except ToolError as mistake:
        return CallDone(f"Error: {mistake}")
    except ToolStop as stop:
        return CallDone(str(stop), stopped=True)
    except ToolFailure as failure:
        return CallDone(f"Error: {call.tool} does not work at the moment.", failure=f"{call.tool}: {failure}")


def shortened(output: str, size: int) -> str:
    """Cut a tool's output to ``size`` characters, and say so."""
    if len(output) <= size:
        return output
    return f"{output[:size]}\n[cut: {len(output)} characters, {size} shown]"
