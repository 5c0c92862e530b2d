"""`ToolVectorEnv`: many text environments at once, in step with each other or each at its own pace.

``gymnasium.make_vec`` returns it for every id of this package. ``step`` waits for all; ``send`` and ``recv`` take some
at a time, so that nobody waits for a slow tool but the episode that called it::

    envs = gym.make_vec("forkgym/GSM8K-v0", num_envs=64)
    observations, infos = envs.reset(seed=0)
    envs.send([policy(text) for text in observations])          # all tools are at work, side by side
    while episodes_are_wanted:
        done = envs.recv(min_ready=8)                           # the first eight, and whoever else is ready
        ended = done.terminations | done.truncations
        envs.send_reset(done.env_ids[ended])
        envs.send([policy(text) for text, over in zip(done.observations, ended) if not over], done.env_ids[~ended])
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, SupportsFloat, TypeAlias, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from forkgym.envs.base import ToolEnv
from forkgym.envs.forking import fork
from forkgym.envs.side_by_side import SideBySide

TextEnv: TypeAlias = "gym.Env[str, str]"
EnvIds: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
StepResult: TypeAlias = tuple[str, SupportsFloat, bool, bool, dict[str, Any]]
Flags: TypeAlias = npt.NDArray[np.bool_]


class Received(NamedTuple):
    """What ``recv`` returns, one row for each environment that was ready.

    Attributes:
        env_ids: The environments, in ascending order, whoever was faster; (R,).
        observations: The text that is new to each agent; R of them.
        rewards: float64, (R,); 0.0 after a reset.
        terminations: (R,).
        truncations: (R,).
        infos: Each environment's own ``info``, R of them.
    """

    env_ids: npt.NDArray[np.int64]
    observations: tuple[str, ...]
    rewards: npt.NDArray[np.float64]
    terminations: Flags
    truncations: Flags
    infos: tuple[dict[str, Any], ...]


class ToolVectorEnv(gym.vector.VectorEnv[tuple[str, ...], Sequence[str], npt.NDArray[Any]]):
    """Independent text environments, stepped side by side.

    An environment that is ``inline`` (as a `ToolEnv` is whose tools all are) is stepped in the caller's thread, within
    ``send``. Any other has a thread of its own while it is at work, for its tools wait on a process or a socket; each
    call keeps its tool's time limit. What an environment returns does not depend on who was faster: each has its own
    random state and its own sessions.

    There is no autoreset (`AutoresetMode.DISABLED`): an environment whose episode is over, or whose step raised, has to
    be reset before it is stepped again. ``finished`` says which ones. To reset only some of them give
    ``options={"reset_mask": mask}``, as to Gymnasium's `SyncVectorEnv`, or call ``send_reset``.

    An exception that an environment raises is a bug in it, or in a tool: ``step``, ``reset`` or ``recv`` raises it with
    a note that names the environment. The other environments are not touched by it, and ``recv`` still hands out what
    they returned.

    Not for several threads at once: one caller drives it.

    Args:
        env_fns: Makes the environments, one function each; they have equal spaces.

    Attributes:
        envs: The environments. To reset or step one of them directly goes unnoticed here.

    Raises:
        ValueError: There is no function, or the spaces differ.
    """

    def __init__(self, env_fns: Iterable[Callable[[], TextEnv]]) -> None:
        self.envs: list[TextEnv] = [env_fn() for env_fn in env_fns]
        if not self.envs:
            raise ValueError("a vector environment needs at least one environment, got none")
        first = self.envs[0]
        for env_id, env in enumerate(self.envs):
            if (env.observation_space, env.action_space) != (first.observation_space, first.action_space):
                close_all(self.envs)
                raise ValueError(f"environment {env_id} has other spaces than environment 0")
        self.num_envs = len(self.envs)
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode = first.render_mode
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, self.num_envs)
        self.action_space = batch_space(first.action_space, self.num_envs)
        self._observations = [""] * self.num_envs
        self._finished: Flags = np.ones(self.num_envs, dtype=np.bool_)
        self._steps: SideBySide[StepResult] = SideBySide(self.num_envs)

    # In step with each other: Gymnasium's contract.

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Start new episodes, and wait for all of them. Results of these environments that wait for ``recv`` are lost.

        Args:
            seed: Environment i gets ``seed + i``, or its own from a list of ``num_envs``; None seeds nothing anew.
            options: ``reset_mask``, a bool array of ``num_envs``, says which environments to reset; all without it.
                ``index`` is the task of each, or a list of ``num_envs`` with an index, or None to draw one. Everything
                else goes to each environment.

        Returns:
            All observations, the last ones of environments that are not reset included, and the infos of those that
            are, batched by Gymnasium's convention: ``infos["_KEY"]`` masks the environments that have ``KEY``.

        Raises:
            ValueError: A list or mask has another length than ``num_envs``, or a mask is all False.
            TypeError: The mask is no bool array.
            AlreadyPendingCallError: One of the environments is at work.
        """
        options = dict(options or {})
        env_ids = list(range(self.num_envs))
        if "reset_mask" in options:
            env_ids = np.flatnonzero(checked_mask(options.pop("reset_mask"), self.num_envs)).tolist()
        seeds: Sequence[int | None] = (
            [None if seed is None else seed + env_id for env_id in range(self.num_envs)]
            if seed is None or isinstance(seed, int)
            else seed
        )
        if len(seeds) != self.num_envs:
            raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} environments")
        each_options = options_of_each(options, self.num_envs)
        self.send_reset(env_ids, [seeds[i] for i in env_ids], [each_options[i] for i in env_ids])
        self._steps.wait_for(env_ids)
        received = self._take(env_ids)
        return tuple(self._observations), self._batched(received)

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], npt.NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Take one turn in every environment, and wait for all of them.

        Args:
            actions: What each policy wrote; ``num_envs`` strings.

        Returns:
            Observations, rewards (float64), terminations, truncations, and infos as ``reset`` returns them.

        Raises:
            ResetNeeded: An episode is over; nothing was stepped. So for all that ``send`` raises.
        """
        self.send(actions)
        received = self._take(self._steps.wait(self.num_envs, timeout=None))
        return *received[1:5], self._batched(received)

    # Each at its own pace.

    @property
    def finished(self) -> Flags:
        """Which environments need a reset: never reset, episode over, or the last step raised; (num_envs,)."""
        return self._finished.copy()

    def send(self, actions: Sequence[str], env_ids: EnvIds | None = None) -> None:
        """Start a turn in some environments, and return without waiting for those that run in threads of their own.

        Args:
            actions: What each policy wrote.
            env_ids: The environments, in the order of ``actions``; all by default.

        Raises:
            ValueError: An environment is named twice or does not exist, or there is not one action for each.
            TypeError: ``actions`` is one string, or holds something that is none.
            ResetNeeded: An episode is over.
            AlreadyPendingCallError: An environment's last result was not received yet.
            ClosedEnvironmentError: After ``close``. In each case nothing was stepped.
        """
        chosen = self._checked_ids(env_ids)
        if isinstance(actions, str) or not all(isinstance(action, str) for action in cast(Sequence[object], actions)):
            raise TypeError("actions are a sequence of strings, one for each environment")
        if len(actions) != len(chosen):
            raise ValueError(f"got {len(actions)} actions for {len(chosen)} environments")
        if pending := self._steps.under_way(chosen):
            raise AlreadyPendingCallError(f"environments {pending}: call recv() for their last results first", "send")
        if over := [env_id for env_id in chosen if self._finished[env_id]]:
            raise ResetNeeded(f"environments {over}: no episode is under way, reset them before stepping them")
        self._start({i: partial(self.envs[i].step, action) for i, action in zip(chosen, actions, strict=True)})

    def send_reset(
        self,
        env_ids: EnvIds | None = None,
        seeds: Sequence[int | None] | None = None,
        options: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Start new episodes in some environments, as ``send`` starts turns; ``recv`` returns their first observations.

        A result that waits for ``recv`` is lost.

        Args:
            env_ids: The environments; all by default.
            seeds: A seed for each of them, or None.
            options: What each one's ``reset`` takes, such as ``{"index": 3}``, or None.

        Raises:
            ValueError: An environment is named twice or does not exist, or there is not one seed and option for each.
            AlreadyPendingCallError: An environment is at work.
            ClosedEnvironmentError: After ``close``.
        """
        chosen = self._checked_ids(env_ids)
        seeds = [None] * len(chosen) if seeds is None else seeds
        options = [None] * len(chosen) if options is None else options
        if not len(seeds) == len(options) == len(chosen):
            raise ValueError(f"got {len(seeds)} seeds and {len(options)} options for {len(chosen)} environments")
        self._check_not_at_work(chosen, "send_reset")
        jobs: dict[int, Callable[[], StepResult]] = {}
        for env_id, seed, given in zip(chosen, seeds, options, strict=True):
            jobs[env_id] = partial(reset_result, self.envs[env_id], seed, None if given is None else dict(given))
        self._start(jobs)

    def recv(self, min_ready: int = 1, timeout: float | None = None) -> Received:
        """Wait for some of the environments that are under way, and return every result that is there by then.

        Args:
            min_ready: How many to wait for, or for all under way where they are fewer; 0 does not wait.
            timeout: Seconds after which whatever is ready is returned, which may be nothing; None for no limit.

        Raises:
            NoAsyncCallError: ``min_ready`` is 1 or more, and nothing was sent.
            ValueError: ``min_ready`` is negative.
            Exception: What an environment raised; of several, that of the first by id. Other results wait for the
                next call.
        """
        if min_ready < 0:
            raise ValueError(f"min_ready is {min_ready}, expected 0 or more")
        if min_ready and not self._steps.under_way(range(self.num_envs)):
            raise NoAsyncCallError("nothing is under way: call send() before recv()", "recv")
        return self._take(self._steps.wait(min_ready, timeout))

    def fork(self, env_id: int, into: int | None = None) -> TextEnv:
        """Return an exact and independent copy of an environment, mid-episode, wrappers included.

        Args:
            env_id: The environment to copy.
            into: The environment whose place the copy takes; that one is closed. None leaves the copy to the caller.

        Raises:
            ValueError: An environment does not exist, or both are the same.
            AlreadyPendingCallError: One of them is at work, or the result of ``env_id`` was not received yet.
            TypeError: The innermost environment is no `ToolEnv`.
        """
        ids = self._checked_ids([env_id] if into is None else [env_id, into])
        self._check_not_at_work(ids, "fork")
        if self._steps.under_way([env_id]):
            raise AlreadyPendingCallError(f"environment {env_id}: call recv() for its last result first", "fork")
        twin = fork(self.envs[env_id])
        if into is not None:
            self._steps.drop([into])
            self.envs[into].close()
            self.envs[into] = twin
            self._observations[into] = self._observations[env_id]
            self._finished[into] = self._finished[env_id]
        return twin

    # What Gymnasium's own vector environments offer besides.

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute."""
        found = [env.get_wrapper_attr(name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Read an attribute of every environment."""
        return tuple(env.get_wrapper_attr(name) for env in self.envs)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment, to its own from a list or tuple of ``num_envs``, or all to one value.

        Raises:
            ValueError: The list has another length.
        """
        is_each = isinstance(values, list | tuple)
        each = cast(Sequence[Any], values) if is_each else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"got {len(each)} values for {self.num_envs} environments")
        for env, value in zip(self.envs, each, strict=True):
            env.set_wrapper_attr(name, value)

    def render(self) -> tuple[Any, ...]:
        """Render every environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment, without waiting: one that is at work closes itself when its step has ended."""
        del kwargs
        late = self._steps.close(when_late=lambda env_id: self.envs[env_id].close())
        close_all(env for env_id, env in enumerate(self.envs) if env_id not in late)

    # Details.

    def _checked_ids(self, env_ids: EnvIds | None) -> list[int]:
        if self._steps.closed:
            raise ClosedEnvironmentError("the vector environment was closed")
        chosen = list(range(self.num_envs)) if env_ids is None else [operator.index(env_id) for env_id in env_ids]
        if len(set(chosen)) < len(chosen) or not all(0 <= env_id < self.num_envs for env_id in chosen):
            raise ValueError(f"env_ids {chosen}: expected different numbers from 0 to {self.num_envs - 1}")
        return chosen

    def _check_not_at_work(self, env_ids: list[int], doing: str) -> None:
        if busy := self._steps.at_work(env_ids):
            raise AlreadyPendingCallError(f"environments {busy} are at work: call recv() first", doing)

    def _start(self, jobs: Mapping[int, Callable[[], StepResult]]) -> None:
        self._steps.start(jobs, inline={env_id for env_id in jobs if is_inline(self.envs[env_id])})

    def _take(self, env_ids: list[int]) -> Received:
        """Take these environments' results, or raise the first exception among them and leave the others there."""
        failed = self._steps.take_error(env_ids)
        if failed is not None:
            env_id, error = failed
            self._finished[env_id] = True
            error.add_note(f"raised by environment {env_id} of {self}")
            raise error
        results = self._steps.take(env_ids)
        for env_id, (observation, _, terminated, truncated, _) in zip(env_ids, results, strict=True):
            self._observations[env_id] = observation
            self._finished[env_id] = terminated or truncated
        return Received(
            env_ids=np.array(env_ids, dtype=np.int64),
            observations=tuple(result[0] for result in results),
            rewards=np.array([float(result[1]) for result in results], dtype=np.float64),
            terminations=np.array([result[2] for result in results], dtype=np.bool_),
            truncations=np.array([result[3] for result in results], dtype=np.bool_),
            infos=tuple(result[4] for result in results),
        )

    def _batched(self, received: Received) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for env_id, info in zip(received.env_ids.tolist(), received.infos, strict=True):
            infos = self._add_info(infos, info, env_id)
        return infos


def close_all(envs: Iterable[TextEnv]) -> None:
    """Close environments, all of them also where one raises."""
    with ExitStack() as stack:
        for env in envs:
            stack.callback(env.close)


def is_inline(env: TextEnv) -> bool:
    """Whether the caller's thread may step an environment: its tools are quick and wait for nothing."""
    bare = env.unwrapped
    return isinstance(bare, ToolEnv) and bare.inline


def reset_result(env: TextEnv, seed: int | None, options: dict[str, Any] | None) -> StepResult:
    """Reset an environment; what it returns has the form of a step."""
    observation, info = env.reset(seed=seed, options=options)
    return observation, 0.0, False, False, info


def checked_mask(mask: Any, num_envs: int) -> Flags:
    """Return a mask of the environments to reset, if it is one."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] is {mask!r}, expected a NumPy array of bool")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask'] is {mask!r}, expected {num_envs} values, one of them True at least")
    return cast(Flags, mask)


def options_of_each(options: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Give every environment its own index from a list of them, and all the other options."""
    index = options.get("index")
    if not isinstance(index, list | tuple | np.ndarray):
        return [dict(options)] * num_envs
    listed = cast(Sequence[int | None], index.tolist() if isinstance(index, np.ndarray) else index)
    indices = list(listed)
    if len(indices) != num_envs:
        raise ValueError(f"options['index'] has {len(indices)} entries, expected {num_envs}")
    others = {name: value for name, value in options.items() if name != "index"}
    return [others if one is None else {**others, "index": one} for one in indices]
