"""One suite's environments at the work that ``env_step.py`` compares: run by that script, in the suite's own Python.

``python suites.py NAME`` imports the suite of that name and prints its version as JSON. Then it measures everything
once for each line that it reads, and prints the medians, microseconds of this process's CPU time, as JSON. It imports
nothing but the suite and the standard library.

The work is one question, "3 bags with 5 apples each", with a function in memory that multiplies, called through
whatever the suite's tools are, and an answer that is right. Turns are taken in episodes of ``EPISODE_TURNS``. No two
calls and no two answers are the same text, so that no cache answers.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import cycle, islice
from typing import Any

REPEATS = 200
EPISODE_TURNS = 8
NUM_ENVS = 32

QUESTION = "There are 3 bags with 5 apples each. How many apples are there?"
THOUGHT = "<think>There are 3 bags with 5 apples each, so I multiply first.</think>"
THOUGHTS = [f"{THOUGHT} Step {number}." for number in range(REPEATS)]
EXPRESSIONS = [f"{number}*5" for number in range(REPEATS)]
CALLS = [f"{THOUGHT}<calculator>{expression}</calculator>" for expression in EXPRESSIONS]
SEARCHES = [f"{THOUGHT}<search>{expression}</search>" for expression in EXPRESSIONS]
ANSWERS = [f"With {number} more there would be {15 + number}, so: \\boxed{{15}}" for number in range(REPEATS)]
BOXED = [f"{THOUGHT}<answer>{answer}</answer>" for answer in ANSWERS]
HASHES = [f"{THOUGHT}{number} more are not there.\n#### 15" for number in range(REPEATS)]
NOTHING = [""] * REPEATS

# The rows of the comparison; a suite leaves out what it has no counterpart of.
RESET, NO_CALL, CALLED, ANSWERED, COPIED, VECTOR = "reset", "no call", "call", "answer", "copy", "vector"

Measures = dict[str, Callable[[], float]]


def median_us(
    action: Callable[[str], object], texts: Sequence[str], before: Callable[[], object], every: int = 1
) -> float:
    """The median CPU time of an action on a text; ``before`` runs untimed before each ``every``-th, the first too."""
    times_ns: list[int] = []
    for number, text in enumerate(texts):
        if number % every == 0:
            before()
        start = time.process_time_ns()
        action(text)
        times_ns.append(time.process_time_ns() - start)
    return statistics.median(times_ns) / 1_000


async def async_median_us(
    action: Callable[[str], Awaitable[None]], texts: Sequence[str], before: Callable[[], Awaitable[None]], every: int
) -> float:
    """The same within one run of an event loop, whose start is nothing that a rollout pays each turn."""
    times_ns: list[int] = []
    for number, text in enumerate(texts):
        if number % every == 0:
            await before()
        start = time.process_time_ns()
        await action(text)
        times_ns.append(time.process_time_ns() - start)
    return statistics.median(times_ns) / 1_000


def nothing() -> None:
    """Prepare nothing."""


def product(expression: str) -> str:
    """Multiply two numbers.

    Args:
        expression: Such as ``3*5``.
    """
    left, right = expression.split("*")
    return str(int(left) * int(right))


# This package.


class FixedTasks(list[Any]):
    """Tasks of this package from a list."""

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self)


def forkgym_arguments() -> dict[str, Any]:
    """The arguments of its `MathEnv` for the common work."""
    tasks, tools = import_module("forkgym.envs.tasks"), import_module("forkgym.tools.base")
    return {
        "taskset": FixedTasks([tasks.Task(QUESTION, answer="15", uid="one")] * 4),
        "tools": [tools.as_tool(product, name="calculator", inline=True)],
        "max_turns": 2 * EPISODE_TURNS,  # so that no turn is an episode's last but where that is measured
        "max_malformed": 2 * EPISODE_TURNS,
    }


def forkgym_measures(wrapped: bool) -> Measures:
    """Its `MathEnv` with the function as an inline tool, bare or as ``gymnasium.make`` returns it."""
    gym, envs, math_env, vector = (
        import_module(name) for name in ("gymnasium", "forkgym.envs", "forkgym.envs.math_env", "forkgym.envs.vector")
    )
    arguments = forkgym_arguments()
    gym.register("suites/Product-v0", entry_point=math_env.MathEnv)
    env = gym.make("suites/Product-v0", **arguments) if wrapped else math_env.MathEnv(**arguments)
    many = vector.make_vector(math_env.MathEnv, num_envs=NUM_ENVS, **arguments)

    def begin() -> None:
        env.reset(seed=0)

    def go_on() -> None:
        begin()
        for call in CALLS[: EPISODE_TURNS // 2]:
            env.step(call)

    return {
        RESET: lambda: median_us(lambda _: env.reset(seed=0), NOTHING, nothing),
        NO_CALL: lambda: median_us(env.step, THOUGHTS, begin, EPISODE_TURNS),
        CALLED: lambda: median_us(env.step, CALLS, begin, EPISODE_TURNS),
        ANSWERED: lambda: median_us(env.step, BOXED, begin),
        COPIED: lambda: median_us(lambda _: envs.fork(env), NOTHING, go_on, REPEATS),
        VECTOR: lambda: (
            median_us(lambda call: many.step([call] * NUM_ENVS), CALLS, many.reset, EPISODE_TURNS) / NUM_ENVS
        ),
    }


def forkgym_tools_measures() -> Measures:
    """Its real tools, alone and within a step, and its grading of an answer to GSM8K."""
    grading, multihop, wordmath, calculator = (
        import_module(name)
        for name in (
            "forkgym.envs.math_env",
            "forkgym.envs.multihop",
            "forkgym.envs.wordmath",
            "forkgym.tools.calculator",
        )
    )
    limits = {"max_turns": 2 * EPISODE_TURNS}
    math, search = wordmath.WordMathEnv(**limits), multihop.MultiHopEnv(**limits)
    names: Iterator[str] = islice(cycle(multihop.volume_index("train", 1, 0)[0].maker), REPEATS)
    queries = [f"who made {name} number {number}" for number, name in enumerate(names)]
    searches = [f"{THOUGHT}<search>{query}</search>" for query in queries]
    calculation = calculator.CALCULATOR.new_session()
    found = multihop.volume_tool("train", 1, 0, 2).new_session()
    grader, task = grading.MathEnv(**forkgym_arguments()), forkgym_arguments()["taskset"][0]
    (argument,) = calculator.CALCULATOR.arguments_model.model_fields
    (query_argument,) = search.tools["search"].arguments_model.model_fields

    def first_task() -> None:
        search.reset(options={"index": 0})

    return {
        "calculator alone": lambda: median_us(lambda text: calculation.call({argument: text}), EXPRESSIONS, nothing),
        "step with the calculator": lambda: median_us(math.step, CALLS, math.reset, EPISODE_TURNS),
        "search alone": lambda: median_us(lambda text: found.call({query_argument: text}), queries, nothing),
        "step with the search": lambda: median_us(search.step, searches, first_task, EPISODE_TURNS),
        "grading": lambda: median_us(lambda answer: grader.score(answer, task), ANSWERS, nothing),
    }


# GEM.


class GemProduct:
    """The function as a tool of GEM, written as its own search tool is."""

    tool_type = "calculator"
    name = "calculator"

    def instruction_string(self) -> str:
        """What the policy is told."""
        return "Write <calculator> a product </calculator> to have it calculated."

    def execute_action(self, action: str) -> tuple[bool, bool, str, str]:
        """Whether there was a call, whether it failed, what it returned, and the text up to its end."""
        match = re.search(r"<calculator>(.*?)</calculator>", action, re.DOTALL)
        if match is None:
            return False, True, "", ""
        return True, False, f"\n<result>{product(match[1].strip())}</result>\n", action[: match.end()]


def gem_measures() -> Measures:
    """GEM: its `MathEnv` under its `ToolEnvWrapper`, its grader in this process; copies are ``deepcopy``'s."""
    datasets, math_env, wrapper, vector = (
        import_module(name)
        for name in ("datasets", "gem.envs.math_env", "gem.tools.tool_env_wrapper", "gem.vector.sync_vector_env")
    )
    logging.disable(logging.INFO)
    rows = datasets.Dataset.from_list([{"problem": QUESTION, "answer": "15"}] * 4)

    def make() -> Any:
        single = math_env.MathEnv(dataset=rows, use_mp=False)
        return wrapper.ToolEnvWrapper(single, tools=[GemProduct()], max_tool_uses=None)

    env = make()
    many = vector.SyncVectorEnv(["product"] * NUM_ENVS, [make] * NUM_ENVS)

    def begin() -> None:
        env.reset(seed=0)

    def go_on() -> None:
        begin()
        for call in CALLS[: EPISODE_TURNS // 2]:
            env.step(call)

    return {
        RESET: lambda: median_us(lambda _: env.reset(seed=0), NOTHING, nothing),
        CALLED: lambda: median_us(env.step, CALLS, begin, EPISODE_TURNS),
        ANSWERED: lambda: median_us(env.step, BOXED, begin),
        COPIED: lambda: median_us(lambda _: copy.deepcopy(env), NOTHING, go_on, REPEATS),
        VECTOR: lambda: (
            median_us(lambda call: many.step([call] * NUM_ENVS), CALLS, many.reset, EPISODE_TURNS) / NUM_ENVS
        ),
    }


# SkyRL-gym.


def skyrl_gym_measures() -> Measures:
    """SkyRL-gym: its search environment with the function for a search, and its two GSM8K environments."""
    skyrl, core, search = (
        import_module(name) for name in ("skyrl_gym", "skyrl_gym.tools.core", "skyrl_gym.envs.search.env")
    )
    group = type("Products", (core.ToolGroup,), {"search": core.tool(searched_product)})
    prompt = [{"role": "user", "content": QUESTION}]
    current: dict[str, Any] = {}

    def begin_math(env_id: str) -> None:  # there is no reset: an episode is a new object
        extras = {"reward_spec": {"ground_truth": "15"}, "max_turns": 2 * EPISODE_TURNS}
        current["env"] = skyrl.make(env_id, env_config={}, extras=extras)
        current["env"].init(prompt)

    def begin_search() -> None:
        extras = {"reward_spec": {"ground_truth": {"target": "15"}}, "max_turns": 2 * EPISODE_TURNS}
        current["env"] = skyrl.make("search", env_config=search.SearchEnvConfig(), extras=extras)
        current["env"].init_tool_groups([group("SearchToolGroup")])
        current["env"].init(prompt)

    def go_on() -> None:
        begin_search()
        for call in SEARCHES[: EPISODE_TURNS // 2]:
            current["env"].step(call)

    def step(text: str) -> None:
        current["env"].step(text)

    return {
        RESET: lambda: median_us(begin_math, ["gsm8k"] * REPEATS, nothing),
        NO_CALL: lambda: median_us(step, THOUGHTS, lambda: begin_math("gsm8k_multi_turn"), EPISODE_TURNS),
        CALLED: lambda: median_us(step, SEARCHES, begin_search, EPISODE_TURNS),
        ANSWERED: lambda: median_us(step, HASHES, lambda: begin_math("gsm8k")),
        COPIED: lambda: median_us(lambda _: copy.deepcopy(current["env"]), NOTHING, go_on, REPEATS),
    }


def searched_product(group: object, query: str) -> str:
    """The function as SkyRL's search tool; the group that it belongs to comes first."""
    del group
    return product(query)


searched_product.__name__ = "search"  # the suite finds its tools by that


# verifiers.


def verifiers_measures() -> Measures:
    """verifiers, before 0.3: what its `ToolEnv` does between two completions, which come with their calls parsed.

    A turn is ``add_model_response``, ``is_completed`` and ``get_prompt_messages``; an answer is scored by a `Rubric` of
    one function that compares what is boxed with the reference. An episode's state cannot be copied, by ``deepcopy``
    either. Later versions have no environment in the process.
    """
    vf, openai, datasets, data_utils = (
        import_module(name) for name in ("verifiers", "openai", "datasets", "verifiers.utils.data_utils")
    )

    def correct(completion: Any, answer: str) -> float:
        return float(data_utils.extract_boxed_answer(completion[-1].content) == answer)

    env = vf.ToolEnv(
        dataset=datasets.Dataset.from_list([{"question": QUESTION, "answer": "15"}]),
        tools=[product],
        max_turns=2 * EPISODE_TURNS,
        rubric=vf.Rubric(funcs=[correct]),
    )
    client = vf.OpenAIChatCompletionsClient(openai.AsyncOpenAI(api_key="none"))  # only to hold: nothing is requested
    task = {**env.get_dataset()[0], "example_id": 0}
    current: dict[str, Any] = {}

    async def begin() -> None:
        current["state"] = await env.setup_state(await env.init_state(task, client, "none"))
        current["prompt"] = await env.get_prompt_messages(current["state"])

    async def turn(expression: str) -> None:
        await env.add_model_response(current["state"], current["prompt"], replies[expression])
        assert not await env.is_completed(current["state"])
        current["prompt"] = await env.get_prompt_messages(current["state"])

    async def end(answer: str) -> None:
        await env.add_model_response(current["state"], current["prompt"], replies[answer])
        assert await env.is_completed(current["state"])
        await env.render_completion(current["state"])
        await env.rubric.score_rollout(current["state"])

    async def new(_: str) -> None:
        await begin()

    async def idle() -> None:
        """Prepare nothing."""

    replies = {text: verifiers_reply(text, called=False) for text in BOXED}
    replies |= {expression: verifiers_reply(expression, called=True) for expression in EXPRESSIONS}
    return {
        RESET: lambda: asyncio.run(async_median_us(new, NOTHING, idle, 1)),
        CALLED: lambda: asyncio.run(async_median_us(turn, EXPRESSIONS, begin, EPISODE_TURNS)),
        ANSWERED: lambda: asyncio.run(async_median_us(end, BOXED, begin, 1)),
    }


def verifiers_reply(text: str, called: bool) -> Any:
    """A completion: an answer, or a thought and a call with an expression."""
    types = import_module("verifiers.types")
    calls = [types.ToolCall(id="0", name="product", arguments=json.dumps({"expression": text}))] if called else None
    content = THOUGHT if called else text
    message = types.ResponseMessage(content=content, tool_calls=calls, finish_reason="stop", is_truncated=False)
    return types.Response(id="0", created=0, model="none", message=message)


# Suite: the distribution whose version is named, and what to measure.
SUITES: dict[str, tuple[str, Callable[[], Measures]]] = {
    "forkgym": ("forkgym", lambda: forkgym_measures(wrapped=False)),
    "forkgym-made": ("forkgym", lambda: forkgym_measures(wrapped=True)),
    "forkgym-tools": ("forkgym", forkgym_tools_measures),
    "gem": ("gem-llm", gem_measures),
    "skyrl-gym": ("skyrl-gym", skyrl_gym_measures),
    "verifiers": ("verifiers", verifiers_measures),
}


def main() -> None:
    """Measure once for each line of standard input."""
    distribution, build = SUITES[sys.argv[1]]
    results, sys.stdout = sys.stdout, sys.stderr  # suites print
    measures = build()
    results.write(json.dumps({"version": version(distribution), "python": sys.version.split()[0]}) + "\n")
    results.flush()
    for _ in sys.stdin:
        results.write(json.dumps({name: measure() for name, measure in measures.items()}) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
