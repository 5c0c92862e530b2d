"""Environments by name: registered ids, and references to a user's own."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from forkgym.tools.references import FORMS, is_reference, load_place, load_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec

KIND = "environment"


def make_env(source: str, **options: Any) -> gym.Env[str, str]:
    """Make an environment as ``gymnasium.make`` does, by any name that `find_spec` knows.

    Args:
        source: See `find_spec`.
        **options: Arguments of the environment.

    Raises:
        ValueError: See `find_spec`; or an option is refused, a required one is missing, or what is made is no
            `ToolEnv`.
    """
    import gymnasium as gym

    from forkgym.envs.base import ToolEnv

    spec = find_spec(source)
    try:
        inspect.signature(creator(source)).bind(**{**spec.kwargs, **options})
    except TypeError as error:
        raise ValueError(f"{KIND} {source!r} cannot be made with {options}: {error}") from error
    env: gym.Env[str, str] = gym.make(spec, disable_env_checker=True, **options)
    if not isinstance(env.unwrapped, ToolEnv):
        raise ValueError(f"{KIND} {source!r} is no environment of text with tools, expected a ToolEnv")
    return env


def find_spec(source: str) -> EnvSpec:
    """Return how an environment is made.

    The spec of one that is not registered has its short name for an id; Gymnasium's registry stays as it is. It is
    good for ``gymnasium.make`` and ``gymnasium.make_vec``.

    Args:
        source: A registered id, of this package or a plugin (see `forkgym.envs`); ``module:id`` or
            ``path/to/file.py:id``, where importing the module or file registers the id; or a reference to a class or
            a function that makes one (see `forkgym.tools.references`).

    Raises:
        ValueError: No environment is registered under an id, or a reference leads to none.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec

    from forkgym.envs import load_plugins
    from forkgym.envs.vector import make_vector

    load_plugins()
    if is_reference(source):
        load_place(source, KIND)
    name = source.rpartition(":")[2]
    if is_reference(source) and is_attribute(name) and name not in gym.registry:
        made_by = load_reference(source, KIND)
        if not callable(made_by):
            raise ValueError(f"{KIND} {source!r} is {made_by!r}, expected a class or a function that makes one")
        # Gymnasium wants an id of letters, digits and few marks.
        allowed = "".join(letter if letter.isalnum() or letter in "_:.-" else "_" for letter in short_name(source))
        entry_point = cast("Callable[..., gym.Env[str, str]]", made_by)  # what it makes is found out by making one
        return EnvSpec(id=allowed, entry_point=entry_point, vector_entry_point=partial(make_vector, entry_point))
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        known = ", ".join(sorted(spec.id for spec in gym.registry.values() if not is_gymnasiums(spec.entry_point)))
        raise ValueError(f"{KIND} {source!r}: no such id; expected one of {known}, {FORMS}") from error


def creator(source: str) -> Any:
    """Return the class or function that makes an environment.

    Raises:
        ValueError: See `find_spec`.
    """
    from gymnasium.envs.registration import load_env_creator

    entry_point = find_spec(source).entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def options_of(source: str) -> tuple[str, ...]:
    """Return the names of the arguments that an environment takes.

    A class that takes any (``**options``) hands them to its base class, whose arguments count as well. Of a function
    only those count that it names.

    Raises:
        ValueError: See `find_spec`.
    """
    made_by = creator(source)
    makers: list[Any] = [made_by]
    if inspect.isclass(made_by):
        makers = [vars(kind)["__init__"] for kind in made_by.__mro__ if "__init__" in vars(kind)]
    names: dict[str, None] = {}
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        names |= {one.name: None for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return tuple(name for name in names if name != "self")


def short_name(source: str) -> str:
    """Return the name of an environment in metrics, results and rollouts; it does not depend on the working directory.

    >>> [short_name(source) for source in ("forkgym/GSM8K-v0", "my_package.envs:mine/Lengths-v0")]
    ['forkgym/GSM8K-v0', 'mine/Lengths-v0']
    >>> [short_name(source) for source in ("../envs/lengths.py:LengthEnv", "my_package.envs:LengthEnv")]
    ['lengths.py:LengthEnv', 'my_package.envs:LengthEnv']
    """
    place, _, name = source.rpartition(":")
    if not is_attribute(name):
        return name
    return f"{Path(place).name}:{name}" if place.endswith(".py") else source


def is_attribute(name: str) -> bool:
    """Whether a name can be an attribute's, dots included; an id with a namespace or a version cannot."""
    return all(part.isidentifier() for part in name.split("."))


def is_gymnasiums(entry_point: object) -> bool:
    """Whether an environment is one that comes with Gymnasium."""
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return str(module).startswith("gymnasium.")
