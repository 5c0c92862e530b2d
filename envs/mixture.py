"""A mixture of environments with weights: each episode is one of another environment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym

from forkgym.envs.base import MAX_OBSERVATION_CHARACTERS, ToolEnv, generator_at
from forkgym.envs.registry import creator, make_env, options_of, short_name
from forkgym.envs.shares import Shares, shares_of
from forkgym.envs.space import TextSpace
from forkgym.envs.tasks import Task

HELD_OUT = "held-out"  # as a split: of each environment its own ``held_out_split``
SEEDS = 2**31
ALWAYS_GIVEN = {"grammar"}  # scripts do, whether or not an environment takes it; as they do with ``split``


class MixtureTaskset:
    """The tasks of several environments, interleaved by weight; it never ends.

    Task ``index`` is always the same one: ``Shares`` says which environment's it is and how many of that environment's
    came before, n, and it is that environment's task n. Where that has only N tasks, it is its task n mod N, so its
    tasks come again.
    """

    def __init__(self, envs: Sequence[ToolEnv], shares: Shares) -> None:
        self.envs = envs
        self.shares = shares

    @property
    def size(self) -> None:
        """None: the tasks of a mixture never end."""

    def place(self, index: int) -> tuple[int, int]:
        """Return whose task it is, counted from 0, and the task's index over there."""
        source, number = self.shares.at(index)
        size = self.envs[source].num_tasks
        return source, number if size is None else number % size

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``."""
        source, number = self.place(index)
        return self.envs[source].task(number)


def of_active(name: str) -> Any:
    """An attribute or method that is the active environment's, to read and to set."""

    def get(mixture: MixtureEnv) -> Any:
        return getattr(mixture.active, name)

    def put(mixture: MixtureEnv, value: Any) -> None:
        setattr(mixture.active, name, value)

    def delete(mixture: MixtureEnv) -> None:
        delattr(mixture.active, name)

    return property(get, put, delete, f"The active environment's ``{name}``.")


class MixtureEnv(ToolEnv):
    """Episodes of several environments, drawn by weight.

    ``reset`` draws an index of `MixtureTaskset`, or takes the one it is given, and starts that task in a copy of
    its environment. From then on everything is that environment's, the *active* one: tools, grammar, instructions,
    stop strings, limits, score. ``info["env_id"]`` names it (of a mixture in a mixture, the innermost), and
    ``info["task_index"]`` is the index in the mixture.

    Args:
        envs: Weight by name, ``{"forkgym/GSM8K-v0": 0.7, "forkgym/HotpotQA-v0": 0.3}``; or, with options of its own,
            ``{"forkgym/HotpotQA-v0": {"weight": 0.3, "corpus": "corpus.jsonl"}}``. Names are those of `make_env`. The
            sum of the weights does not matter.
        split: Of all environments; "held-out" for the one that each is evaluated on. None for each one's default.
        path: Of all environments that read a file, where they share one, as the two of `verl` do.
        corpus: Of all environments that search one.
        retriever: Of all environments that search a corpus.
        difficulty: Of all environments with generated tasks.
        render_mode: See `ToolEnv`.
        **options: What `ToolEnv` takes, for all environments. An environment's own options win.

    Raises:
        ValueError: No environments, an unknown one, a weight that is not a positive number, an option that none of
            them takes, or that the one it is meant for does not; or as an environment raises it.
    """

    metadata: dict[str, Any] = ToolEnv.metadata
    held_out_split: ClassVar[str] = HELD_OUT

    # What `ToolEnv` itself defines has to be named here; ``__getattr__`` is asked for the rest, such as ``grammar``.
    reward_weights = of_active("reward_weights")
    own_tool = of_active("own_tool")
    score = of_active("score")
    extraction_failure = of_active("extraction_failure")
    open_sessions = of_active("open_sessions")
    prompt_of = of_active("prompt_of")
    reply_of = of_active("reply_of")
    render_step = of_active("render_step")
    render = of_active("render")

    def __init__(  # noqa: PLR0913 - the keyword arguments of a Gymnasium id are flat
        self,
        *,
        envs: Mapping[str, float | Mapping[str, Any]],
        split: str | None = None,
        path: str | None = None,
        corpus: str | None = None,
        retriever: str | None = None,
        difficulty: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        # Not ToolEnv.__init__: what that would set is the active environment's.
        own: dict[str, dict[str, Any]] = {
            name: dict(given) if isinstance(given, Mapping) else {"weight": given} for name, given in envs.items()
        }
        for name, given in own.items():
            if "weight" not in given:
                raise ValueError(f"envs[{name!r}] is {given!r}, expected a weight, alone or beside options")
            check_taken(set(given) - {"weight"}, [name])
        self.env_ids = tuple(short_name(name) for name in own)
        self.shares = shares_of(tuple(float(given.pop("weight")) for given in own.values()))
        shared = {"path": path, "corpus": corpus, "retriever": retriever, "difficulty": difficulty, **options}
        common = {option: value for option, value in shared.items() if value is not None}
        check_taken(set(common) - ALWAYS_GIVEN, list(own))
        common |= {"render_mode": render_mode} if split is None else {"render_mode": render_mode, "split": split}
        # Never reset: an episode runs in a fork of one of these, so forks of the mixture can share them.
        self.templates = tuple(make_child(name, common, given) for name, given in own.items())
        self.tasks = MixtureTaskset(self.templates, self.shares)
        self.taskset = self.tasks
        self.render_mode = render_mode
        self.action_space = TextSpace()
        self.observation_space = TextSpace(max_length=MAX_OBSERVATION_CHARACTERS)
        self.active = self.templates[0]
        self._active_place = 0
        self._index: int | None = None

    def __getattr__(self, name: str) -> Any:
        """What the mixture has not got itself is the active environment's."""
        if name.startswith("__") or name == "active":  # asked for while a copy is made, before anything is set
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.active, name)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The active environment's."""
        return self.active.stop_strings

    @property
    def markers(self) -> tuple[str, ...]:
        """The active environment's."""
        return self.active.markers

    @property
    def current_task(self) -> Task:
        """The active environment's."""
        return self.active.current_task

    @property
    def inline(self) -> bool:
        """The active environment's."""
        return self.active.inline

    @property
    def num_tasks(self) -> None:
        """None: the tasks of a mixture never end."""

    def task(self, index: int) -> Task:
        """Return task ``index`` of the mixture."""
        return self.tasks[index]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode of one of the environments; see `ToolEnv`."""
        gym.Env.reset(self, seed=seed)
        index = self._choose_index(options or {})
        place, number = self.tasks.place(index)
        # Its own randomness, if it has any, follows from the mixture's.
        child_seed = int(self.np_random.integers(SEEDS))
        if self._shared or place != self._active_place:
            self._activate(self.templates[place].fork(), place)
        observation, info = self.active.reset(seed=child_seed, options={"index": number})
        self._index = index
        return observation, {"env_id": self.env_ids[place], **info, "task_index": float(index)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn in the active environment; see `ToolEnv`."""
        observation, reward, terminated, truncated, info = self.active.step(action)
        return observation, reward, terminated, truncated, {"env_id": self.env_ids[self._active_place], **info}

    def close(self) -> None:
        """Close the active environment's sessions; a running episode ends."""
        if not self._shared:
            self.active.close()

    def fork(self) -> MixtureEnv:
        """Return an exact and independent copy, mid-episode, with a fork of the active environment."""
        twin = copy.copy(self)
        twin.action_space = copy.deepcopy(self.action_space)  # a space draws samples from a generator of its own
        twin.observation_space = copy.deepcopy(self.observation_space)
        if not self._shared:
            twin.active = self.active.fork()
        if self._np_random is not None:
            twin._np_random = generator_at(self._np_random.bit_generator.state)
        return twin

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state as a JSON value: the mixture's own, and the active environment's."""
        return {
            "task_index": self._index,
            "active": None if self._index is None else self.active.snapshot(),
            "random": None if self._np_random is None else dict(self._np_random.bit_generator.state),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take on a state that ``snapshot`` returned, in this process or another with the same arguments.

        Raises:
            KeyError: ``state`` is not a snapshot.
        """
        index, active, random = state["task_index"], state["active"], state["random"]
        place = 0 if index is None else self.tasks.place(index)[0]
        self._activate(self.templates[place] if index is None else self.templates[place].fork(), place)
        if index is not None:
            self.active.restore(active)
        self._index = index
        self._np_random = None if random is None else generator_at(random)

    @property
    def _shared(self) -> bool:
        """Whether the active environment is a template, as before the first episode: forks share it."""
        return self.active is self.templates[self._active_place]

    def _activate(self, env: ToolEnv, place: int) -> None:
        """Go over to another environment."""
        self.close()
        self.active, self._active_place = env, place


def make_child(name: str, common: Mapping[str, Any], own: Mapping[str, Any]) -> ToolEnv:
    """Make one environment of a mixture with its own options, and those of the common ones that it takes."""
    given = {**{option: value for option, value in common.items() if option in options_of(name)}, **own}
    if given.get("split") == HELD_OUT:
        given["split"] = getattr(creator(name), "held_out_split", ToolEnv.held_out_split)
    bare = make_env(name, **given).unwrapped
    assert isinstance(bare, ToolEnv)
    return bare


def check_taken(options: Iterable[str], names: Sequence[str]) -> None:
    """Raise ValueError where an option is taken by none of some environments."""
    taken = {option for name in names for option in options_of(name)}
    for option in sorted(options):
        if option not in taken:
            raise ValueError(f"{option}: {', '.join(names)} takes no such option")
