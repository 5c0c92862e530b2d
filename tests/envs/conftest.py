"""Small data in the hub's layouts, and a way to make any registered environment on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

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
def make_env(gsm8k_file: Path, hotpotqa_file: Path) -> MakeEnv:
    """``gymnasium.make``, with the small files for the environments that read data."""
    paths = {"forkgym/GSM8K-v0": str(gsm8k_file), "forkgym/HotpotQA-v0": str(hotpotqa_file)}

    def make(env_id: str, **arguments: Any) -> gym.Env[str, str]:
        if env_id in paths:
            arguments.setdefault("path", paths[env_id])
        env: gym.Env[str, str] = gym.make(f"forkgym.envs:{env_id}", **arguments)
        return env

    return make
