"""The calculator tool: exact arithmetic on what a model wrote.

It walks the parsed expression and never evaluates code. Every number it makes is bounded, and a power
is bounded before it is computed, so no input takes noticeable time or memory.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

from rollout.environment import ToolError

MAX_EXPRESSION_CHARS = 120
MAX_BITS = 128
"""Of a numerator and of a denominator."""
SIGNIFICANT_DIGITS = 12
"""A result with more decimals is rounded to so many digits."""

_ALLOWED = "only numbers, + - * / // % ** and parentheses"
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


def calculator(expression: str) -> str:
    """The value of an expression of + - * / // % ** and parentheses; ToolError says what is wrong.

    Whole values come back as integers, others as decimals without trailing zeros.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ToolError(f"expression longer than {MAX_EXPRESSION_CHARS} characters")
    try:
        parsed = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError("cannot read the expression") from None
    return format_number(_evaluate(parsed.body, expression.strip()))


def format_number(value: Fraction) -> str:
    """Integers in full; other values as plain decimals of at most SIGNIFICANT_DIGITS digits."""
    if value.denominator == 1:
        return str(value.numerator)
    rounded = Context(prec=SIGNIFICANT_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _evaluate(node: ast.expr, source: str) -> Fraction:
    match node:
        case ast.Constant():
            text = ast.get_source_segment(source, node) or ""
            if not _NUMBER.fullmatch(text):
                raise ToolError(f"not a number: {text[:20]}")
            return _bounded(Fraction(text))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, source)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, source)
        case ast.BinOp(left=left, op=symbol, right=right):
            return _apply(symbol, _evaluate(left, source), _evaluate(right, source))
        case _:
            raise ToolError(_ALLOWED)


def _apply(symbol: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    if isinstance(symbol, ast.Pow):
        return _power(left, right)
    compute = _OPERATIONS.get(type(symbol))
    if compute is None:
        raise ToolError(_ALLOWED)
    try:
        return _bounded(Fraction(compute(left, right)))
    except ZeroDivisionError:
        raise ToolError("division by zero") from None


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("the exponent must be a whole number")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    if abs(exponent) > MAX_BITS:  # so that no power has more than MAX_BITS ** 2 bits
        raise ToolError("number too large")
    return _bounded(Fraction(base**exponent.numerator))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise ToolError("number too large")
    return value
