"""Settings of environments, and making them. Imports nothing heavy until an environment is made."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkgym.envs.registry import creator, make_env, options_of, short_name
from forkgym.envs.shares import check_weights

if TYPE_CHECKING:
    import gymnasium as gym

DEFAULT_ENVS = ("forkgym/WordMath-v0", "forkgym/MultiHop-v0")
NO_TOOLS = "nothing"
NOT_OPTIONS = ("id", "weights")  # of an environment: they say which there are, and how often each comes


@dataclass(frozen=True)
class EnvConfig:
    """Which environments, and where their tasks come from. Relative paths start at the working directory."""

    id: tuple[str, ...] = DEFAULT_ENVS
    """Environments: registered ids, module:Class or path/to/file.py:Class; a step's tasks are shared out over them."""
    weights: tuple[float, ...] | None = None
    """How often tasks of each environment come, in their order, whatever the sum; equally often by default."""
    path: str | None = None
    """File of tasks, or name of a data set on the hub, for environments that read one; their own by default."""
    corpus: str | None = None
    """File of passages or address of a search server, for environments that search one; the tasks' own passages by
    default."""
    retriever: str | None = None
    """How a corpus is searched: bm25, or dense:MODEL for a sentence-transformers model; bm25 by default."""
    split: str = "train"
    """Split of the tasks; held-out (evaluation only) is each environment's own test or validation split."""
    grammar: str = "arpo"
    """Marker tokens of calls, results and answers: arpo, search_r1, hermes, module:NAME or path/to/file.py:NAME."""
    tools: tuple[str, ...] | None = None
    """Tools: names, module:NAME, path/to/file.py:NAME or mcp:SERVER, or the one word nothing; each environment's own
    by default."""
    difficulty: int | None = None
    """Difficulty of generated tasks, 1 to 3; 1 by default."""
    max_turns: int | None = None
    """Policy turns of an episode, at most; each environment's own limit by default."""
    max_malformed: int | None = None
    """Malformed turns in a row that end an episode; 3 by default."""
    malformed_penalty: float | None = None
    """Subtracted from the reward at each malformed turn; 0 by default."""

    def __post_init__(self) -> None:
        """Check that there is an environment, and that no two go by the same name."""
        names = [short_name(source) for source in self.id]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"env.id is {' '.join(self.id)!r}, expected at least one environment, each once")
        if self.weights is None:
            return
        if len(self.weights) != len(self.id):
            given = " ".join(map(str, self.weights))
            raise ValueError(f"env.weights are {given!r}, expected one for each of {', '.join(self.id)}")
        try:
            check_weights(self.weights)
        except ValueError as error:
            raise ValueError(f"env.{error}") from error

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that are given to the environments that take them."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in NOT_OPTIONS}
        if self.tools == (NO_TOOLS,):  # a command line has no other way to say so
            values["tools"] = ()
        return {name: value for name, value in values.items() if value is not None}


def make_envs(config: EnvConfig) -> dict[str, gym.Env[str, str]]:
    """Make each environment of a config.

    An option goes to those that take it; the defaults of ``split`` and ``grammar`` may be taken by none.

    Returns:
        Environments by their short name, which is a registered id itself.

    Raises:
        ValueError: An id is unknown, an option is taken by none of them or refused, or a data file can't be read; the
            message names the value and what was expected.
    """
    check_options(config)
    made: dict[str, gym.Env[str, str]] = {}
    for source in config.id:
        accepted = options_of(source)
        own = {name: value for name, value in config.options.items() if name in accepted}
        made[short_name(source)] = make_env(source, **own)
    return made


def check_options(config: EnvConfig) -> None:
    """Raise ValueError where an option that is given is taken by no environment."""
    taken = {name for source in config.id for name in options_of(source)}
    defaults = {one.name: one.default for one in fields(config)}
    for name, value in config.options.items():
        if name not in taken and value != defaults[name]:
            raise ValueError(f"env.{name} is {value!r}, but {', '.join(config.id)} takes no such option")


def make_held_out_envs(config: EnvConfig, split: str | None, path: str | None) -> dict[str, gym.Env[str, str]]:
    """Make each environment of a config on tasks that are not trained on.

    Args:
        config: The training environments.
        split: Of the held-out tasks; by default each environment's ``held_out_split``.
        path: File of the held-out tasks; by default the config's own.

    Raises:
        ValueError: As ``make_envs``; or ``split`` or ``path`` is given and no environment takes it.
    """
    check_options(replace(config, split=EnvConfig.split))
    for name, value in (("split", split), ("path", path)):
        if value is not None and not any(name in options_of(source) for source in config.id):
            raise ValueError(f"evaluation.{name} is {value!r}, but {', '.join(config.id)} takes no such option")
    made: dict[str, gym.Env[str, str]] = {}
    for source in config.id:
        made |= make_envs(held_out_config(config, source, split, path))
    return made


def held_out_config(config: EnvConfig, source: str, split: str | None, path: str | None) -> EnvConfig:
    """Return the config of one environment on the tasks that it is evaluated on."""
    held_out = {
        "split": split if split is not None else str(getattr(creator(source), "held_out_split", "test")),
        "path": path if path is not None else config.path,
    }
    accepted = options_of(source)
    refused = {one.name: one.default for one in fields(config) if one.name not in accepted}
    values: dict[str, Any] = {**held_out, **refused, "id": (source,)}
    return replace(config, **values)


def trained_on(config: EnvConfig, split: str | None, path: str | None) -> list[str]:
    """Return the environments whose evaluation tasks are the training tasks: the same split, or the same file."""
    names: list[str] = []
    for source in config.id:
        accepted, held_out = options_of(source), held_out_config(config, source, split, path)
        same_path = "path" not in accepted or held_out.path == config.path
        is_file = held_out.path is not None and Path(held_out.path).is_file()
        same_split = "split" not in accepted or held_out.split == config.split
        if same_path and (is_file or same_split):
            names.append(short_name(source))
    return names
