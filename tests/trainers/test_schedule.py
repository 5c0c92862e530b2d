"""The course of a learning rate, by hand."""

from __future__ import annotations

import pytest

from forkgym.trainers.schedule import rise_and_fall


@pytest.mark.parametrize(
    ("warmup", "end", "share", "expected"),
    [
        (2, 6, 0.0, [1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4]),
        (0, 4, 0.1, [1, 0.775, 0.55, 0.325, 0.1, 0.1]),  # and no further
        (3, 2, 0.1, [1 / 3, 2 / 3, 1, 1]),  # over before it could fall
    ],
)
def test_it_rises_and_falls(warmup: int, end: int, share: float, expected: list[float]) -> None:
    found = [rise_and_fall(step, warmup, end, share) for step in range(len(expected))]
    assert found == pytest.approx(expected)
