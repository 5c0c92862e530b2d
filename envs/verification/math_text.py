r"""What the text of a mathematical answer says by itself: one tidy expression, and its exact value if it is a number.

Pure functions, linear in the length of what a model wrote. `verifier` compares two answers with them first, and asks
a computer algebra system only about what they leave open.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from math import gcd
from types import MappingProxyType

from forkgym.envs.grading import LATEX_FRACTION, MAX_NUMBER_LENGTH, NUMBER, NoNumber, final_answer, number_of
from forkgym.tools.calculator import decimal_places

MAX_ANSWER_CHARACTERS = 1_000  # the longest answers of MATH, matrices, have about 150
LEAST_DECIMAL_PLACES = 6  # from which on a decimal may stand for a fraction that has none of finite length
FLOAT_DIGITS = 15  # significant ones that a double keeps
LEAST_WORD_LETTERS = 4
SHORT_WORDS = frozenset({"yes", "no", "odd", "all", "one", "two", "six", "ten"})
CLOSING = MappingProxyType({"(": ")", "{": "}"})

# Full-width forms are ASCII on a wide grid, as East Asian keyboards write it. Digits of other scripts are not read.
CHARACTERS: Mapping[int, str] = MappingProxyType(
    {
        **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
        **{ord(digit): f"^{{{value}}}" for value, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **{ord(sign): "-" for sign in "\u2212\u2013"},
        **{ord(space): r"\," for space in "\u00a0\u2009\u202f"},  # they may group thousands
        ord("\u3000"): " ",
        ord("×"): r"\times ",
        ord("·"): r"\cdot ",
        ord("÷"): r"\div ",
        ord("√"): r"\sqrt",
        ord("π"): r"\pi ",
        ord("∞"): r"\infty ",
        ord("°"): r"^\circ ",
        ord("≤"): r"\le ",
        ord("≥"): r"\ge ",
        ord("≠"): r"\ne ",
        ord("±"): r"\pm ",
        ord("∪"): r"\cup ",
        ord("∩"): r"\cap ",
        ord("∅"): r"\emptyset ",
    }
)
UNREADABLE_CATEGORIES = frozenset({"Nd", "Nl", "No", "Cf", "Cc", "Co", "Cs"})  # digits, and what cannot be seen

LEAD_IN = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+)?(?:final\s+|correct\s+)?answer\b\s*(?:is\b|[:=])?:?", re.I
)
MEANINGLESS = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![A-Za-z])|\\?\$|(?<!\\)\\[()\[\]]")
THOUSANDS = re.compile(r"(?<=\d)(?:\\[, ]|\{,\})(?=\d{3}(?!\d))")
NEGATIVE_SPACE = re.compile(r"(?<!\\)\\!")
SPACE = re.compile(r"(?:~|(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|\s)+")
TEXT_COMMAND = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|textbf|textit|textrm|textnormal|mbox|operatorname)\s*(?=\{)"
)
FRACTION_COMMAND = re.compile(r"\\[dtc]frac(?![A-Za-z])")
SHORT_FRACTION = re.compile(r"\\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})")
BARE_NAME = re.compile(r"(?<![\\A-Za-z])(pi|sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp)(?![A-Za-z])")
ROOT_SIGN = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", re.ASCII)
ROOT_BRACKET = re.compile(r"\\sqrt\s*\(")
EMPHASIS = re.compile(r"\*\*([^*]+)\*\*")
PLAIN_PRODUCT = re.compile(r"(?<=\d) ?\* ?(?=[A-Za-z])")  # the library takes ``9i`` for complex, ``9*i`` not
NOT_EQUAL = re.compile(r"\\not\s*= ?")
WRAPPER = re.compile(r"(?:\\text\s*)?\{")
SET_BUILDER = re.compile(
    r"\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\||\\mid|:)\s*(\S[^{}|]*?)\s*\\\}"
)
WRAPPED = re.compile(r"\\text\s*\{([^{}]*)\}")
SPACE_BUT_BETWEEN_DIGITS = re.compile(r"(?<!\d) +| +(?!\d)")

SHORT_UNIT = r"(?:in|ft|yd|mi|mm|cm|km|kg|oz|lb|hr|mph|m(?=\s*/)|(?<=/)[smh]|(?<=/ )[smh])"
UNIT_WORD = r"(?:[A-Za-z]{4,}|am|pm|day|min|sec|deg|rad|men|USD|EUR)"  # shorter ones may be products of variables
UNIT = re.compile(
    r"(?:\^\s*\{?\s*\\circ\s*\}?\s*[CF]?|\\text\s*\{(?!\s*(?:or|and|not)\b)[^{}\d]*\}(?:\s*\^\s*\{?[23]\}?)?"
    rf"|(?<=[\d}}])(?:\s+(?:sq|{UNIT_WORD}))?(?:\s+{UNIT_WORD}|\s*{SHORT_UNIT}(?:\s*/\s*{SHORT_UNIT})?)"
    r"(?:\s*\^\s*\{?[23]\}?)?)\s*\Z"
)
LETTER_UNIT = re.compile(r"(?<=\d)\s*[mgs]\Z")  # after a number; elsewhere it is a variable
PERCENT = re.compile(r"\\?%\s*\Z|\s*(?:\\text\s*\{\s*)?\bpercent(?:\s*\})?\s*\Z", re.I)
MIXED = re.compile(r"([-+]?)\s*(\d+)\s+(\d+)/(\d+)", re.ASCII)
POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))\Z", re.ASCII)
REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\overline\s*\{(\d+)\}", re.ASCII)
CURRENCIES = "€£¥₹"

PROSE_WORD = re.compile(r"[^\W\d_]{3,}")  # ``ab - cd`` are products
NOT_A_NUMBER = re.compile(r"\bnan\b|\bn/a\b", re.I)
MATHEMATICS = re.compile(r"[\d\\=<>^_(\[{|/*+]")
FUNCTION = r"log|ln|lg|exp|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|[lr]?floor|[lr]?ceil|[lr]?vert|[lr]?Vert|Re|Im|arg"
LEFT_TO_DO = re.compile(
    r"(?<=[\w)}\]!])\s*(?:[-+*!]|\\(?:cdot|times|div|pm|mp|bmod|pmod|mod)(?![A-Za-z]))"
    r"|\\(?:pm|mp|sum|prod|i{1,3}nt|oint|lim|d?binom|tbinom|gcd|det|max|min)(?![A-Za-z])"
    rf"|\\(?:{FUNCTION})(?![A-Za-z])|\||\\frac\s*\{{\s*(?:\\text\s*\{{)?d\b"
)
EQUALS = re.compile(r"(?<![<>!=:\\])=(?!=)")
SEVERAL = re.compile(r"[,;]|\b(?:or|and)\b|\\(?:lor|land|vee|wedge|pm|mp)(?![A-Za-z])")
FRACTION_LINE = re.compile(r"/|\\frac")
TERMS = re.compile(r"(\d+)/(\d+)|\\frac\{-?(\d+)\}\{(\d+)\}", re.ASCII)
PRODUCT = re.compile(r"[{}* ]|\\(?:cdot|times)(?![A-Za-z])")
CHOICE = re.compile(r"(?:\\text\s*\{\s*)?\(?([A-J])(?:\)?\s*\}?|(?:\)\s*[.:]?|[.:])\s*\}?\s*(\S.*))", re.DOTALL)
LETTER = re.compile(r"(?<![\\A-Za-z])[A-J](?![A-Za-z])")
NAMED = re.compile(r"\s*((?:\\[A-Za-z]+|[A-Za-z])(?:_\{?\w+\}?)?)\s*=([^=<>]+)")
LIST_SEPARATOR = re.compile(r"[,;]|\\text\s*\{\s*and\s*\}|\band\b")
BARE_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")


def tidy(answer: str) -> str | None:
    r"""One expression out of an answer, in LaTeX; None where it is no text that could be one.

    What the last ``\boxed{}`` holds, or the whole text without "The answer is" or ``####``. Dollar signs, sizes of
    brackets and alignment go, and one way to write fractions, text and spaces is left. Full-width forms and usual
    signs such as ``√`` and ``≤`` become ASCII and commands. An answer that is longer than ``MAX_ANSWER_CHARACTERS``,
    or that has digits of another script or invisible characters, is None: two readers could see different answers.

    >>> tidy(r"Thus the answer is \boxed{\dfrac{1}{2}\ \mathrm{cm}}.")
    '\\frac{1}{2} \\text{cm}'
    """
    text = final_answer(answer)
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    if not text.isascii():
        text = ROOT_SIGN.sub(r"\\sqrt{\1}", text).translate(CHARACTERS)
    if any(map(cannot_be_read, text)):
        return None
    text = EMPHASIS.sub(r"\1", text)
    lead_in = LEAD_IN.match(text)
    if lead_in is not None:
        text = text[lead_in.end() :]
    text = THOUSANDS.sub("", NEGATIVE_SPACE.sub("", text)).replace("{,}", ",")
    text = SPACE.sub(" ", MEANINGLESS.sub(" ", text))
    text = FRACTION_COMMAND.sub(r"\\frac", TEXT_COMMAND.sub(r"\\text", text))
    text = NOT_EQUAL.sub(r"\\ne ", SHORT_FRACTION.sub(with_braces, text).replace("**", "^").replace("==", "="))
    text = unwrapped(PLAIN_PRODUCT.sub("", BARE_NAME.sub(r"\\\1", text)).strip().removesuffix(".").rstrip())
    text = with_braced_roots(text)
    builder = SET_BUILDER.fullmatch(text)
    return text if builder is None else builder[2]


def unwrapped(text: str) -> str:
    r"""Take off braces, and ``\text{}`` with more than words in it, that go around all of a text."""
    while wrapper := WRAPPER.match(text):
        inside = text[wrapper.end() : -1]
        is_text = wrapper.end() > 1 and MATHEMATICS.search(inside) is None
        if is_text or closing(text, wrapper.end() - 1) != len(text) - 1:
            break
        text = inside.strip()
    return text


def with_braced_roots(text: str) -> str:
    r"""Write ``\sqrt(x+1)`` as ``\sqrt{x+1}``."""
    characters = list(text)
    for found in ROOT_BRACKET.finditer(text):
        end = closing(text, found.end() - 1)
        if end >= 0:
            characters[found.end() - 1], characters[end] = "{", "}"
    return "".join(characters)


def closing(text: str, place: int) -> int:
    """Where the bracket closes that opens at a place; -1 where it does not."""
    opens, closes = text[place], CLOSING[text[place]]
    depth = 0
    while place < len(text):
        if text[place] == "\\":
            place += 1  # an escaped brace is none
        elif text[place] == opens:
            depth += 1
        elif text[place] == closes:
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return -1


def cannot_be_read(character: str) -> bool:
    """Whether a character is a digit that is not ASCII, or one that nobody sees; circled ones name choices."""
    if " " <= character <= "~" or character in "\t\n\r" or "\u2460" <= character <= "\u24ff":
        return False
    return unicodedata.category(character) in UNREADABLE_CATEGORIES


def with_braces(fraction: re.Match[str]) -> str:
    r"""Write ``\frac12`` as ``\frac{1}{2}``."""
    above, below = fraction[1] or fraction[2] or "", fraction[3] or fraction[4] or ""
    return rf"\frac{{{above}}}{{{below}}}"


def key(text: str) -> str:
    r"""What two tidy texts share exactly if they are the same but for spaces, ``\text`` and the case of a word.

    A space between two digits stays: ``1 1/2`` is not ``11/2``.
    """
    text = SPACE_BUT_BETWEEN_DIGITS.sub("", WRAPPED.sub(r"\1", text))
    if len(text) == 3 and text[0] == "(" and text[2] == ")" and text[1].isalpha():
        return text[1]  # the letter of a choice
    return text.casefold() if len(text) > 1 and text.isalpha() else text


def value_of(text: str) -> Fraction | NoNumber | None:
    r"""The exact value of a tidy text that is one number and nothing else; None where it is not.

    It may have a unit, which means nothing: ``10 \text{ cm}``, ``90^\circ``, ``12 dollars``, ``50\%``. Read are what
    `number_in` reads, mixed numbers (``1\frac{1}{2}`` and ``1 1/2`` are 3/2) and powers of ten
    (``3 \times 10^{8}``), and repeating decimals (``0.1\overline{6}`` is 1/6). A number beyond the limits of
    `number_of` is a `NoNumber`.
    """
    text = LETTER_UNIT.sub("", without_unit(PERCENT.sub("", text))).lstrip(CURRENCIES)
    repeating = REPEATING.fullmatch(text)
    if repeating is not None:
        return repeating_decimal(repeating)
    wrapped = WRAPPED.fullmatch(text)
    text = LATEX_FRACTION.sub(r" \1/\2", wrapped[1].strip() if wrapped else text).strip()
    mixed = MIXED.fullmatch(text)
    if mixed is not None:
        sign, whole, above, below = mixed.groups()
        part = number_at(f"{above}/{below}")
        number = number_at(whole)
        if isinstance(part, Fraction) and isinstance(number, Fraction):
            return -(number + part) if sign == "-" else number + part
        return part if isinstance(part, NoNumber) else number
    text = POWER_OF_TEN.sub(lambda power: f"e{power[1] or power[2]}", text)
    return number_at(re.sub(r"^([-+])\s+", r"\1", text))


def without_unit(text: str) -> str:
    r"""Drop the unit at the end of a tidy text: ``2\sqrt{3} \text{ cm}`` and ``30^\circ``; a unit alone stays."""
    return UNIT.sub("", text).strip() or text


def repeating_decimal(match: re.Match[str]) -> Fraction | NoNumber:
    """The exact value of one match of ``REPEATING``."""
    sign, whole, digits, period = match.groups()
    if len(match[0]) > MAX_NUMBER_LENGTH:
        return NoNumber.TOO_LONG
    value = Fraction(int(whole + digits or "0")) + Fraction(int(period), 10 ** len(period) - 1)
    return value * Fraction(-1 if sign == "-" else 1, 10 ** len(digits))


def number_at(text: str) -> Fraction | NoNumber | None:
    """The value of a text that is one plain number."""
    found = NUMBER.fullmatch(text)
    return None if found is None else number_of(found)


def same_value(gold: str, prediction: str) -> bool | None:
    r"""Whether two tidy texts are equal numbers; None where one of them is no number.

    Exactly, with two provisions. Where one side alone has a percent sign, 50 % is 50 and 0.5. A gold fraction without
    a finite decimal may be answered by one of ``LEAST_DECIMAL_PLACES`` places or more, rounded or cut: 0.333333 is
    1/3, and 0.333 is not.
    """
    one, other = value_of(gold), value_of(prediction)
    if one is None or other is None:
        return None
    if isinstance(one, NoNumber) or isinstance(other, NoNumber):
        return False
    values = [(one, other)]
    percent, other_percent = PERCENT.search(gold) is not None, PERCENT.search(prediction) is not None
    if percent != other_percent:
        values.append((one / 100, other) if percent else (one, other / 100))
    return any(left == right or is_decimal_of(left, right) for left, right in values)


def is_decimal_of(fraction: Fraction, decimal: Fraction) -> bool:
    """Whether ``decimal`` is a finite decimal, rounded or cut, of a fraction that has none.

    Of a float's many digits the first ``FLOAT_DIGITS`` count: 10/3 is 3.3333333333333335 to Python.
    """
    places = decimal_places(decimal.denominator)
    if places is None or places < LEAST_DECIMAL_PLACES or decimal_places(fraction.denominator) is not None:
        return False
    return abs(fraction - decimal) < max(Fraction(1, 10**places), abs(fraction) * Fraction(1, 10**FLOAT_DIGITS))


def is_verifiable(gold: str) -> bool:
    """Whether answers can be held against this gold: a number, mathematics, or a word.

    Not verifiable are nothing at all, nan, and bare prose of two words or more such as "see solution": it says where
    the answer is, and whoever repeats it has not found it. Sources of tasks leave such rows out.
    """
    text = tidy(gold)
    if not text or NOT_A_NUMBER.search(text):
        return False
    return MATHEMATICS.search(text) is not None or len(PROSE_WORD.findall(text)) < 2


def is_word(text: str) -> bool:
    r"""Whether a tidy text is words, such as ``\text{Evelyn}`` or ``even``, and not a product of a few variables."""
    letters = key(text)
    if letters in SHORT_WORDS:
        return True
    return letters.isalpha() and (len(letters) >= LEAST_WORD_LETTERS or WRAPPED.fullmatch(text) is not None)


def left_to_do(text: str) -> bool:
    r"""Whether arithmetic is left to do in a tidy text: ``2+2``, ``5!`` or ``\sum_{k=1}^{9} k`` restate a question."""
    return LEFT_TO_DO.search(text) is not None


def sides(text: str) -> tuple[str, ...]:
    r"""The expressions that one chain of equations claims to be equal, without the name on its left.

    ``x = 2`` and ``f(x) = 2`` give ``2``; ``6/3 = 2`` gives both. A text without an equals sign, or with several
    answers, is one expression.
    """
    parts = [part.strip() for part in EQUALS.split(text)]
    if len(parts) < 2 or SEVERAL.search(text) or not all(parts):
        return (text,)
    first = parts[0]
    named = value_of(first) is None and (BARE_LETTER.search(first) or not any(map(str.isdigit, first)))
    return tuple(parts[1:] if named else parts)


def choice(text: str) -> tuple[str, str]:
    r"""The letter and the rest of a tidy text that names a choice; an empty letter where it names none, or several.

    ``(C) 5``, ``C: 5`` and ``\text{C. }5`` give C and 5; ``C`` and ``\text{(C)}`` give C and nothing.
    """
    found = CHOICE.fullmatch(text)
    rest = "" if found is None or found[2] is None else found[2]
    return ("", text) if found is None or LETTER.search(rest) else (found[1], rest)


def named_values(text: str) -> str | None:
    """The values of ``x = 2, y = 3`` as ``(2,3)``; None for anything but two or more different names."""
    found = [NAMED.fullmatch(part) for part in LIST_SEPARATOR.split(text)]
    values = {part[1]: part[2].strip() for part in found if part is not None}
    return f"({','.join(values.values())})" if 2 <= len(values) == len(found) else None


def is_reduced(fraction: str) -> bool:
    """Whether a fraction is written in lowest terms."""
    terms = TERMS.search(fraction)
    if terms is None:
        return False
    above, below = (int(term) for term in terms.groups() if term is not None)
    return gcd(above, below) == 1


def restates(prediction: str, question: str) -> bool:
    r"""Whether a tidy prediction is an expression of the question, copied and not worked out.

    A number in its final form is none: a question may name its own answer. ``\frac{4}{6}`` can be reduced. Braces,
    spaces and signs of multiplication make no difference.
    """
    value, expression = value_of(prediction), key(prediction)
    if value is not None and (FRACTION_LINE.search(expression) is None or is_reduced(expression)):
        return False
    tidied = SPACE.sub(" ", MEANINGLESS.sub(" ", question.translate(CHARACTERS)))
    tidied = SHORT_FRACTION.sub(with_braces, FRACTION_COMMAND.sub(r"\\frac", TEXT_COMMAND.sub(r"\\text", tidied)))
    copy, asked = PRODUCT.sub("", expression), PRODUCT.sub("", WRAPPED.sub(r"\1", tidied))
    return len(copy) >= 3 and re.search(rf"(?<![\d.]){re.escape(copy)}(?!\.?\d)", asked) is not None
