"""NVIDIA GPU architectures: every fact per SM (10 * major + minor of the compute capability)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# The oldest with bfloat16: for older GPUs there are neither kernels nor, by default, plans.
AMPERE = 80


@dataclass(frozen=True)
class Architecture:
    """What the kernels have to know of GPUs of one SM.

    Attributes:
        compiled: The SM whose compiled kernels run on it.
        shared_bytes: Dynamic shared memory one program may have (CUDA C++ Programming Guide,
            "Technical Specifications per Compute Capability").
    """

    compiled: int
    shared_bytes: int


ARCHITECTURES = {
    80: Architecture(80, 166912),
    86: Architecture(86, 101376),
    89: Architecture(86, 101376),
    90: Architecture(90, 232448),
    100: Architecture(100, 232448),
    120: Architecture(120, 101376),
}
# The SMs that the ahead-of-time build compiles for.
COMPILED = tuple(dict.fromkeys(known.compiled for known in ARCHITECTURES.values()))


def compiled_for(devices: Iterable[int]) -> tuple[int, ...]:
    """Return the SMs to compile for so that kernels run on all of these, each once."""
    return tuple(dict.fromkeys(ARCHITECTURES[device].compiled for device in devices))


def runs_on(compiled: int) -> tuple[int, ...]:
    """Return the SMs that kernels compiled for this one run on."""
    return tuple(sm for sm, known in ARCHITECTURES.items() if known.compiled == compiled)


def shared_limit(compiled: int) -> int:
    """Return how many bytes of shared memory a program has on every GPU its kernel runs on."""
    return min(ARCHITECTURES[sm].shared_bytes for sm in runs_on(compiled))


def nearest_compiled(sm: int) -> int | None:
    """Return the newest compiled SM that is not newer than a GPU; None where the GPU is older."""
    return max((known for known in COMPILED if known <= sm), default=None)


def has_tensor_memory(sm: int) -> bool:
    """Return whether accumulators lie in tensor memory, which is read a row per thread."""
    return sm // 10 == 10
