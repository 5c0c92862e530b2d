"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from forkgym.agents.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
for _ in range(8):
    block = bytearray(48 * 2**20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    del block
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_a_block_that_was_freed_costs_no_page_faults_again() -> None:
    faults: dict[str, int] = {}
    for how in ("keep", "default"):
        run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        kept, count = run.stdout.split()
        assert kept == "True"
        faults[how] = int(count)
    # 8 blocks of 12,288 pages: each anew, or the first alone.
    assert faults["default"] - faults["keep"] > 6 * 12288
