"""Settings of environments, and making them. Imports nothing heavy until an environment is made."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, fields, replace
from pathlib import Path
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
        if not self.id or len(set(self.id)) < len(self.id):
            raise ValueError(f"env.id is {' '.join(self.id)!r}, expected at least one environment, each once")


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

    from forkgym.envs.base import ToolEnv

    options = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name != "id" and getattr(config, field.name) is not None
    }
    taken: set[str] = set()
    made: dict[str, gym.Env[str, str]] = {}
    for env_id in config.id:
        accepted = options_of(env_id)
        shared = SHARED_BY_ALL if is_tool_env(env_id) else ()
        own = {name: value for name, value in options.items() if name in (*shared, *accepted)}
        taken |= set(own)
        made[env_id] = gym.make(env_id, disable_env_checker=True, **own)
        if not isinstance(made[env_id].unwrapped, ToolEnv):
            raise ValueError(f"env.id {env_id!r} is no environment of text with tools, expected a ToolEnv")
    for name in options:
        if name not in taken:
            raise ValueError(f"env.{name} is {options[name]!r}, but {', '.join(config.id)} takes no such option")
    return made


def is_tool_env(env_id: str) -> bool:
    """Whether an id names a class that takes the arguments of `ToolEnv`."""
    from forkgym.envs.base import ToolEnv

    made_by = creator(env_id)
    return inspect.isclass(made_by) and issubclass(made_by, ToolEnv)


def options_of(env_id: str) -> tuple[str, ...]:
    """Return the names of the arguments that an environment adds to `ToolEnv`'s."""
    return tuple(inspect.signature(creator(env_id)).parameters)


def creator(env_id: str) -> Any:
    """Return the class or function that makes an environment.

    Args:
        env_id: A registered id, or ``module:id`` where importing the module registers it.

    Raises:
        ValueError: No environment is registered under ``env_id``, or there is no such module.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    from forkgym.envs import load_plugins

    load_plugins()
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        entry_point = gym.spec(name).entry_point
    except ModuleNotFoundError as error:
        raise ValueError(f"env.id {env_id!r}: there is no module {error.name!r}") from error
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

    Raises:
        ValueError: As ``make_envs``; or ``path`` is given and no environment reads one.
    """
    if path is not None and not any("path" in options_of(env_id) for env_id in config.id):
        raise ValueError(f"evaluation.path is {path!r}, but {', '.join(config.id)} takes no such option")
    made: dict[str, gym.Env[str, str]] = {}
    for env_id in config.id:
        made |= make_envs(held_out_config(config, env_id, split, path))
    return made


def held_out_config(config: EnvConfig, env_id: str, split: str | None, path: str | None) -> EnvConfig:
    """Return the config of one environment on the tasks that it is evaluated on."""
    accepted = options_of(env_id)
    return replace(
        config,
        id=(env_id,),
        split=split if split is not None else str(getattr(creator(env_id), "held_out_split", "test")),
        path=(path if path is not None else config.path) if "path" in accepted else None,
        corpus=config.corpus if "corpus" in accepted else None,
        difficulty=config.difficulty if "difficulty" in accepted else None,
    )


def trained_on(config: EnvConfig, split: str | None, path: str | None) -> list[str]:
    """Return the environments whose evaluation tasks are the training tasks: the same split, or the same file."""
    ids: list[str] = []
    for env_id in config.id:
        held_out = held_out_config(config, env_id, split, path)
        same_path = "path" not in options_of(env_id) or held_out.path == config.path
        is_file = held_out.path is not None and Path(held_out.path).is_file()
        if same_path and (is_file or held_out.split == config.split):
            ids.append(env_id)
    return ids
