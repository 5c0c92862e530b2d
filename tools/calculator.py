"""A calculator with a parser of its own: exact fractions, a budget before every operation, and no ``eval``."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import NamedTuple

from forkgym.tools.base import ToolError, as_tool

MAX_CHARACTERS = 1_000
MAX_DEPTH = 50  # open parentheses and powers; the parser recurses six frames for each
MAX_BITS = 1_024  # of a numerator or denominator: about the range of a double
MAX_DIGITS = 308  # what fits into these bits for sure; only told to the model
MAX_EXACT_PLACES = 20
ROUNDED_DIGITS = 10

Number = int | Fraction  # whole numbers stay ``int``: several times faster, and a Fraction equals them

TOKEN = re.compile(
    r"""
    (?P<number>
        (?: (?: [1-9][0-9]{0,2} (?:,[0-9]{3})+ (?![0-9,]) | [0-9]+ ) (?:\.[0-9]*)? | \.[0-9]+ )
        (?: [eE][+-]?[0-9]+ )?
    )
    | (?P<operator> \*\* | // | [-+*/%^()×÷−] )
    | (?P<space> [\ \t\r\n]+ )
    | (?P<word> [A-Za-z_][A-Za-z_0-9]* )
    | (?P<other> . )
    """,
    re.VERBOSE,
)
SYNONYMS = {"^": "**", "×": "*", "÷": "/", "−": "-"}
LEVELS = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
UNDERSTOOD = "only numbers such as 1,000.5, the operators + - * / // % ** and parentheses are"


def calculator(expression: str) -> str:
    """Evaluate arithmetic exactly: numbers, + - * / // % ** and parentheses. 1/3 is rounded to 10 digits."""
    return format_number(evaluate(expression))


CALCULATOR = as_tool(calculator, inline=True)


def evaluate(expression: str) -> Fraction:
    """Evaluate an arithmetic expression exactly.

    Numbers are written ``7``, ``1,000``, ``2.5``, ``.5``, ``5.`` or ``1e3``, with ASCII digits. From the loosest to the
    tightest: ``+ -``; ``* / // %``; signs; ``**``, from the right, with a whole exponent (so ``-2**2`` is -4). ``//``
    and ``%`` round down as in Python; ``%`` is never a percentage. ``^`` is a power, and ``× ÷ −`` are read too. What
    follows an equals sign is ignored, because models copy ``3+4=7`` from annotated solutions: it is neither checked
    nor repeated.

    Numerators and denominators are bounded by ``MAX_BITS``, which is checked before each operation, so the time of a
    call is bounded by the length of the expression.

    Raises:
        ToolError: It is not such an expression, divides by zero, or exceeds a limit. The message quotes at most one
            word or character of the expression, and no angle bracket.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ToolError(f"the expression has {len(expression)} characters; at most {MAX_CHARACTERS} are allowed")
    return Fraction(Parser(tokenize(expression.partition("=")[0])).parse())


def format_number(value: Fraction) -> str:
    """Write a number so that a model can go on with it, in the form that ``evaluate`` reads.

    A whole number is written with all its digits, and a decimal of at most ``MAX_EXACT_PLACES`` places exactly
    (``0.5``). Anything else is rounded, half to even, to ``ROUNDED_DIGITS`` places, or below 1 to as many significant
    digits: ``1/3`` is ``0.3333333333``. Rounded numbers below 1e-10 are written like ``3.333333333e-21``.
    """
    if value.denominator == 1:
        return str(value.numerator)
    places = decimal_places(value.denominator)
    if places is not None and places <= MAX_EXACT_PLACES:
        digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
        return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    whole = abs(value.numerator) // value.denominator
    context = Context(prec=ROUNDED_DIGITS + (len(str(whole)) if whole else 0))
    rounded = context.divide(Decimal(value.numerator), Decimal(value.denominator)).normalize(context)
    return f"{rounded:e}" if rounded.adjusted() < -ROUNDED_DIGITS else f"{rounded:f}"


def decimal_places(denominator: int) -> int | None:
    """How many places the decimal expansion of a reduced fraction has; None where it never ends."""
    twos = (denominator & -denominator).bit_length() - 1
    rest = denominator >> twos
    fives = 0
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    return max(twos, fives) if rest == 1 else None


class Token(NamedTuple):
    """A piece of an expression.

    Attributes:
        symbol: An operator, a parenthesis, ``number`` or ``end``.
        value: The value of a number, 0 for the rest.
        position: Of its first character, from 1.
    """

    symbol: str
    value: Number
    position: int


def tokenize(expression: str) -> list[Token]:
    """Split an expression into tokens; the last one is ``end``.

    Raises:
        ToolError: A character or word that arithmetic does not know, or a number beyond the budget.
    """
    tokens: list[Token] = []
    for match in TOKEN.finditer(expression):
        kind, text, position = match.lastgroup, match[0], match.start() + 1
        if kind == "number":
            tokens.append(Token("number", read_number(text, position), position))
        elif kind == "operator":
            tokens.append(Token(SYNONYMS.get(text, text), 0, position))
        elif kind != "space":
            raise ToolError(f"{quoted(text)} at character {position} is not understood; {UNDERSTOOD}")
    tokens.append(Token("end", 0, len(expression) + 1))
    return tokens


def read_number(text: str, position: int) -> Number:
    """Turn a literal into its exact value."""
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    shift = int(exponent or "0") - len(decimals)  # the value is the digits without the point, times 10**shift
    digits = (whole + decimals).lstrip("0")
    if not digits:
        return 0
    # A digit is more than three bits, so this refuses nothing that fits, and whatever would take long to compute.
    check_budget(3 * (max(len(digits) + shift, -shift) - 1), position)
    value: Number = int(digits) * 10**shift if shift >= 0 else Fraction(int(digits), 10**-shift)
    check_budget(max(value.numerator.bit_length(), value.denominator.bit_length()), position)
    return value


def quoted(text: str) -> str:
    """Name what a message is about without writing anything that could be read as a marker."""
    if re.fullmatch(r"[ -~]+", text) and not re.search(r"[<>]", text):
        return f"'{text[:12]}'"
    return unicodedata.name(text[0], f"U+{ord(text[0]):04X}").lower()


class Parser:
    """Evaluates tokens while it reads them, by recursive descent."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.next = 0
        self.depth = 0

    def parse(self) -> Number:
        """The value of all tokens."""
        value = self.terms(lowest=1)
        token = self.tokens[self.next]
        if token.symbol == "end":
            return value
        if token.symbol == ")":
            raise ToolError(f"')' at character {token.position} closes nothing")
        raise ToolError(f"an operator is missing before character {token.position}")

    def terms(self, lowest: int) -> Number:
        """Operands joined by binary operators of at least the level ``lowest``, from the left."""
        value = self.signed()
        while (level := LEVELS.get(self.tokens[self.next].symbol, 0)) >= lowest:
            operator = self.take()
            value = combine(operator, value, self.terms(level + 1))
        return value

    def signed(self) -> Number:
        """Any number of signs, then a power."""
        negative = False
        while (symbol := self.tokens[self.next].symbol) in ("+", "-"):
            negative ^= symbol == "-"
            self.next += 1
        value = self.power()
        return -value if negative else value

    def power(self) -> Number:
        """An operand, raised to the power that may follow."""
        base = self.operand()
        if self.tokens[self.next].symbol != "**":
            return base
        operator = self.take()
        return raise_to(base, self.nested(self.signed, operator), operator.position)

    def operand(self) -> Number:
        """A number, or an expression in parentheses."""
        token = self.take()
        if token.symbol == "number":
            return token.value
        if token.symbol != "(":
            raise self.missing_number(token)
        value = self.nested(lambda: self.terms(lowest=1), token)
        closing = self.take()
        if closing.symbol == ")":
            return value
        if closing.symbol == "end":
            raise ToolError(f"'(' at character {token.position} is never closed")
        raise ToolError(f"an operator is missing before character {closing.position}")

    def nested(self, read: Callable[[], Number], token: Token) -> Number:
        """Read one level deeper, where the limit allows it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ToolError(f"nested more than {MAX_DEPTH} deep at character {token.position}")
        value = read()
        self.depth -= 1
        return value

    def take(self) -> Token:
        """The next token, and move on."""
        token = self.tokens[self.next]
        self.next += 1
        return token

    def missing_number(self, token: Token) -> ToolError:
        """What to say where a number should stand and ``token`` does."""
        found = "the expression ends" if token.symbol == "end" else f"'{token.symbol}' stands"
        message = f"{found} at character {token.position}, where a number was expected"
        if self.next >= 2 and self.tokens[self.next - 2].symbol == "%":
            message += "; % is the remainder of a division: for a percentage divide by 100"
        return ToolError(message)


def combine(operator: Token, left: Number, right: Number) -> Number:
    """Carry out a binary operation other than a power, if its result is sure to fit into the budget."""
    symbol, position = operator.symbol, operator.position
    check_budget(result_bits(symbol, left, right), position)
    if symbol == "+":
        return left + right
    if symbol == "-":
        return left - right
    if symbol == "*":
        return left * right
    if right == 0:
        raise ToolError(f"division by zero at character {position}")
    if symbol == "//":
        return left // right
    if symbol == "%":
        return left % right
    quotient = Fraction(left, right)
    return quotient.numerator if quotient.denominator == 1 else quotient


def result_bits(symbol: str, left: Number, right: Number) -> int:
    """A bound on the size of a result's numerator and denominator before they are reduced, bits."""
    a, b = left.numerator.bit_length(), left.denominator.bit_length()
    c, d = right.numerator.bit_length(), right.denominator.bit_length()
    if symbol == "*":
        return max(a + c, b + d)
    if symbol in ("/", "//"):
        return max(a + d, b + c)
    return max(a + d, b + c, b + d) + 1  # both over the product of the denominators, then one carry


def raise_to(base: Number, exponent: Number, position: int) -> Number:
    """Raise to a whole power, if the result fits into the budget."""
    if exponent.denominator != 1:
        raise ToolError(f"the power at character {position} has an exponent that is not a whole number")
    steps = exponent.numerator
    if base == 0 and steps < 0:
        raise ToolError(f"division by zero at character {position}")
    if base not in (-1, 0, 1):
        check_budget(abs(steps), position)  # first: it keeps the product below within the range of a float
        check_budget(math.floor(abs(steps) * math.log2(max(abs(base.numerator), base.denominator))) + 1, position)
    result: Number = (base if steps >= 0 else Fraction(base)) ** steps  # an int to a negative power is a float
    return result


def check_budget(bits: int, position: int) -> None:
    """Refuse an operation before it is carried out."""
    if bits > MAX_BITS:
        raise ToolError(f"the result at character {position} would have more than {MAX_DIGITS} digits")
