"""MultiHop: questions over a generated encyclopaedia, in HotpotQA's layout, without an end and without a data file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from forkgym.envs.names import check_split, draw_names, seeded
from forkgym.envs.search_env import SearchQAEnv
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.base import Tool, ToolSession
from forkgym.tools.passages import Passage
from forkgym.tools.search import PassageIndex, search_tool

MULTIHOP_SEED = 2  # keeps these draws apart from those of the other generated environment
TASKS_PER_VOLUME = 4
WORK_KINDS = ("novel", "film", "song", "play")


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of the encyclopaedia: who made what, was born where and married whom, and what lies in which country.

    Attributes:
        maker: Work to person.
        kind: Work to what it is.
        birthplace: Person to city.
        spouse: Person to person, both ways.
        country: City to country.
        capital: Country to city.
    """

    maker: dict[str, str]
    kind: dict[str, str]
    birthplace: dict[str, str]
    spouse: dict[str, str]
    country: dict[str, str]
    capital: dict[str, str]

    def passages(self) -> list[Passage]:
        """The volume's articles, one for each entity."""
        return [
            *(Passage(work, f"a {self.kind[work]} by {maker}.") for work, maker in self.maker.items()),
            *(
                Passage(person, f"born in {city}, married to {self.spouse[person]}.")
                for person, city in self.birthplace.items()
            ),
            *(Passage(city, f"a city in {country}.") for city, country in self.country.items()),
            *(Passage(country, f"a country with capital {city}.") for country, city in self.capital.items()),
        ]

    def follow(self, start: str, relations: tuple[str, ...]) -> list[str]:
        """Return the entities on the way from ``start``: it, then what each relation leads to."""
        chain = [start]
        for relation in relations:
            chain.append(getattr(self, relation)[chain[-1]])
        return chain


@dataclass(frozen=True, slots=True)
class Level:
    """One difficulty: over how many hops a question asks, and how much a volume is about."""

    hops: tuple[int, int]
    countries: int
    cities: int
    people: int
    works: int


LEVELS = {
    1: Level((2, 3), countries=4, cities=6, people=8, works=8),
    2: Level((3, 4), countries=12, cities=18, people=24, works=24),
    3: Level((4, 5), countries=24, cities=36, people=48, works=48),
}


def write_volume(rng: np.random.Generator, split: str, level: Level) -> Volume:
    """Make up a volume; the first cities are the capitals, and every two people are married."""
    sizes = (level.countries, level.cities, level.people, level.works)
    names = iter(draw_names(rng, split, sum(sizes)))
    countries, cities, people, works = ([next(names) for _ in range(size)] for size in sizes)
    couples = {person: people[place ^ 1] for place, person in enumerate(people)}
    country = {city: countries[place % len(countries)] for place, city in enumerate(cities)}
    return Volume(
        maker={work: people[int(rng.integers(len(people)))] for work in works},
        kind={work: WORK_KINDS[int(rng.integers(4))] for work in works},
        birthplace={person: cities[int(rng.integers(len(cities)))] for person in people},
        spouse=couples,
        country=country,
        capital={name: cities[place] for place, name in enumerate(countries)},
    )


@dataclass(frozen=True, slots=True)
class QuestionKind:
    """A way to ask: what the question starts from, the relations that lead to its answer, and its wording."""

    start: str
    relations: tuple[str, ...]
    wording: str


QUESTION_KINDS = (
    QuestionKind("maker", ("maker", "birthplace"), "Where was the maker of {start} born?"),
    QuestionKind("maker", ("maker", "spouse"), "Who is married to the maker of {start}?"),
    QuestionKind("birthplace", ("birthplace", "country"), "In which country was {start} born?"),
    QuestionKind("spouse", ("spouse", "birthplace"), "Where was the spouse of {start} born?"),
    QuestionKind("maker", ("maker", "birthplace", "country"), "In which country was the maker of {start} born?"),
    QuestionKind("maker", ("maker", "spouse", "birthplace"), "Where was the spouse of the maker of {start} born?"),
    QuestionKind(
        "birthplace",
        ("birthplace", "country", "capital"),
        "What is the capital of the country where {start} was born?",
    ),
    QuestionKind("spouse", ("spouse", "birthplace", "country"), "In which country was the spouse of {start} born?"),
    QuestionKind(
        "maker",
        ("maker", "birthplace", "country", "capital"),
        "What is the capital of the country where the maker of {start} was born?",
    ),
    QuestionKind(
        "maker",
        ("maker", "spouse", "birthplace", "country"),
        "In which country was the spouse of the maker of {start} born?",
    ),
    QuestionKind(
        "maker",
        ("maker", "spouse", "birthplace", "country", "capital"),
        "What is the capital of the country where the spouse of the maker of {start} was born?",
    ),
)


@lru_cache(maxsize=512)
def volume_index(split: str, difficulty: int, number: int) -> tuple[Volume, PassageIndex]:
    """Return a volume and the index over its articles, built once a process while it is in use."""
    rng = seeded(split, MULTIHOP_SEED, number) if difficulty == 1 else seeded(split, MULTIHOP_SEED, number, difficulty)
    volume = write_volume(rng, split, LEVELS[difficulty])
    return volume, PassageIndex(volume.passages())


class MultiHopTaskset:
    """Questions without an end; every ``TASKS_PER_VOLUME`` in a row are about one volume of the encyclopaedia.

    Args:
        split: "train" or "test"; they share no name, so no task.
        difficulty: 1 asks over two or three hops, 2 over three or four, 3 over four or five; volumes grow with it.
    """

    size: int | None = None

    def __init__(self, split: str = "train", difficulty: int = 1) -> None:
        check_split(split)
        if difficulty not in LEVELS:
            raise ValueError(f"difficulty {difficulty!r}: expected one of {', '.join(map(str, LEVELS))}")
        self.split = split
        self.difficulty = difficulty

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``, the same always."""
        question, chain = self._ask(index)
        return Task(
            question=question,
            answer=chain[-1],
            uid=f"multihop-{self.difficulty}/{self.split}/{index}",
            metadata={"volume": index // TASKS_PER_VOLUME},
            solution=(*(SolutionStep(title, "search") for title in chain[:-1]), SolutionStep(chain[-1])),
        )

    def row(self, index: int) -> dict[str, Any]:
        """Return task ``index`` as a row in HotpotQA's layout; the context is the whole volume."""
        question, chain = self._ask(index)
        volume, _ = volume_index(self.split, self.difficulty, index // TASKS_PER_VOLUME)
        return hotpot_row(volume, index, question, chain)

    def _ask(self, index: int) -> tuple[str, list[str]]:
        """Make up the question, and the chain of entities from the one that it names to the answer."""
        volume, _ = volume_index(self.split, self.difficulty, index // TASKS_PER_VOLUME)
        rng = seeded(self.split, MULTIHOP_SEED, self.difficulty, index)
        hops = LEVELS[self.difficulty].hops[int(rng.integers(2))]
        kinds = [kind for kind in QUESTION_KINDS if len(kind.relations) == hops]
        kind = kinds[int(rng.integers(len(kinds)))]
        starts = list(getattr(volume, kind.start))
        chain = volume.follow(starts[int(rng.integers(len(starts)))], kind.relations)
        return kind.wording.format(start=chain[0]), chain


def hotpot_row(volume: Volume, index: int, question: str, chain: list[str]) -> dict[str, Any]:
    """Lay a question out as a row of HotpotQA: every article is one sentence, those of the chain support the answer."""
    passages = volume.passages()
    return {
        "id": str(index),
        "question": question,
        "answer": chain[-1],
        "type": "bridge",
        "level": "easy" if len(chain) <= 3 else "hard",
        "supporting_facts": {"title": chain[:-1], "sent_id": [0] * (len(chain) - 1)},
        "context": {
            "title": [passage.title for passage in passages],
            "sentences": [[passage.text] for passage in passages],
        },
    }


@lru_cache(maxsize=512)
def volume_tool(split: str, difficulty: int, number: int, top_k: int) -> Tool:
    """Return the search over a volume."""
    return search_tool(volume_index(split, difficulty, number)[1], top_k)


@lru_cache(maxsize=16)
def multihop_taskset(split: str, difficulty: int) -> MultiHopTaskset:
    """Return the taskset, one object a process."""
    return MultiHopTaskset(split, difficulty)


class MultiHopEnv(SearchQAEnv):
    """Questions over a generated encyclopaedia; a search covers the volume that the question is about.

    Args:
        split: "train" or "test".
        difficulty: 1 asks over two or three hops, 2 over three or four, 3 over four or five; volumes grow with it.
        top_k: Articles that a search returns.
        max_turns: Policy turns of an episode.
        **options: As `ToolEnv` takes them.
    """

    def __init__(
        self, *, split: str = "train", difficulty: int = 1, top_k: int = 2, max_turns: int | None = None, **options: Any
    ) -> None:
        taskset = multihop_taskset(split, difficulty)
        self.top_k = top_k
        self.split = split
        self.difficulty = difficulty
        turns = LEVELS[difficulty].hops[1] + 3 if max_turns is None else max_turns
        options.setdefault("tools", ("search",))
        super().__init__(taskset=taskset, max_turns=turns, **options)

    def own_tool(self, name: str) -> Tool | None:
        """Supply ``search``; its sessions cover the volume of the current task."""
        return volume_tool(self.split, self.difficulty, 0, self.top_k) if name == "search" else None

    def open_sessions(self, task: Task) -> dict[str, ToolSession]:
        """Let ``search`` cover the volume that the task is about."""
        sessions = super().open_sessions(task)
        if "search" in sessions:
            tool = volume_tool(self.split, self.difficulty, task.metadata["volume"], self.top_k)
            sessions["search"] = tool.new_session()
        return sessions
