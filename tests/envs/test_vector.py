"""`ToolVectorEnv`: equal to single environments, in order, and no episode waits for another's tool."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.spaces import Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformObservation
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hypothesis import given
from hypothesis import strategies as st

import forkgym.envs.vector
from forkgym.envs.base import ToolEnv
from forkgym.envs.math_env import MathEnv
from forkgym.envs.space import TextSpace
from forkgym.envs.tasks import Task
from forkgym.envs.vector import make_vector, vector_entry_point
from forkgym.envs.vector_env import TextEnv, ToolVectorEnv
from forkgym.tools.base import Tool, ToolFailure, as_tool
from tests.envs.conftest import MakeEnv

IDS = ("forkgym/GSM8K-v0", "forkgym/WordMath-v0", "forkgym/MultiHop-v0")
PATIENCE_S = 60.0  # how long a test waits for what must happen before it fails


class Sums:
    size = 5

    def __getitem__(self, index: int) -> Task:
        return Task(question=f"What is {index} + {index}?", answer=str(2 * index), uid=f"sums/{index}")


class Gate:
    """A tool that answers once it is let through; it notes who waits."""

    def __init__(self) -> None:
        self.open = {name: threading.Event() for name in "abcd"}
        self.waiting = {name: threading.Event() for name in "abcd"}

    def tool(self, timeout_s: float = PATIENCE_S) -> Tool:
        def gate(name: str) -> str:
            """Wait at a gate."""
            self.waiting[name].set()
            if not self.open[name].wait(PATIENCE_S):
                raise TimeoutError(f"nobody opened gate {name}")
            return f"through {name}"

        return as_tool(gate, timeout_s=timeout_s)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    for event in gate.open.values():
        event.set()  # no thread is left behind


def echo(text: str) -> str:
    """Say it again, or fail."""
    if text == "bug":
        raise ZeroDivisionError("a bug in a tool")
    if text == "down":
        raise ToolFailure("the server is down")
    return text


def make_sums(*tools: Tool, inline: bool = False, **arguments: Any) -> Callable[[], ToolEnv]:
    given = [*tools, as_tool(echo, inline=inline)]
    return lambda: MathEnv(taskset=Sums(), tools=given, **arguments)


def play_singles(singles: list[gym.Env[str, str]], actions: list[str]) -> list[Any]:
    return [single.step(action) for single, action in zip(singles, actions, strict=True)]


def infos_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].tolist() == other[key].tolist() for key in one
    )


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_returns_it_by_default(env_id: str, make_env: MakeEnv) -> None:
    single = make_env(env_id)
    path = {"path": cast(Any, single.unwrapped.spec).kwargs["path"]} if env_id == IDS[0] else {}
    envs = gym.make_vec(env_id, num_envs=3, max_turns=4, **path)
    assert isinstance(envs, ToolVectorEnv)
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert envs.single_observation_space == single.observation_space
    assert envs.single_action_space == TextSpace()
    assert isinstance(envs.observation_space, Tuple) and isinstance(envs.action_space, Tuple)
    assert envs.action_space.sample() in envs.action_space
    assert envs.get_attr("max_turns") == (4, 4, 4)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    again = gym.make_vec(cast(Any, envs.spec))  # the spec makes the same once more
    assert isinstance(again, ToolVectorEnv) and again.num_envs == 3
    assert again.reset(seed=0)[0] == observations
    envs.close()
    again.close()


@pytest.mark.parametrize("env_id", IDS)
def test_equal_to_single_environments_and_to_gymnasiums_own(env_id: str, make_env: MakeEnv) -> None:
    makers: list[Callable[[], gym.Env[str, str]]] = [lambda: make_env(env_id).unwrapped] * 3
    envs, reference = ToolVectorEnv(makers), SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    singles = [maker() for maker in makers]
    for seed in (0, 5):
        observations, infos = envs.reset(seed=seed)
        starts = [single.reset(seed=seed + place) for place, single in enumerate(singles)]
        expected_observations, expected_infos = reference.reset(seed=seed)
        assert observations == expected_observations == tuple(start[0] for start in starts)
        assert infos_equal(infos, expected_infos)
        bare = [cast(ToolEnv, single) for single in singles]
        solving = bare[0].render_step(bare[0].current_task.solution[0])
        wrong = bare[1].render_step(bare[1].current_task.solution[-1]) + " and so on"
        for actions in ([solving, "garbage", wrong], [solving, wrong, wrong]):
            if any(envs.finished):
                mask = envs.finished
                assert infos_equal(
                    envs.reset(options={"reset_mask": mask})[1], reference.reset(options={"reset_mask": mask})[1]
                )
                for place in np.flatnonzero(mask):
                    singles[place].reset()
            observations, rewards, terminations, truncations, infos = envs.step(actions)
            outcomes = play_singles(singles, actions)
            expected = reference.step(cast(Any, actions))
            assert observations == expected[0] == tuple(outcome[0] for outcome in outcomes)
            assert rewards.dtype == np.float64
            assert rewards.tolist() == expected[1].tolist() == [outcome[1] for outcome in outcomes]
            assert terminations.tolist() == expected[2].tolist() == [outcome[2] for outcome in outcomes]
            assert truncations.tolist() == expected[3].tolist() == [outcome[3] for outcome in outcomes]
            assert infos_equal(infos, expected[4])
    envs.close()
    reference.close()


def test_infos_have_masks() -> None:
    envs = ToolVectorEnv([make_sums()] * 3)
    envs.reset(options={"index": [1, 2, 3]})
    _, rewards, terminations, _, infos = envs.step(["<answer>2</answer>", "nothing", "<answer>7</answer>"])
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert terminations.tolist() == [True, False, True]
    assert infos["reward/correct"].tolist() == [1.0, 0.0, 0.0]
    assert infos["_reward/correct"].tolist() == [True, False, True]
    assert infos["stop_reason"].tolist() == ["answered", None, "answered"]
    assert infos["_stop_reason"].tolist() == [True, True, True]
    envs.close()


def test_reset_of_some_keeps_the_others() -> None:
    envs = ToolVectorEnv([make_sums(inline=True)] * 3)
    envs.reset(seed=[4, 5, 6], options={"index": [0, 1, None]})
    envs.step(["<echo>x</echo>", "<answer>2</answer>", "<echo>z</echo>"])
    assert envs.finished.tolist() == [False, True, False]
    options = {"reset_mask": np.array([False, True, False]), "index": [0, 4, 0]}
    observations, infos = envs.reset(options=options)
    assert observations[::2] == ("<result>x</result>", "<result>z</result>")
    assert observations[1].endswith("What is 4 + 4?\n")
    assert infos["_question"].tolist() == [False, True, False]
    assert infos["task_index"].tolist() == [0.0, 4.0, 0.0]
    assert set(options) == {"reset_mask", "index"}  # the caller's options are left alone
    assert envs.finished.tolist() == [False, False, False]
    _, _, _, _, infos = envs.step(["<echo>x</echo>"] * 3)
    assert infos["turns"].tolist() == [2.0, 1.0, 2.0]
    envs.close()


def test_one_index_is_everyones_and_others_are_drawn() -> None:
    envs = ToolVectorEnv([make_sums()] * 3)
    assert envs.reset(options={"index": 3})[1]["task_index"].tolist() == [3.0, 3.0, 3.0]
    drawn = envs.reset(seed=7, options={"index": np.array([2, 1, 0])})[1]["task_index"]
    assert drawn.tolist() == [2.0, 1.0, 0.0]
    drawn = envs.reset(seed=[7, None, 9], options={"index": [None, 1, None]})[1]["task_index"]
    singles = [make_sums()() for _ in range(2)]
    assert drawn.tolist() == [
        singles[0].reset(seed=7)[1]["task_index"],
        1.0,
        singles[1].reset(seed=9)[1]["task_index"],
    ]
    envs.close()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": [1]}, ValueError, "got 1 seeds for 2"),
        ({"options": {"index": [1]}}, ValueError, "1 entries, expected 2"),
        ({"options": {"reset_mask": [True, False]}}, TypeError, "expected a NumPy array of bool"),
        ({"options": {"reset_mask": np.array([1, 0])}}, TypeError, "expected a NumPy array of bool"),
        ({"options": {"reset_mask": np.array([True])}}, ValueError, "expected 2 values"),
        ({"options": {"reset_mask": np.array([False, False])}}, ValueError, "one of them True"),
        ({"options": {"index": [0, 99]}}, IndexError, "there are 5 tasks"),
        ({"options": {"colour": 1}}, ValueError, "reset option 'colour'"),
    ],
)
def test_wrong_arguments_of_reset(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    envs = ToolVectorEnv([make_sums()] * 2)
    with pytest.raises(error, match=message):
        envs.reset(**arguments)
    envs.reset(seed=0)
    envs.step(["<echo>x</echo>"] * 2)
    envs.close()


def test_wrong_arguments_of_send_step_nothing() -> None:
    envs = ToolVectorEnv([make_sums()] * 3)
    with pytest.raises(ResetNeeded, match=r"environments \[0, 1, 2\]"):
        envs.step(["x"] * 3)
    envs.reset(options={"index": 1})
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        ("abc", None, TypeError, "sequence of strings"),
        (["a", 1, "c"], None, TypeError, "sequence of strings"),
        (["a", "b"], None, ValueError, "2 actions for 3"),
        (["a", "b"], [1, 1], ValueError, "different numbers from 0 to 2"),
        (["a"], [3], ValueError, "different numbers from 0 to 2"),
        (["a"], [-1], ValueError, "different numbers from 0 to 2"),
        (["a"], [0.0], TypeError, "float"),
    ]
    for actions, env_ids, error, message in wrong:
        with pytest.raises(error, match=message):
            envs.send(actions, env_ids)
    with pytest.raises(ValueError, match="2 seeds and 1 options for 1"):
        envs.send_reset([0], seeds=[1, 2])
    with pytest.raises(ValueError, match="min_ready is -1"):
        envs.recv(min_ready=-1)
    with pytest.raises(NoAsyncCallError, match="nothing is under way"):
        envs.recv()
    envs.step(["<answer>2</answer>", "<echo>x</echo>", "<echo>x</echo>"])
    with pytest.raises(ResetNeeded, match=r"environments \[0\]"):
        envs.step(["<echo>x</echo>"] * 3)
    envs.send(["<echo>x</echo>"] * 2, [1, 2])
    done = envs.recv(min_ready=2)
    assert [info["turns"] for info in done.infos] == [2.0, 2.0]  # none of the refused turns was taken
    assert len(envs.recv(min_ready=0).env_ids) == 0
    envs.close()


def test_a_slow_tool_holds_nobody_back(gate: Gate) -> None:
    envs = ToolVectorEnv([make_sums(gate.tool(), max_turns=9)] * 3)
    envs.reset(seed=0)
    envs.send(["<gate>a</gate>", "<echo>one</echo>", "<echo>two</echo>"])
    others: list[int] = []
    while len(others) < 4:  # two more turns of the others, while the first is at the gate
        done = envs.recv()
        others += done.env_ids.tolist()
        envs.send(["<echo>again</echo>"] * len(done.env_ids), done.env_ids)
    assert 0 not in others
    assert gate.waiting["a"].wait(PATIENCE_S)
    envs.recv(min_ready=2)
    assert len(envs.recv(timeout=0.01).env_ids) == 0  # the first is under way, and not there yet
    with pytest.raises(AlreadyPendingCallError, match=r"environments \[0\]"):
        envs.send(["<echo>x</echo>"], [0])
    with pytest.raises(AlreadyPendingCallError, match=r"environments \[0\] are at work"):
        envs.reset()
    with pytest.raises(AlreadyPendingCallError, match=r"environments \[0\] are at work"):
        envs.fork(0)
    envs.reset(options={"reset_mask": np.array([False, True, True])})
    gate.open["a"].set()
    done = envs.recv()
    assert (done.env_ids.tolist(), done.observations) == ([0], ("<result>through a</result>",))
    assert done.infos[0]["turns"] == 1.0
    envs.close()


def test_tools_run_side_by_side_and_results_are_in_order_of_ids(gate: Gate) -> None:
    envs = ToolVectorEnv([make_sums(gate.tool())] * 4)
    envs.reset(seed=0)
    envs.send([f"<gate>{name}</gate>" for name in "dcba"], [3, 2, 1, 0])
    assert all(event.wait(PATIENCE_S) for event in gate.waiting.values())  # all four are at work at once
    for name in "cda":
        gate.open[name].set()
    done = envs.recv(min_ready=3)
    assert done.env_ids.tolist() == [0, 2, 3]
    assert done.observations == tuple(f"<result>through {name}</result>" for name in "acd")
    gate.open["b"].set()
    assert envs.recv(min_ready=99).env_ids.tolist() == [1]
    envs.close()


def test_each_call_keeps_its_own_limit(gate: Gate) -> None:
    envs = ToolVectorEnv([make_sums(gate.tool(timeout_s=0.05)), make_sums(gate.tool())])
    envs.reset(seed=0)
    envs.send(["<gate>a</gate>", "<gate>b</gate>"])
    done = envs.recv()
    assert done.env_ids.tolist() == [0]  # a dead tool ends with its limit; the other's is far away
    assert "took longer than 0.05 s" in done.observations[0]
    gate.open["b"].set()
    assert envs.recv().observations == ("<result>through b</result>",)
    envs.close()


def test_inline_environments_stay_in_the_callers_thread() -> None:
    threads: list[int] = []

    def where(text: str) -> str:
        """Note the thread."""
        threads.append(threading.get_ident())
        return text

    for inline in (True, False):
        envs = ToolVectorEnv([make_sums(as_tool(where, inline=inline), inline=inline)] * 2)
        envs.reset(seed=0)
        envs.send(["<where>x</where>"] * 2)
        envs.recv(min_ready=2)
        envs.close()
    here = threading.get_ident()
    assert threads[:2] == [here, here]
    assert here not in threads[2:] and len(threads) == 4


def test_a_bug_names_its_environment_and_leaves_the_others() -> None:
    for inline in (True, False):
        envs = ToolVectorEnv([make_sums(inline=inline)] * 4)
        envs.reset(seed=0)
        with pytest.raises(ZeroDivisionError, match="a bug in a tool") as caught:
            envs.step(["<echo>one</echo>", "<echo>bug</echo>", "<echo>bug</echo>", "<echo>four</echo>"])
        assert caught.value.__notes__ == ["raised by environment 1 of ToolVectorEnv(num_envs=4)"]
        with pytest.raises(AlreadyPendingCallError, match=r"environments \[0, 2, 3\]"):
            envs.step(["<echo>x</echo>"] * 4)
        with pytest.raises(ZeroDivisionError) as caught:
            envs.recv()
        assert caught.value.__notes__ == ["raised by environment 2 of ToolVectorEnv(num_envs=4)"]
        done = envs.recv()
        assert done.env_ids.tolist() == [0, 3]
        assert done.observations == ("<result>one</result>", "<result>four</result>")
        assert envs.finished.tolist() == [False, True, True, False]
        envs.reset(options={"reset_mask": envs.finished})
        assert envs.step(["<echo>x</echo>"] * 4)[0] == ("<result>x</result>",) * 4
        envs.close()


def test_a_failure_of_the_infrastructure_ends_its_own_episode() -> None:
    envs = ToolVectorEnv([make_sums()] * 2)
    envs.reset(seed=0)
    _, rewards, terminations, truncations, infos = envs.step(["<echo>down</echo>", "<echo>up</echo>"])
    assert infos["stop_reason"].tolist() == ["tool_failure", None]
    assert (rewards.tolist(), terminations.tolist(), truncations.tolist()) == ([0.0, 0.0], [False] * 2, [True, False])
    envs.close()


def test_a_reset_drops_a_result_that_nobody_took() -> None:
    envs = ToolVectorEnv([make_sums(inline=True)] * 2)
    envs.reset(options={"index": 0})
    envs.send(["<answer>0</answer>"] * 2)
    envs.send_reset([1], options=[{"index": 2}])
    done = envs.recv(min_ready=2)
    assert done.terminations.tolist() == [True, False]
    assert done.observations[1].endswith("What is 2 + 2?\n")
    assert done.rewards.tolist() == [1.0, 0.0]
    envs.close()


def test_seeds_of_send_reset() -> None:
    envs = ToolVectorEnv([make_sums()] * 3)
    envs.send_reset([2, 0], seeds=[11, 12])
    done = envs.recv(min_ready=2)
    assert done.env_ids.tolist() == [0, 2]
    assert done.observations == (make_sums()().reset(seed=12)[0], make_sums()().reset(seed=11)[0])
    assert envs.finished.tolist() == [False, True, False]
    envs.close()


ACTIONS = ("<echo>x</echo>", "garbage", "<answer>4</answer>", "<echo>y</echo>")


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ACTIONS), st.integers(1, 3)), max_size=12))
def test_any_order_of_sending_gives_what_single_environments_give(turns: list[tuple[int, str, int]]) -> None:
    makers = [make_sums(inline=inline, max_turns=3) for inline in (True, False, False)]
    envs, singles = ToolVectorEnv(makers), [maker() for maker in makers]
    sent: dict[int, Any] = {}

    def receive(min_ready: int) -> None:
        done = envs.recv(min_ready)
        assert len(done.env_ids) >= min(min_ready, len(sent))
        for env_id, observation, reward, terminated, truncated, info in zip(*done, strict=True):
            assert (observation, reward, terminated, truncated, info) == sent.pop(env_id)

    for number, (place, action, min_ready) in enumerate(turns):
        if place in sent:
            receive(min_ready)
        if place in sent:  # the others were ready before it
            receive(3)
        if envs.finished[place]:
            envs.send_reset([place], seeds=[number])
            observation, info = singles[place].reset(seed=number)
            sent[place] = (observation, 0.0, False, False, info)
        else:
            envs.send([action], [place])
            sent[place] = singles[place].step(action)
    if sent:
        receive(3)
    assert not sent
    envs.close()


def test_fork() -> None:
    envs = ToolVectorEnv([lambda: TimeLimit(make_sums(inline=True)(), 5)] * 3)
    envs.reset(options={"index": [1, 2, 3]})
    envs.step(["<echo>x</echo>"] * 3)
    twin = envs.fork(0)
    assert twin.step("<answer>2</answer>")[1] == 1.0
    assert not envs.finished[0]  # the copy is independent
    before = envs.envs[2]
    assert envs.fork(0, into=2) is envs.envs[2] is not before
    with pytest.raises(ResetNeeded):
        before.step("x")  # it was closed
    observations, rewards, _, _, infos = envs.step(["<answer>2</answer>"] * 3)
    assert observations == ("", "", "")
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert infos["turns"].tolist() == [2.0, 2.0, 2.0]
    envs.fork(0, into=1)
    assert envs.finished.tolist() == [True, True, True]
    with pytest.raises(ValueError, match="different numbers"):
        envs.fork(1, into=1)
    envs.reset(seed=0)
    envs.send(["<echo>x</echo>"], [0])
    with pytest.raises(AlreadyPendingCallError, match="last result"):
        envs.fork(0)
    envs.fork(1, into=0)  # the result of the one that makes room is dropped
    with pytest.raises(NoAsyncCallError):
        envs.recv()
    envs.close()


class Closing(MathEnv):
    """Notes when it is closed."""

    def __init__(self, tool: Tool, closed: list[int], fails: bool = False) -> None:
        super().__init__(taskset=Sums(), tools=[tool])
        self.closed = closed
        self.fails = fails
        self.closing = threading.Event()

    def close(self) -> None:
        super().close()
        self.closed.append(id(self))
        self.closing.set()
        if self.fails:
            raise OSError("cannot close")


def test_close_waits_for_nobody_and_closes_all(gate: Gate) -> None:
    closed: list[int] = []
    envs = ToolVectorEnv([lambda: Closing(gate.tool(), closed)] * 3)
    envs.reset(seed=0)
    envs.send(["<gate>a</gate>"], [1])
    assert gate.waiting["a"].wait(PATIENCE_S)
    envs.close()
    envs.close()
    assert sorted(closed) == sorted(id(envs.envs[place]) for place in (0, 2))
    for call in (lambda: envs.send(["x"], [0]), lambda: envs.send_reset([0]), lambda: envs.reset()):
        with pytest.raises(ClosedEnvironmentError):
            call()
    gate.open["a"].set()
    late = envs.envs[1]
    assert isinstance(late, Closing)
    assert late.closing.wait(PATIENCE_S)  # it closed itself, once its call had ended
    assert len(closed) == 3


def test_close_closes_all_also_where_one_cannot() -> None:
    closed: list[int] = []
    envs = ToolVectorEnv([partial(Closing, as_tool(echo), closed, place == 1) for place in range(3)])
    with pytest.raises(OSError, match="cannot close"):
        envs.close()
    assert len(closed) == 3


def test_what_goes_wrong_in_a_late_close_is_logged(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    envs = ToolVectorEnv([partial(Closing, gate.tool(), [], fails=True)])
    envs.reset(seed=0)
    envs.send(["<gate>a</gate>"])
    assert gate.waiting["a"].wait(PATIENCE_S)
    envs.close()
    gate.open["a"].set()
    for thread in env_threads():
        thread.join(PATIENCE_S)
    assert "cannot close" in caplog.text


def env_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("forkgym-env")]


def test_no_thread_is_left() -> None:
    before = set(env_threads())
    envs = ToolVectorEnv([make_sums()] * 4)
    envs.reset(seed=0)
    envs.step(["<echo>x</echo>"] * 4)
    threads = set(env_threads()) - before
    assert 1 <= len(threads) <= 4
    envs.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)


def test_gymnasiums_vector_wrappers() -> None:
    envs = DictInfoToList(RecordEpisodeStatistics(ToolVectorEnv([make_sums(inline=True)] * 2)))
    envs.reset(options={"index": [1, 2]})
    envs.step(("<echo>x</echo>", "<answer>4</answer>"))
    mask = np.array([False, True])
    _, infos = envs.reset(options={"index": [1, 2], "reset_mask": mask})
    assert [info.get("task_index") for info in infos] == [None, 2.0]
    _, _, _, _, infos = envs.step(("<answer>2</answer>", "<answer>4</answer>"))
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in infos] == [(1.0, 2), (1.0, 1)]
    envs.close()


def test_attributes_and_rendering() -> None:
    envs = ToolVectorEnv([make_sums(render_mode="ansi")] * 2)
    envs.reset(options={"index": [1, 2]})
    assert envs.render_mode == "ansi"
    assert envs.render() == ("What is 1 + 1?", "What is 2 + 2?")
    envs.set_attr("max_turns", [1, 2])
    assert envs.get_attr("max_turns") == (1, 2)
    envs.set_attr("max_malformed", 7)
    assert envs.get_attr("max_malformed") == (7, 7)
    assert [state["task_index"] for state in envs.call("snapshot")] == [1, 2]
    with pytest.raises(ValueError, match="3 values for 2"):
        envs.set_attr("max_turns", [1, 2, 3])
    envs.close()


def test_environments_of_one_kind() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ToolVectorEnv([])
    other = TransformObservation(make_sums()(), lambda text: text[:9], TextSpace(9))
    with pytest.raises(ValueError, match="environment 1 has other spaces"):
        ToolVectorEnv([make_sums(), lambda: cast(Any, other)])


def test_an_id_of_another_package_gets_it_too() -> None:
    def in_capitals(env: TextEnv) -> TextEnv:
        return TransformObservation(env, str.upper, env.observation_space)

    place = "forkgym.envs.wordmath:WordMathEnv"
    gym.register(
        "elsewhere/Words-v0", entry_point=place, vector_entry_point=vector_entry_point(place), max_episode_steps=2
    )
    try:
        envs = gym.make_vec(
            "elsewhere/Words-v0",
            num_envs=2,
            difficulty=2,
            env_wrappers=[in_capitals],
        )
        assert isinstance(envs, ToolVectorEnv)
        observations, _ = envs.reset(seed=0)
        assert observations[0] == observations[0].upper()
        assert envs.get_attr("taskset")[0].difficulty == 2
        envs.step(["<calculator>1</calculator>"] * 2)
        assert envs.step(["<calculator>1</calculator>"] * 2)[3].tolist() == [True, True]
        envs.close()
        assert gym.spec("elsewhere/Words-v0").to_json()
        sync = gym.make_vec("elsewhere/Words-v0", num_envs=2, vectorization_mode="sync")
        assert isinstance(sync, SyncVectorEnv)
        sync.close()
    finally:
        del gym.registry["elsewhere/Words-v0"]


def test_entry_points() -> None:
    assert vector_entry_point("a.b:C") == "forkgym.envs.vector:a.b.C"
    for wrong in ("a.b", "a.b:", ":C", "a:b:C", "a:b.c"):
        with pytest.raises(ValueError, match="expected 'module:Class'"):
            vector_entry_point(wrong)
    assert not hasattr(forkgym.envs.vector, "nothing")
    with pytest.raises(ValueError, match="at least one"):
        make_vector(make_sums(), num_envs=0)
