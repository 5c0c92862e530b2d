"""Fork an environment through its wrappers."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import gymnasium as gym

from forkgym.envs.base import ToolEnv

EnvT = TypeVar("EnvT", bound="gym.Env[Any, Any]")
IMMUTABLE = (bool, int, float, str, type(None))


def fork(env: EnvT) -> EnvT:
    """Return an exact and independent copy of ``env``, its wrappers and their state included.

    Raises:
        TypeError: The innermost environment is not a `ToolEnv`.
    """
    if isinstance(env, ToolEnv):
        return cast(EnvT, env.fork())
    if not isinstance(env, gym.Wrapper):
        raise TypeError(f"only a ToolEnv can fork, got {type(env).__name__}")
    wrapper = cast(Any, env)
    inner = fork(wrapper.env)
    twin = copy.copy(wrapper)
    # The memo makes whatever a wrapper holds of the environment point at the fork, and nothing be copied twice.
    memo: dict[int, Any] = {id(wrapper.env): inner, id(wrapper.unwrapped): inner.unwrapped, id(wrapper): twin}
    attributes: dict[str, Any] = vars(wrapper)
    for name, value in attributes.items():
        if name == "env":
            twin.env = inner
        elif not isinstance(value, IMMUTABLE):
            setattr(twin, name, copy.deepcopy(value, memo))
    return cast(EnvT, twin)
