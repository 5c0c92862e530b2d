"""The page about algorithms says what the table in the code says."""

from __future__ import annotations

from pathlib import Path

from forkgym.trainers.algorithms.table import ALGORITHMS, Algorithm

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"


def cells(algorithm: Algorithm) -> list[str]:
    """A row of the page's table, without its name and source."""
    clip = (algorithm.clip_low, algorithm.clip_high)
    term: str = algorithm.surrogate
    if algorithm.surrogate != "gradient" and clip != (0.2, 0.2):
        low, high = (f"{bound:.0e}".replace("e-0", "e-") if bound < 0.01 else f"{bound:g}" for bound in clip)
        term = f"{term} {low}, {high}"
    yes = {True: "yes", False: "no"}
    return [
        algorithm.branching,
        algorithm.segments,
        algorithm.baseline,
        yes[algorithm.divides_by_deviation],
        yes[algorithm.calibrates],
        term,
        algorithm.ratio,
        algorithm.normalisation,
        algorithm.correction,
    ]


def test_the_table_is_the_codes() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    found = {row[0].strip("`"): row[1:-1] for row in rows if row[0].strip("`") in ALGORITHMS}
    assert found == {name: cells(algorithm) for name, algorithm in ALGORITHMS.items()}
