"""How ``gymnasium.make_vec`` finds `ToolVectorEnv`, for the ids of this package and of others.

``gymnasium.register(id, entry_point=place, vector_entry_point=vector_entry_point(place))`` is all that an id needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

from gymnasium.wrappers import TimeLimit

from forkgym.envs.vector_env import TextEnv, ToolVectorEnv

EnvWrapper: TypeAlias = Callable[[TextEnv], TextEnv]


def vector_entry_point(entry_point: str) -> str:
    """Return the ``vector_entry_point`` of an id, so that ``gymnasium.make_vec`` gives a `ToolVectorEnv` by default.

    ``gymnasium.register(id, entry_point=place, vector_entry_point=vector_entry_point(place))``, then
    ``gymnasium.make_vec(id, num_envs=8, **arguments)``. The arguments are each environment's own, and those of
    ``make_vector``: where Gymnasium refuses ``wrappers``, use ``env_wrappers``.

    Args:
        entry_point: ``module:Class`` or ``module:function``; it makes one environment.

    Raises:
        ValueError: ``entry_point`` has another form.
    """
    module, colon, attribute = entry_point.partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise ValueError(f"entry point {entry_point!r}: expected 'module:Class'")
    return f"{__name__}:{module}.{attribute}"


def __getattr__(name: str) -> Callable[..., ToolVectorEnv]:
    """Resolve what ``vector_entry_point`` returned; as a string it leaves the id's spec one that JSON can hold."""
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(make_vector, getattr(import_module(module), attribute))


def make_vector(
    make_env: Callable[..., TextEnv],
    *,
    num_envs: int = 1,
    env_wrappers: Sequence[EnvWrapper] = (),
    max_episode_steps: int | None = None,
    **arguments: Any,
) -> ToolVectorEnv:
    """Make a vector environment of equal environments.

    Args:
        make_env: Makes one of them.
        num_envs: How many, 1 or more.
        env_wrappers: Put around each, the first innermost.
        max_episode_steps: Truncate episodes after so many turns, by Gymnasium's `TimeLimit`; None for no such limit.
        **arguments: Passed to ``make_env``.

    Raises:
        ValueError: ``num_envs`` is not positive.
    """

    def make_one() -> TextEnv:
        env = make_env(**arguments)
        if max_episode_steps is not None:
            env = TimeLimit(env, max_episode_steps)
        for wrap in env_wrappers:
            env = wrap(env)
        return env

    return ToolVectorEnv([make_one] * num_envs)
