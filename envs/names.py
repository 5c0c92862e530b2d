"""Made-up names, so that generated tasks of the two splits share no entity.

A name is three syllables of a consonant and a vowel, such as ``Kalomi``. The sum of its syllables' numbers is even in
the train split and odd in the test split, so no name belongs to both.
"""

from __future__ import annotations

import numpy as np

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
SYLLABLES_PER_NAME = 3
SPLITS = ("train", "test")


def check_split(split: str) -> None:
    """Raise ValueError where ``split`` is not one that can be generated."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")


def seeded(split: str, *numbers: int) -> np.random.Generator:
    """Return a generator that belongs to a split and some numbers alone."""
    return np.random.default_rng((SPLITS.index(split), *numbers))


def draw_names(rng: np.random.Generator, split: str, count: int) -> list[str]:
    """Draw ``count`` different names of a split."""
    names: dict[str, None] = {}
    while len(names) < count:
        numbers = [int(number) for number in rng.integers(len(SYLLABLES), size=SYLLABLES_PER_NAME)]
        if sum(numbers) % 2 == SPLITS.index(split):
            names["".join(SYLLABLES[number] for number in numbers).capitalize()] = None
    return list(names)


def split_of(name: str) -> str:
    """Return the split that a name belongs to; ValueError where it is not one of ours."""
    syllables = [name.lower()[start : start + 2] for start in range(0, len(name), 2)]
    if len(syllables) != SYLLABLES_PER_NAME or any(syllable not in SYLLABLES for syllable in syllables):
        raise ValueError(f"{name!r} is not a name made of {SYLLABLES_PER_NAME} syllables")
    return SPLITS[sum(SYLLABLES.index(syllable) for syllable in syllables) % 2]
