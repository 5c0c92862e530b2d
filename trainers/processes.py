"""Several processes that train one model: each rolls out its share of the tasks, and all take the same step.

Launched by ``accelerate launch``. Trees travel to every process, so that each knows the whole step's counts and
weights; each runs its share of the micro-batches, and the gradients are added up. What is computed is what one process
computes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process shows and writes things; known before any communication is set up."""
    return os.environ.get("RANK", "0") == "0"


def add_up_gradients(accelerator: Accelerator, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        # Where a process had nothing to do; a weight in half precision may have a gradient in float32.
        kind = getattr(parameter, "grad_dtype", None) or parameter.dtype
        gradient = torch.zeros_like(parameter, dtype=kind) if parameter.grad is None else parameter.grad
        parameter.grad = cast("Any", accelerator).reduce(gradient, "sum")


def gathered(accelerator: Accelerator, values: Sequence[T]) -> list[T]:
    """All processes' values, those of the first process first."""
    if accelerator.num_processes == 1:
        return list(values)
    found: list[T] = cast("Any", gather_object)(list(values))
    return found


def interleaved(accelerator: Accelerator, own: Sequence[T], count: int) -> list[T]:
    """All processes' results in order, where process p of n has those of the items p, p + n, ... of ``count``."""
    processes = accelerator.num_processes
    by_process = iter(gathered(accelerator, own))
    sizes = [len(range(process, count, processes)) for process in range(processes)]
    blocks = [[next(by_process) for _ in range(size)] for size in sizes]
    return [blocks[place % processes][place // processes] for place in range(count)]
