"""Two versions' answers to the same request, compared.

A request that is to be compared is sent once more, to the other version, after its caller has the
answer: the copy costs the caller nothing but the processor's time. Copies are never cancelled, few
at once, and dropped when there are too many: those are counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from tritonclient.grpc import InferResult
from tritonclient.grpc import service_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.files import write_text
from bilateral_serving.front_door.routing import COMPARISONS_FILE, Choice

Tensor = NDArray[Any]
Answer = TypeVar("Answer")

_AT_ONCE = 16
_WRITE_EVERY_S = 0.5


class Comparison(BaseModel):
    """What came of the copies since these two versions run side by side.

    Attributes:
        active: The version that answers.
        candidate: The one that is tried.
        rows: Rows of answers that were compared.
        same: Of those, with the same decision: the largest value of each output is at the same
            places, and what is not a number is equal.
        errors: Copies that got an error from the other version.
        dropped: Copies that were not sent, because too many were under way.
        unlike: Pairs of answers whose outputs differ in name, shape or type.
        mean: Mean over rows of the largest absolute difference of an output.
        squares: Sum of squared deviations from that mean (Welford 1962, Technometrics 4).
        largest: The largest difference.
        scale: The largest absolute value of the active version's outputs.
    """

    active: int
    candidate: int
    rows: int = 0
    same: int = 0
    errors: int = 0
    dropped: int = 0
    unlike: int = 0
    mean: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    scale: float = 0.0

    def add(self, same: bool, distance: float) -> None:
        """Count one row."""
        self.rows += 1
        self.same += same
        step = distance - self.mean
        self.mean += step / self.rows
        self.squares += step * (distance - self.mean)
        self.largest = max(self.largest, distance)


class Comparisons(BaseModel):
    """The comparison of each model that has one."""

    models: dict[str, Comparison] = {}


class Shadow:
    """Sends copies and keeps the comparisons, in `COMPARISONS_FILE` too.

    Args:
        directory: Where that file lies; None: nothing is compared.
        start: Runs a coroutine to its end (`Calls.start`).
    """

    def __init__(self, directory: Path | None, start: Callable[..., asyncio.Task[Any]]) -> None:
        self._path = None if directory is None else directory / COMPARISONS_FILE
        self._start = start
        self._found = Comparisons()
        self._under_way = 0
        self._writing: asyncio.Task[Any] | None = None

    def compare(
        self,
        model: str,
        choice: Choice,
        answer: Answer,
        ask: Callable[[int], Awaitable[Answer]],
        read: Callable[[Answer], pb.ModelInferResponse] = pb.ModelInferResponse.FromString,
    ) -> None:
        """Ask the other version too, and compare its answer with the one that was given.

        Args:
            model: The model.
            choice: Where the request went, with an `other`.
            answer: The answer that the caller got.
            ask: Sends the request to a version and returns its answer.
            read: Reads an answer, in a thread.
        """
        route, other = choice.route, choice.other
        assert route is not None
        assert other is not None
        assert route.candidate is not None
        known = self._found.models.get(model)
        if known is None or (known.active, known.candidate) != (route.active, route.candidate):
            known = Comparison(active=route.active, candidate=route.candidate)
            self._found.models[model] = known
        if self._under_way >= _AT_ONCE:
            known.dropped += 1
        else:
            self._under_way += 1
            self._start(self._ask_and_compare(known, other, answer, ask, read))
        if self._writing is None:
            self._writing = self._start(self._write())

    async def _ask_and_compare(
        self,
        found: Comparison,
        other: int,
        answer: Answer,
        ask: Callable[[int], Awaitable[Answer]],
        read: Callable[[Answer], pb.ModelInferResponse],
    ) -> None:
        try:
            copy = await ask(other)
            pair = (answer, copy) if other == found.candidate else (copy, answer)
            messages = await asyncio.to_thread(lambda: [*map(read, pair)])
        except Exception:
            found.errors += 1
            return
        finally:
            self._under_way -= 1
        compared = await asyncio.to_thread(_compare, *messages)
        if compared is None:
            found.unlike += 1
            return
        found.scale = max(found.scale, compared[0])
        for same, distance in compared[1]:
            found.add(same, distance)

    async def _write(self) -> None:
        await asyncio.sleep(_WRITE_EVERY_S)
        self._writing = None
        assert self._path is not None
        try:
            write_text(self._path, self._found.model_dump_json())
        except UserError:  # the directory is gone: the server ends
            return


def _compare(
    active: pb.ModelInferResponse, candidate: pb.ModelInferResponse
) -> tuple[float, list[tuple[bool, float]]] | None:
    """Return the scale of the active version's numbers, and each row's agreement and distance.

    None if the answers are not of the same form.
    """
    one, two = (_arrays(answer) for answer in (active, candidate))
    forms = [{name: (a.shape, a.dtype) for name, a in arrays.items()} for arrays in (one, two)]
    if forms[0] != forms[1]:
        return None
    numbers = [array[np.isfinite(array)] for array in one.values() if array.dtype.kind == "f"]
    scale = max((float(np.abs(array).max()) for array in numbers if array.size), default=0.0)
    lengths = {len(array) if array.ndim else None for array in one.values()}
    length = lengths.pop() if len(lengths) == 1 else None
    # Outputs without one common first axis are one row.
    rows: list[slice] = [slice(None)]
    if length is not None:
        rows = [slice(number, number + 1) for number in range(length)]
    found = []
    for row in rows:
        pairs = [(_part(one[name], row), _part(two[name], row)) for name in one]
        same = all(_decides_alike(a, b) for a, b in pairs)
        found.append((same, max((_distance(a, b) for a, b in pairs), default=0.0)))
    return scale, found


def _part(array: Tensor, row: slice) -> Tensor:
    return array[row] if array.ndim else array


def _arrays(answer: pb.ModelInferResponse) -> dict[str, Tensor]:
    result = InferResult(answer)
    return {tensor.name: result.as_numpy(tensor.name) for tensor in answer.outputs}


def _decides_alike(one: Tensor, other: Tensor) -> bool:
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    if one.ndim == 0 or one.size == 0:
        return True
    return bool(np.array_equal(one.argmax(axis=-1), other.argmax(axis=-1)))


def _distance(one: Tensor, other: Tensor) -> float:
    if one.dtype.kind != "f" or one.size == 0:
        return 0.0
    difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
    # Where both are NaN or the same infinity nothing differs; else what is not finite is far.
    difference[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    difference[~np.isfinite(difference)] = np.finfo(np.float64).max
    return float(difference.max())
