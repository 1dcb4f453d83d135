"""The header of a plan: its first bytes, for plans whose manifest is lost.

Neither library documents the header beyond its length (`IRuntime::getEngineValidity` reads it, on a
GPU). Seen in plans of TensorRT for RTX 1.7: the letters `vtrt`, the length of the whole plan, and
the version that built it. It is used to say more in a message, never to accept a plan.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_LENGTH = 32
_MAGIC: dict[bytes, Literal["tensorrt", "tensorrt_rtx"]] = {
    b"vtrt": "tensorrt_rtx",
    b"ftrt": "tensorrt",
}


@dataclass(frozen=True)
class PlanHeader:
    """The header of a plan.

    Attributes:
        library: Which library the plan is for.
        version: The version that built it; empty where the layout is not known.
        bytes: How long the plan says it is; None where the layout is not known.
    """

    library: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    bytes: int | None


def read_header(path: Path) -> PlanHeader | None:
    """Return the header of the plan at `path`, or None where the file does not begin like one."""
    with path.open("rb") as stream:
        data = stream.read(_LENGTH)
    library = _MAGIC.get(data[:4])
    if library is None:
        return None
    if library == "tensorrt" or len(data) < _LENGTH:
        return PlanHeader(library, "", None)
    (length,) = struct.unpack_from("<Q", data, 16)
    return PlanHeader(library, ".".join(map(str, data[24:28])), length)
