"""What an engine of another library changes in the process that it is started in, and how to undo it."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

# Variables that vLLM sets for processes of its own; all that we start, tools included, would inherit them.
INHERITED = ("LD_PRELOAD", "LOCAL_WORLD_SIZE")


@contextmanager
def unchanged_process() -> Generator[None]:
    """Put back, at the end, what starting vLLM sets.

    That is the state of the global random generators, the number of PyTorch's threads and the function that sets it
    (on a CPU vLLM puts one there that does nothing), and the variables in `INHERITED`.
    """
    variables = {name: os.environ.get(name) for name in INHERITED}
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
