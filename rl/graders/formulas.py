"""Formulas of multi graders: arithmetic over the results of named graders.

    0.7 * exact + 0.3 * min(style, 1)

Numbers, names of graders, `+ - * / ^`, parentheses and the functions min, max, abs, floor, ceil, exp, sqrt and log.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tandem.rl.graders.errors import GraderError

MAX_LENGTH = 2_000
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.BitXor: math.pow,
    ast.Pow: math.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def check_formula(formula: str, names: Collection[str]) -> None:
    """Raise GraderError for a formula with anything else, or with the name of no grader."""
    _check(_parsed(formula), set(names))


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """Return the formula's value. Raise GraderError, also for one that isn't a finite number, like 1 / 0."""
    tree = _parsed(formula)
    _check(tree, set(values))
    try:
        result = float(_value(tree, values))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise _broken(f"it has no value for {dict(values)}: {error}") from None
    if not math.isfinite(result):
        raise _broken(f"its value for {dict(values)} is {result}")
    return result


def _parsed(formula: str) -> ast.expr:
    if len(formula) > MAX_LENGTH:
        raise _broken(f"it is longer than {MAX_LENGTH} characters")
    try:
        # Python has no ^ for powers, and binds it more loosely than the other operators.
        return ast.parse(formula.replace("^", "**").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _broken("it isn't arithmetic; write something like 0.5 * first + 0.5 * second") from None


def _check(node: ast.expr, names: set[str]) -> None:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return
        case ast.Name(id=name):
            if name not in names:
                raise _broken(f"there is no grader {name!r}; the graders are {', '.join(sorted(names))}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, names)
            _check(right, names)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, names)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
            for argument in arguments:
                _check(argument, names)
        case _:
            raise _broken(f"{ast.unparse(node)[:80]!r} isn't supported; use + - * / ^ and {', '.join(_FUNCTIONS)}")


def _value(node: Any, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant():
            return float(str(node.value))
        case ast.Name():
            return values[node.id]
        case ast.BinOp():
            return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.UnaryOp():
            return _UNARY[type(node.op)](_value(node.operand, values))
    arguments = [_value(argument, values) for argument in node.args]
    function = _FUNCTIONS[node.func.id]
    return function(arguments) if function in (min, max) else function(*arguments)


def _broken(reason: str) -> GraderError:
    return GraderError("formula_parse_error", f"calculate_output: {reason}")
