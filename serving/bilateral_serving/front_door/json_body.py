"""JSON body checks before Triton parses it: depth, shared-memory parameters, sizes of tensors."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_SIGN = re.compile(rb'["\[\]{}]')
_SHAPE = re.compile(rb'"shape"\s*:\s*\[([^\]]*)\]')
_MOST_AXES, _LONGEST_NUMBER = 64, 20
_NUMBER = re.compile(rb"-?\d+")


def is_deeper_than(limit: int, body: bytes) -> bool:
    """Return whether arrays and objects are nested more than `limit` deep, in valid JSON or not."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    depth = position = 0
    while (sign := _SIGN.search(body, position)) is not None:
        position = sign.end()
        if sign[0] == b'"':
            position = _end_of_string(body, position)
        elif sign[0] in b"[{":
            depth += 1
            if depth > limit:
                return True
        else:
            depth -= 1
    return False


def refers_to_shared_memory(body: bytes) -> bool:
    """Return whether an object has a key of a shared-memory parameter.

    Raises:
        ValueError: It may have one, and is not valid JSON.
    """
    if b"shared_memory" not in body and b"\\u" not in body:
        return False
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or any(key.startswith("shared_memory") for key, _ in pairs)

    json.loads(body, object_pairs_hook=look)
    return found


def largest_tensor(body: bytes) -> int:
    """Return the elements of the largest tensor that an inference request says it has.

    Raises:
        ValueError: A shape may be written with escapes, and it is not valid JSON.
    """
    if b"\\u" in body:  # a name can be written so, and then only JSON's reader finds it
        body = json.dumps(json.loads(body)).encode()
    shapes = (_NUMBER.findall(found[1]) for found in _SHAPE.finditer(body))
    return max(map(_elements, shapes), default=0)


def _elements(numbers: list[bytes]) -> int:
    if len(numbers) > _MOST_AXES or any(len(number) > _LONGEST_NUMBER for number in numbers):
        return 1 << 64
    return math.prod(abs(int(number)) for number in numbers)


def _end_of_string(body: bytes, position: int) -> int:
    """Return where a string ends that begins at `position`; the body's end if it does not."""
    while (end := body.find(b'"', position)) >= 0:
        escapes = end
        while escapes > position and body[escapes - 1] == 0x5C:  # a backslash
            escapes -= 1
        position = end + 1
        if (end - escapes) % 2 == 0:
            return position
    return len(body)
