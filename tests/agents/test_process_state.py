"""What the start of an engine changes is put back."""

from __future__ import annotations

import os
import random
from typing import Any, cast

import numpy as np
import pytest
import torch

from forkgym.agents.process_state import unchanged_process


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def ignore_threads(num: int) -> None:
    """As vLLM replaces ``torch.set_num_threads`` with."""


def start_badly() -> None:
    """Do what vLLM's start does on a CPU."""
    seed_all(0)
    os.environ["LD_PRELOAD"] = "libother.so"
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    torch.set_num_threads(2)
    cast(Any, torch).set_num_threads = ignore_threads


def test_it_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libown.so")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    threads, function = torch.get_num_threads(), torch.set_num_threads
    seed_all(7)
    expected = draws()
    seed_all(7)
    with unchanged_process():
        start_badly()
    assert draws() == expected
    assert os.environ["LD_PRELOAD"] == "libown.so"
    assert "LOCAL_WORLD_SIZE" not in os.environ
    assert torch.set_num_threads is function
    assert torch.get_num_threads() == threads


def test_it_is_put_back_after_a_failure_too() -> None:
    function = torch.set_num_threads
    with pytest.raises(RuntimeError, match="no memory"), unchanged_process():
        start_badly()
        raise RuntimeError("no memory")
    assert torch.set_num_threads is function
