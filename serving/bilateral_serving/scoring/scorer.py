"""Items to scores: content, input tensors, inference; what fails has its reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow.parquet as pq

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving.client.inputs.files import batched, prepare_one
from bilateral_serving.scoring.items import Item
from bilateral_serving.scoring.model import Model

_NOT_FINITE = "the model's answer holds NaN or infinity"


@dataclass(frozen=True)
class Scored:
    """The outcome for one item.

    Attributes:
        output: Logits or features, without the batch axis; None where it failed.
        error: Why it failed; "" where it did not.
    """

    output: Array | None = None
    error: str = ""


@dataclass(frozen=True)
class _Content:
    """What is to be prepared, a file or bytes, or why it cannot be."""

    source: Path | bytes | None
    error: str = ""


class Scorer:
    """A model that is open in this process, from `__enter__` to `__exit__`.

    Args:
        model: The model.
        threads: Of one inference, on a CPU.
        batch: Items in one inference.
        readers: Threads that prepare the next batches meanwhile; 0: each is prepared when it is its
            turn, which is best where one thread computes.
        content: The Parquet column with the items' content, where they are rows.
    """

    def __init__(
        self, model: Model, threads: int, batch: int, readers: int = 0, content: str = ""
    ) -> None:
        self.model = model
        self._batch = batch
        self._readers = readers
        self._content = content
        self._runner = model.runner(threads)
        self._pool: ThreadPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Scorer:
        """Load the model.

        Raises:
            UserError: It cannot be run here.
        """
        with ExitStack() as stack:
            stack.enter_context(self._runner)
            if self._readers:
                self._pool = stack.enter_context(ThreadPoolExecutor(self._readers))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Return the outcome for each item.

        Raises:
            UserError: The model runs on none of several items that could be read, so that they are
                not at fault.
        """
        scored: list[Scored] = []
        ran: list[Scored | UserError] = []
        prepared = self._prepared(_contents(items, self._content))
        while some := list(islice(prepared, self._batch)):
            outcomes = self.run([one for one in some if not isinstance(one, str)])
            ran += outcomes
            rows = iter(outcomes)
            for one in some:
                row = Scored(error=one) if isinstance(one, str) else next(rows)
                scored.append(row if isinstance(row, Scored) else Scored(error=str(row)))
        failed = [one for one in ran if isinstance(one, UserError)]
        if len(failed) > 1 and len(failed) == len(ran):
            raise failed[0]
        return scored

    def run(self, inputs: Sequence[Array]) -> list[Scored | UserError]:
        """Return the outcome for each prepared input, alone where they cannot be run together."""
        if not inputs:
            return []
        try:
            return list(self._infer(inputs))
        except Exception as error:  # a runtime's exceptions share no base class
            if len(inputs) == 1:
                reason = error if isinstance(error, UserError) else UserError(_reason(error))
                return [reason]
            return [outcome for one in inputs for outcome in self.run([one])]

    def _infer(self, inputs: Sequence[Array]) -> Iterator[Scored]:
        batch = batched(inputs, self.model.preprocessing)
        missing = max(0, self.model.fixed_batch - len(batch))
        batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        found = self._runner.run({self.model.inputs[0].name: batch})[self.model.output]
        found = found[: len(inputs)]
        finite = np.isfinite(found).reshape(len(found), -1).all(axis=1)
        for row, good in zip(found, finite, strict=True):
            yield Scored(row) if good else Scored(error=_NOT_FINITE)

    def _prepared(self, contents: Iterator[_Content]) -> Iterator[Array | str]:
        if self._pool is None:
            yield from map(self._prepare, contents)
            return
        waiting: deque[Future[Array | str]] = deque()
        for content in contents:
            waiting.append(self._pool.submit(self._prepare, content))
            if len(waiting) > 2 * self._batch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _prepare(self, content: _Content) -> Array | str:
        """Return a model's input, or why there is none."""
        if content.source is None:
            return content.error
        try:
            return prepare_one(content.source, self.model.preprocessing, self.model.metadata.name)
        except Exception as error:  # decoders raise anything over a damaged file
            return _reason(error)


def _contents(items: Sequence[Item], column: str) -> Iterator[_Content]:
    for table, rows in groupby(items, key=lambda item: item.table):
        if not table:
            yield from (_Content(Path(item.path)) for item in rows)
            continue
        wanted = [item.row for item in rows]
        try:
            found = _rows(Path(table), column, set(wanted))
        except Exception as error:  # the file went, or is damaged
            yield from (_Content(None, f"{table}: {_reason(error)}") for _ in wanted)
        else:
            yield from (
                found.get(row, _Content(None, f"{table} has no row {row}")) for row in wanted
            )


def _rows(path: Path, column: str, wanted: set[int]) -> dict[int, _Content]:
    """Return the content of some rows; of the row groups only those that hold some are read."""
    file = pq.ParquetFile(path)
    found: dict[int, _Content] = {}
    start = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if any(start <= row < start + size for row in wanted):
            at = start
            for batch in file.iter_batches(256, row_groups=[group], columns=[column]):
                for row in range(at, at + batch.num_rows):
                    if row in wanted:
                        found[row] = _content(batch.column(0)[row - at].as_py())
                at += batch.num_rows
        start += size
    return found


def _content(value: object) -> _Content:
    if isinstance(value, dict):  # datasets' Image: {"bytes": ..., "path": ...}
        value = value.get("bytes")
    if isinstance(value, str):
        value = value.encode()
    return _Content(value) if isinstance(value, bytes) else _Content(None, "the row has no content")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
