"""Fork an environment through its wrappers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
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
    twin = copy.copy(wrapper)
    twin.env = fork(wrapper.env)
    # The memo makes whatever a wrapper holds of the environment point at the fork, and nothing be copied twice.
    memo = {id(one): other for one, other in zip(layers(wrapper), layers(twin), strict=True)}
    attributes: dict[str, Any] = wrapper.__dict__
    for name, value in attributes.items():
        if name != "env" and not isinstance(value, IMMUTABLE):
            setattr(twin, name, copy.deepcopy(value, memo))
    return cast(EnvT, twin)


def layers(env: Any) -> Iterator[Any]:
    """The wrappers of an environment, outermost first, then the bare environment."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = cast(Any, env).env
    yield env
