"""Settings of environments, and making them. Imports nothing heavy until an environment is made."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium as gym

DEFAULT_ENVS = ("forkgym/WordMath-v0", "forkgym/MultiHop-v0")
SHARED_BY_ALL = ("split", "grammar", "max_turns", "tools")


@dataclass(frozen=True)
class EnvConfig:
    """Which environments, and where their tasks come from."""

    id: tuple[str, ...] = DEFAULT_ENVS
    """Registered environments; a step's tasks are shared out evenly over them."""
    path: str | None = None
    """File of tasks, or name of a data set on the hub, for environments that read one; their own by default."""
    corpus: str | None = None
    """File of passages, for environments that search one; the tasks' own passages by default."""
    split: str = "train"
    """Split of the tasks; held-out (evaluation only) is each environment's own test or validation split."""
    grammar: str = "arpo"
    """Marker tokens of calls, results and answers: arpo or search_r1."""
    tools: tuple[str, ...] | None = None
    """Tools by name, module:attribute or file.py:Name; each environment's own by default."""
    difficulty: int | None = None
    """Difficulty of generated tasks, 1 to 3; 1 by default."""
    max_turns: int | None = None
    """Policy turns of an episode, at most; each environment's own limit by default."""

    def __post_init__(self) -> None:
        """Check that there is an environment."""
        if not self.id:
            raise ValueError("env.id is empty, expected at least one environment")


def make_envs(config: EnvConfig) -> dict[str, gym.Env[str, str]]:
    """Make each environment of a config.

    Options that not every environment has (``path``, ``corpus``, ``difficulty``) go to those that take them.

    Returns:
        Environments by id.

    Raises:
        ValueError: An id is unknown, an option is taken by none of them or refused, or a data file can't be read; the
            message names the value and what was expected.
    """
    import gymnasium as gym

    options = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name != "id" and getattr(config, field.name) is not None
    }
    taken: set[str] = set()
    made: dict[str, gym.Env[str, str]] = {}
    for env_id in config.id:
        accepted = options_of(env_id)
        own = {name: value for name, value in options.items() if name in (*SHARED_BY_ALL, *accepted)}
        taken |= set(own)
        made[env_id] = gym.make(env_id, disable_env_checker=True, **own)
    for name in options:
        if name not in taken:
            raise ValueError(f"env.{name} is {options[name]!r}, but {', '.join(config.id)} takes no such option")
    return made


def options_of(env_id: str) -> tuple[str, ...]:
    """Return the names of the arguments that an environment adds to `ToolEnv`'s."""
    return tuple(inspect.signature(creator(env_id)).parameters)


def creator(env_id: str) -> Any:
    """Return the class or function that makes an environment.

    Raises:
        ValueError: No environment is registered under ``env_id``.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    importlib.import_module("forkgym.envs")  # registers the ids
    try:
        entry_point = gym.spec(env_id).entry_point
    except gym.error.Error as error:
        known = ", ".join(sorted(name for name in gym.registry if name.startswith("forkgym/")))
        raise ValueError(f"env.id {env_id!r}: no such environment; expected one of {known}") from error
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def make_held_out_envs(config: EnvConfig, split: str | None, path: str | None) -> dict[str, gym.Env[str, str]]:
    """Make each environment of a config on tasks that are not trained on.

    Args:
        config: The training environments.
        split: Of the held-out tasks; by default each environment's ``held_out_split``.
        path: File of the held-out tasks; by default the config's own.
    """
    made: dict[str, gym.Env[str, str]] = {}
    for env_id in config.id:
        accepted = options_of(env_id)
        one = replace(
            config,
            id=(env_id,),
            split=split if split is not None else str(getattr(creator(env_id), "held_out_split", "test")),
            path=(path if path is not None else config.path) if "path" in accepted else None,
            corpus=config.corpus if "corpus" in accepted else None,
            difficulty=config.difficulty if "difficulty" in accepted else None,
        )
        made |= make_envs(one)
    return made
