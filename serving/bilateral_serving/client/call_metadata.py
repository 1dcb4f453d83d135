"""What each call carries beside its message: a caller's own metadata, as gRPC and HTTP take it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from bilateral_export.errors import UserError

Pairs: TypeAlias = "tuple[tuple[str, str], ...]"
Metadata: TypeAlias = "Mapping[str, str] | Callable[[], Mapping[str, str]]"
"""Names and values, or what gives them anew for each call."""

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")


def pairs(given: Metadata | None) -> Pairs:
    """Return the metadata of a call that begins now.

    Raises:
        UserError: A name or a value is not one that gRPC and HTTP can carry.
    """
    if not given:
        return ()
    now = given() if callable(given) else given
    for name, value in now.items():
        if not _NAME.fullmatch(name) or name.endswith("-bin") or not _VALUE.fullmatch(value):
            raise UserError(
                f"metadata '{name}' cannot be sent",
                "Names are lower-case letters, digits, '-', '_' and '.'; values printable ASCII.",
            )
    return tuple(now.items())
