"""Read a final answer out of text and compare it: numbers by value, short texts as HotpotQA does.

Pure functions. What they are given is a model's text, so each is total and linear in its length.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from enum import StrEnum
from fractions import Fraction

MAX_NUMBER_LENGTH = 100
MAX_EXPONENT = 100

BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
LATEX_NOISE = re.compile(r"\\!|\\text\s*|\\mathrm\s*|\{(?=,\})|(?<=,)\}")
NUMBER = re.compile(
    r"((?<![\w)\].])[-+\u2212])?"  # a sign, unless it is a minus between two things
    r"(?:(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d*)?|(?<![\d.])(\.\d+))"  # 1,000 or 1000, then a fraction; or .5
    r"(?:[eE]([-+]?\d+)|/(\d+))?"  # an exponent or a denominator
)
NOT_FINITE = re.compile(r"\b(?:nan|inf|infty|infinity)\b|\u221e", re.IGNORECASE)

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


class NoNumber(StrEnum):
    """Why no number could be read."""

    EMPTY = "empty"
    NO_DIGITS = "no_digits"
    NOT_FINITE = "not_finite"
    NON_ASCII_DIGITS = "non_ascii_digits"
    ZERO_DENOMINATOR = "zero_denominator"
    TOO_LONG = "too_long"


def final_answer(text: str) -> str:
    r"""Return what stands in the last balanced ``\boxed{...}``, else the whole text; stripped.

    The last box is the one that opens last: of ``\boxed{1 \boxed{2}}`` it is 2. Escaped braces do not count.
    """
    if "\\boxed" not in text:
        return text.strip()
    open_braces: list[tuple[bool, int]] = []
    best = (-1, len(text))
    for found in BOX_OR_BRACE.finditer(text):
        token = found[0]
        if token == "}":
            if open_braces:
                is_box, start = open_braces.pop()
                if is_box and start > best[0]:
                    best = (start, found.start())
        elif token[-1] == "{" and token != "\\{":
            open_braces.append((token != "{", found.end()))
    return text[max(best[0], 0) : best[1]].strip()


def number_in(text: str) -> Fraction | NoNumber:
    r"""Return the last number of a text, after the last ``####`` where there is one, or why there is none.

    Dollar signs are ignored, commas may group thousands, and a percent sign or a unit after the number means nothing:
    ``#### $1,000``, ``72.``, ``72.0``, ``-5``, ``1/2``, ``\frac{1}{2}``, ``.5``, ``1e3`` and ``72%`` are 1000, 72,
    72, -5, 1/2, 1/2, 1/2, 1000 and 72. A minus after a digit, a letter or a closing bracket is no sign: ``9-4`` ends
    with 4. Exact: no float is involved.
    """
    if len(text) <= MAX_NUMBER_LENGTH and text.isascii() and text.isdigit():  # what most answers are
        return Fraction(int(text))
    start = text.rfind("####")
    if start >= 0:
        text = text[start + 4 :]
    if "\\" in text or "{" in text:
        text = LATEX_FRACTION.sub(r"\1/\2", LATEX_NOISE.sub("", text.replace("\\,", ",")).replace("\\$", ""))
    text = text.replace("$", "")
    last: re.Match[str] | None = None
    for last in NUMBER.finditer(text):  # noqa: B007 - the last one is wanted, and a match list would be long
        pass
    if last is None:
        return why_no_number(text)
    return number_of(last)


def number_of(match: re.Match[str]) -> Fraction | NoNumber:
    """The exact value of one match of ``NUMBER``."""
    sign, whole, decimals, bare_decimals, exponent, denominator = match.groups()
    if match.end() - match.start() > MAX_NUMBER_LENGTH:
        return NoNumber.TOO_LONG
    if not match[0].replace("\u2212", "-").isascii():
        return NoNumber.NON_ASCII_DIGITS
    digits = (decimals or bare_decimals or ".")[1:]
    value = Fraction(int((whole or "0").replace(",", "") + digits))
    power = (int(exponent) if exponent else 0) - len(digits)
    if abs(power) > MAX_EXPONENT:
        return NoNumber.TOO_LONG
    if power:
        value = value * 10**power if power > 0 else value / 10**-power
    if denominator:
        if not int(denominator):
            return NoNumber.ZERO_DENOMINATOR
        value /= int(denominator)
    return -value if sign and sign != "+" else value


def why_no_number(text: str) -> NoNumber:
    """Name the reason for which a text without a digit holds no number."""
    if not text.strip():
        return NoNumber.EMPTY
    return NoNumber.NOT_FINITE if NOT_FINITE.search(text) else NoNumber.NO_DIGITS


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous blanks: HotpotQA's official normalisation.

    Source: ``hotpot_evaluate_v1.py`` of github.com/hotpotqa/hotpot.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def official_exact_match(prediction: str, gold: str) -> bool:
    """Whether both normalise to the same text, as HotpotQA reports it; so ``1.5`` equals ``15`` and ``the`` ``a``."""
    return normalize_answer(prediction) == normalize_answer(gold)


def exact_match(prediction: str, gold: str) -> bool:
    """Whether both say the same, fit for a reward: the official match, guarded.

    Two deviations from the official one: an empty normalised answer equals nothing, and numbers are compared as
    numbers. Two plain numbers are equal by value (``3.0`` and ``3``, but not ``1.5`` and ``15``, nor ``-5`` and
    ``5``); the numbers within equal texts must agree one by one (not ``1.95 m`` and ``195 m``).
    """
    one, other, normal = prediction.strip(), gold.strip(), normalize_answer(prediction)
    if not normal or one == other:
        return bool(normal)
    plain_one, plain_other = NUMBER.fullmatch(one), NUMBER.fullmatch(other)
    if plain_one and plain_other:
        value = number_of(plain_one)
        return isinstance(value, Fraction) and value == number_of(plain_other)
    return normal == normalize_answer(gold) and numbers_of(one) == numbers_of(other)


def numbers_of(text: str) -> list[Fraction | NoNumber]:
    """The values of all numbers in a text, in order."""
    return [number_of(match) for match in NUMBER.finditer(text)]


def f1(prediction: str, gold: str) -> float:
    """The harmonic mean of precision and recall over normalised words: HotpotQA's official F1.

    Where either side is yes, no or noanswer, anything but an exact match is 0. An empty side is 0.
    """
    one, other = normalize_answer(prediction), normalize_answer(gold)
    if one != other and (one in CLOSED_ANSWERS or other in CLOSED_ANSWERS):
        return 0.0
    words, gold_words = one.split(), other.split()
    common = sum((Counter(words) & Counter(gold_words)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)
