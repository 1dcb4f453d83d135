"""ListOps (Nangia and Bowman, 2018) with the Long Range Arena's parameters: generate, parse, solve.

An expression is a tree of MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10) over
the digits; its class is its value. The definition follows the benchmark's generator
(google-research/long-range-arena, lra_benchmarks/data/listops.py): a node is an operator with
probability 1/4 and a digit otherwise, always a digit at the largest depth; an operator takes 2 to
`max_args` arguments; a tree is kept when its length is strictly within the limits. As in the
benchmark's token stream, an argument list ends with `]` and there are no parentheses.

Needs numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
# Token ids by symbol; 0 pads.
SYMBOLS = (*OPERATORS, END, *map(str, range(10)))
IDS = {symbol: number for number, symbol in enumerate(SYMBOLS, start=1)}

_OPERATOR_SHARE = 0.25


@dataclass(frozen=True)
class ListOpsConfig:
    """Which trees are generated. The defaults are the benchmark's.

    Attributes:
        max_depth: Levels of a tree.
        max_args: Most arguments of an operator.
        min_length: A tree has more tokens than this.
        max_length: A tree has fewer tokens than this.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000


def generate(config: ListOpsConfig, generator: np.random.Generator) -> tuple[list[str], int]:
    """One expression, as symbols, and its value 0..9."""
    while True:
        symbols: list[str] = []
        value = _tree(1, config, generator, symbols)
        if config.min_length < len(symbols) < config.max_length:
            return symbols, value


def solve(expression: str) -> int:
    """The value of an expression such as `[MAX 2 [MIN 4 7 ] 0 ]`.

    Raises:
        ValueError: It is not an expression; the message says where.
    """
    return evaluate(parse(expression))


def evaluate(symbols: list[str]) -> int:
    """The value of an expression's symbols.

    Raises:
        ValueError: They are no expression; the message says where.
    """
    stack: list[tuple[str, list[int]]] = [("", [])]
    for position, symbol in enumerate(symbols, start=1):
        if symbol in OPERATORS:
            stack.append((symbol, []))
        elif symbol != END:
            stack[-1][1].append(int(symbol))
        else:
            operator, values = stack.pop()
            if not operator or not values:
                raise ValueError(f"symbol {position}: `]` closes nothing")
            stack[-1][1].append(_apply(operator, values))
    if len(stack) > 1 or len(stack[0][1]) != 1:
        raise ValueError("the expression is not one closed list")
    return stack[0][1][0]


def parse(expression: str) -> list[str]:
    """The symbols of an expression; parentheses, which the benchmark's files have, are dropped.

    Raises:
        ValueError: A symbol is unknown.
    """
    spaced = expression.replace("(", " ").replace(")", " ").replace("]", " ] ").replace("[", " [")
    symbols = spaced.split()
    for position, symbol in enumerate(symbols, start=1):
        if symbol not in IDS:
            raise ValueError(f"symbol {position}: {symbol!r} is not one of {' '.join(SYMBOLS)}")
    return symbols


def encode(symbols: list[str]) -> NDArray[np.int64]:
    """The token ids of symbols."""
    return np.array([IDS[symbol] for symbol in symbols], dtype=np.int64)


def batch(
    config: ListOpsConfig, size: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random expressions as token ids `[size, longest]`, padded with 0, and their values."""
    drawn = [generate(config, generator) for _ in range(size)]
    longest = max(len(symbols) for symbols, _ in drawn)
    tokens = np.zeros((size, longest), dtype=np.int64)
    for row, (symbols, _) in zip(tokens, drawn, strict=True):
        row[: len(symbols)] = encode(symbols)
    return tokens, np.array([value for _, value in drawn])


def _tree(
    depth: int, config: ListOpsConfig, generator: np.random.Generator, symbols: list[str]
) -> int:
    """Append a tree's symbols and return its value."""
    if depth >= config.max_depth or generator.random() > _OPERATOR_SHARE:
        value = int(generator.integers(10))
        symbols.append(str(value))
        return value
    operator = OPERATORS[generator.integers(len(OPERATORS))]
    symbols.append(operator)
    count = generator.integers(2, config.max_args, endpoint=True)
    values = [_tree(depth + 1, config, generator, symbols) for _ in range(count)]
    symbols.append(END)
    return _apply(operator, values)


def _apply(operator: str, values: list[int]) -> int:
    match operator:
        case "[MIN":
            return min(values)
        case "[MAX":
            return max(values)
        case "[MED":
            return int(np.median(values))
        case _:
            return sum(values) % 10
