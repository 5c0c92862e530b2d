"""What every test gets: no network, one thread, no clock, and the real data where it is there."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before the libraries that read them at import: tests neither wait for a hub nor ask it, draw without a display, and
# do not share the cores with themselves.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Examples are the same in every run and have no time limit: a busy machine makes no test fail.
settings.register_profile("forkgym", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("forkgym")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project's own; a test that asks for it is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data in {SHARED_DATA}, which is not there")
    return SHARED_DATA
