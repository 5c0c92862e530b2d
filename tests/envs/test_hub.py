"""The sets as they are on the Hugging Face hub today; skipped where it cannot be reached."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Rows are streamed, so that no gigabytes are fetched for the first few of them.
FIRST_ROWS = """
from itertools import islice
from datasets import load_dataset
from forkgym.envs.gsm8k import CONFIG, HUB, GSM8KRow
from forkgym.envs.hotpotqa import HOTPOTQA
from forkgym.envs.search_sets import BAMBOOGLE, MUSIQUE, TWO_WIKI, WEBWALKERQA

sets = {one.name: one for one in (HOTPOTQA, TWO_WIKI, MUSIQUE, BAMBOOGLE, WEBWALKERQA)}
if NAME == "gsm8k":
    hub, config, record, splits = HUB, CONFIG, GSM8KRow, ["train", "test"]
else:
    one = sets[NAME]
    hub, config, record = one.hub, one.config, one.row
    splits = {"bamboogle": ["test"], "webwalkerqa": ["main", "silver"]}.get(NAME, ["train", "validation"])
for split in splits:
    rows = [record.model_validate(row) for row in islice(load_dataset(hub, config, split=split, streaming=True), 5)]
    assert len(rows) == 5
    if NAME in ("hotpotqa", "2wikimultihopqa", "musique"):
        assert all(row.passages() and row.supporting_titles() for row in rows), split
    if NAME == "webwalkerqa":
        assert all(row.root_url.startswith("http") for row in rows), split
"""
# Small enough to be fetched whole, through the environment.
WHOLE_SET = """
import gymnasium as gym
env = gym.make("forkgym.envs:forkgym/Bamboogle-v0", tools=[]).unwrapped
assert env.num_tasks == 125
env.reset(seed=0)
assert env.step(f"<answer>{env.current_task.answer}</answer>")[1] == 1.0
"""


@pytest.fixture(scope="module")
def hub() -> dict[str, str]:
    """The variables of a process that may ask the hub, which no other test may."""
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError as error:
        pytest.skip(f"needs the Hugging Face hub, which cannot be reached: {error}")
    return {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}


def run_python(code: str, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["gsm8k", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "webwalkerqa"])
def test_rows_have_the_layout_that_is_expected(hub: dict[str, str], name: str) -> None:
    run_python(FIRST_ROWS.replace("NAME", repr(name)), hub)


def test_a_set_is_fetched(hub: dict[str, str]) -> None:
    run_python(WHOLE_SET, hub)
