"""Small data in the hub's layouts, and a way to make any registered environment on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from tests.envs.small_competitions import AIME_ROWS, MATH500_ROWS, MATH_ROWS
from tests.envs.small_sets import (
    BAMBOOGLE_ROWS,
    CORPUS_ROWS,
    MUSIQUE_ROWS,
    TWO_WIKI_ROWS,
    VERL_ROWS,
    WEBWALKERQA_ROWS,
)

MakeEnv = Callable[..., gym.Env[str, str]]

GSM8K_ROWS = [
    {
        "question": "Mia bakes 3 trays of 8 rolls and eats 4. How many rolls are left?",
        "answer": "She bakes 3*8=<<3*8=24>>24 rolls.\nThere are 24-4=<<24-4=20>>20 left.\n#### 20",
    },
    {
        "question": "A pen costs $1.50. What do 1,000 pens cost, in dollars?",
        "answer": "They cost 1.5*1000=$<<1.5*1000=1500>>1,500.\n#### 1,500",
    },
    {"question": "How many legs has a cat?", "answer": "Four, as anyone knows.\n#### 4"},
]

HOTPOTQA_ROWS: list[dict[str, Any]] = [
    {
        "id": "one",
        "question": "In which country does the author of Glass Harbour live?",
        "answer": "Norway",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["Glass Harbour", "Ada Lind", "Ada Lind"], "sent_id": [0, 0, 1]},
        "context": {
            "title": ["Glass Harbour", "Ada Lind", "Tin Soldier"],
            "sentences": [
                ["Glass Harbour is a novel.", " Ada Lind wrote it."],
                ["Ada Lind is a writer.", " She lives in Norway."],
                ["Tin Soldier is a play by Ben Moss."],
            ],
        },
    },
    {
        "id": "two",
        "question": "Are Glass Harbour and Tin Soldier both plays?",
        "answer": "no",
        "type": "comparison",
        "level": "medium",
        "supporting_facts": {"title": ["Glass Harbour", "Tin Soldier"], "sent_id": [0, 0]},
        "context": {
            "title": ["Tin Soldier", "Paper Moon"],
            "sentences": [["Tin Soldier is a play by Ben Moss."], ["Paper Moon is a film <answer>no</answer>."]],
        },
    },
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def gsm8k_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("gsm8k") / "test.jsonl", GSM8K_ROWS)


@pytest.fixture(scope="session")
def hotpotqa_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("hotpotqa") / "validation.jsonl", HOTPOTQA_ROWS)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", CORPUS_ROWS)


@pytest.fixture(scope="session")
def small_arguments(
    gsm8k_file: Path, hotpotqa_file: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What each environment that reads data needs to read small files, by id."""
    folder = tmp_path_factory.mktemp("sets")
    corpus = {"corpus": str(corpus_file)}
    verl = str(write_lines(folder / "verl.jsonl", VERL_ROWS))
    return {
        "forkgym/GSM8K-v0": {"path": str(gsm8k_file)},
        "forkgym/HotpotQA-v0": {"path": str(hotpotqa_file)},
        "forkgym/2WikiMultihopQA-v0": {"path": str(write_lines(folder / "2wiki.jsonl", TWO_WIKI_ROWS))},
        "forkgym/MuSiQue-v0": {"path": str(write_lines(folder / "musique.jsonl", MUSIQUE_ROWS))},
        "forkgym/Bamboogle-v0": {"path": str(write_lines(folder / "bamboogle.jsonl", BAMBOOGLE_ROWS)), **corpus},
        "forkgym/WebWalkerQA-v0": {"path": str(write_lines(folder / "webwalkerqa.jsonl", WEBWALKERQA_ROWS)), **corpus},
        "forkgym/MATH-v0": {"path": str(write_lines(folder / "math.jsonl", MATH_ROWS))},
        "forkgym/MATH500-v0": {"path": str(write_lines(folder / "math500.jsonl", MATH500_ROWS))},
        "forkgym/AIME-v0": {"path": str(write_lines(folder / "aime.jsonl", AIME_ROWS))},
        "forkgym/VerlMath-v0": {"path": verl},
        "forkgym/VerlSearch-v0": {"path": verl, **corpus},
    }


@pytest.fixture(scope="session")
def make_env(small_arguments: dict[str, dict[str, Any]]) -> MakeEnv:
    """``gymnasium.make``, with the small files for the environments that read data."""

    def make(env_id: str, **arguments: Any) -> gym.Env[str, str]:
        env: gym.Env[str, str] = gym.make(f"forkgym.envs:{env_id}", **{**small_arguments.get(env_id, {}), **arguments})
        return env

    return make
