"""What every test gets: no network, one thread, no clock, and the real data where it is there."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Before the libraries that read them at import: tests neither wait for a hub nor ask it, draw without a display, leave
# nothing in the user's caches, and do not share the cores with themselves.
os.environ["FORKGYM_CACHE"] = tempfile.mkdtemp(prefix="forkgym-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SHARED_ATTACKS = SHARED_DATA.parent / "attacks"

# Examples are the same in every run and have no time limit: a busy machine makes no test fail.
settings.register_profile("forkgym", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forkgym")


@pytest.fixture(scope="session", autouse=True)
def cache_folder() -> Iterator[None]:
    """The cache of search indexes goes with the run."""
    yield
    shutil.rmtree(os.environ["FORKGYM_CACHE"])


@pytest.fixture(autouse=True)
def own_notices() -> Iterator[None]:
    """A script's main function shows what the package logs; the next test starts without that."""
    logger = logging.getLogger("forkgym")
    yield
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project's own; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data in {SHARED_DATA}, which is not there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_attacks() -> Path:
    """The folder of hostile inputs beside the project's own; a test that asks for it is skipped where there is none."""
    if not SHARED_ATTACKS.is_dir():
        pytest.skip(f"needs the hostile inputs in {SHARED_ATTACKS}, which are not there")
    return SHARED_ATTACKS


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Fail a test that leaves this process, which stands for the one that trains, 100 MiB larger than it was."""
    process = psutil.Process()
    before = process.memory_info().rss
    yield
    grown_mib = (process.memory_info().rss - before) / 2**20
    assert grown_mib <= 100, f"this process grew by {grown_mib:.0f} MiB, at most 100 are allowed"
