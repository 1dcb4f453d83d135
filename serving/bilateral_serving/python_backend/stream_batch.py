"""The running streams of a language model, one word of each computed in one run of its graph.

It lies beside `stream.py`, which uses it. Rows have pasts of different lengths: their keys and
values are aligned to the right, and the graph's input `starts` says where each begins. A row
therefore sees the same numbers as alone, but the sums of a larger batch are added up in another
order: log-probabilities differ by rounding (export/bilateral_export/models/LANGUAGE.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bilateral_text import last_window

Array = np.ndarray[Any, Any]
# tokens, targets, past_keys, past_values, starts -> log_likelihood, log_probabilities, keys, values
Step = Callable[..., tuple[Array, Array, Array, Array]]


class Batch:
    """Rows that are read side by side; each has a window of its own, as `bilateral_text.Reader`.

    Args:
        step: One run of the graph.
        cache_shape: Of the keys of one text with an empty past: `(1, depth, heads, 0, head_dim)`.
        context: Longest window.
    """

    def __init__(self, step: Step, cache_shape: tuple[int, ...], context: int) -> None:
        self._step, self._shape, self._context = step, cache_shape, context
        self._windows: list[list[int]] = []
        self._keys, self._values = self._packed([]), self._packed([])

    def __len__(self) -> int:
        return len(self._windows)

    def join(self, texts: Sequence[Sequence[int]]) -> list[Array | None]:
        """Read texts in one run, make them the last rows, and return what each says follows.

        That is the log-probabilities `[words]` after the longest of them. A shorter one is read up
        to its last token, which is for the next `read`, and has None. Of each only the last window
        is read: what came before cannot be seen from there.
        """
        windows = [list(text[last_window(len(text), self._context) :]) for text in texts]
        longest = max(map(len, windows))
        whole = [len(window) == longest for window in windows]
        windows = [
            window if done else window[:-1] for window, done in zip(windows, whole, strict=True)
        ]
        after, keys, values = self._begin(windows)
        joined = [
            (keys[row, :, :, : len(window)], values[row, :, :, : len(window)])
            for row, window in enumerate(windows)
        ]
        self._replace([*self._rows(), *joined], [*self._windows, *windows])
        return [row if done else None for row, done in zip(after, whole, strict=True)]

    def read(self, tokens: Sequence[int]) -> Array:
        """Read one more token of each row; return the log-probabilities `[rows, words]` after it.

        A row whose window is full goes on with the last half of it, at position 0.
        """
        self._begin_again([len(window) == self._context for window in self._windows])
        column = np.array(tokens, np.int64)[:, None]
        _, after, self._keys, self._values = self._step(
            column, column, self._keys, self._values, self._starts()
        )
        for window, token in zip(self._windows, tokens, strict=True):
            window.append(token)
        return after

    def keep(self, wanted: Sequence[bool]) -> None:
        """Drop the rows that are not wanted; the others keep their order."""
        kept = [number for number, keep in enumerate(wanted) if keep]
        rows = self._rows()
        self._replace([rows[n] for n in kept], [self._windows[n] for n in kept])

    def _starts(self) -> Array:
        columns = self._keys.shape[3]
        starts = [columns - len(window) for window in self._windows]
        return np.array(starts, np.int64)[:, None]

    def _begin(self, windows: Sequence[Sequence[int]]) -> tuple[Array, Array, Array]:
        """Read windows from nothing; what is after the end of a shorter one means nothing."""
        none = np.zeros((len(windows), *self._shape[1:]), np.float32)
        # Padded on the right: causal attention does not see what follows.
        tokens = np.zeros((len(windows), max(map(len, windows))), np.int64)
        for row, window in zip(tokens, windows, strict=True):
            row[: len(window)] = window
        starts = np.zeros((len(windows), 1), np.int64)
        _, after, keys, values = self._step(tokens, tokens[:, -1:], none, none, starts)
        return after, keys, values

    def _begin_again(self, full: Sequence[bool]) -> None:
        again = [number for number, is_full in enumerate(full) if is_full]
        if not again:
            return
        windows = list(self._windows)
        for number in again:
            windows[number] = windows[number][-(self._context // 2) :]
        _, keys, values = self._begin([windows[number] for number in again])
        rows = self._rows()
        for number, row in zip(again, zip(keys, values, strict=True), strict=True):
            rows[number] = row
        self._replace(rows, windows)

    def _rows(self) -> list[tuple[Array, Array]]:
        """Views of each row's keys and values, `[depth, heads, past, head_dim]`."""
        return [
            (keys[:, :, start:], values[:, :, start:])
            for keys, values, (start,) in zip(self._keys, self._values, self._starts(), strict=True)
        ]

    def _replace(self, rows: Sequence[tuple[Array, Array]], windows: list[list[int]]) -> None:
        keys = self._packed([keys for keys, _ in rows])
        self._values = self._packed([values for _, values in rows])
        self._keys, self._windows = keys, windows

    def _packed(self, rows: Sequence[Array]) -> Array:
        """One array of all rows, aligned to the right; as short as the longest allows."""
        _, depth, heads, _, width = self._shape
        columns = max((row.shape[2] for row in rows), default=0)
        packed = np.zeros((len(rows), depth, heads, columns, width), np.float32)
        for whole, row in zip(packed, rows, strict=True):
            whole[:, :, columns - row.shape[2] :] = row
        return packed
