"""Values that cross the wire: numbers that are finite, texts that are UTF-8."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array


def check_finite(what: str, arrays: Mapping[str, Array]) -> None:
    """Refuse an answer that holds NaN or infinity.

    Raises:
        UserError: It names the model, the output and how many rows are affected.
    """
    for name, array in arrays.items():
        is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
        if is_float and not np.isfinite(array).all():
            rows = array.reshape(len(array) if array.ndim else 1, -1)
            bad = int((~np.isfinite(rows)).any(axis=1).sum())
            raise UserError(
                f"{what}: output {name} holds NaN or infinity in {bad} of {len(rows)} rows",
                "Check the inputs, and the model's weights with `bilateral parity`.",
            )


def utf8(what: str, text: str) -> bytes:
    """Return a text as it is sent.

    Raises:
        UserError: It holds surrogates: bytes of a command line that are not UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what}: character {error.start} is not UTF-8") from error
