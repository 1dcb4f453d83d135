"""Specialisations: what the kernels are compiled for ahead of time, one for each cubin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bilateral_export.errors import UserError
from bilateral_export.op.architectures import COMPILED, compiled_for
from bilateral_export.op.contract import MAX_COORDINATES, SpatialKernel
from bilateral_export.op.kernel import launch_config
from bilateral_export.op.kernel.launch_config import LaunchConfig

Kernel = Literal["attention", "key_tiles", "plan", "features"]
DTYPES = {"fp32": 32, "fp16": 16, "bf16": 16}
# Smaller heads and features are padded to the next of these: fewer cubins.
HEAD_DIMS = {16: (32, 64, 128, 256), 32: (64, 128, 256)}
FEATURES = (16, 64, 128)


@dataclass(frozen=True)
class Specialisation:
    """What one cubin is compiled for; the fields are those of the manifest."""

    kernel: Kernel
    architecture: int
    dtype: str
    configuration: LaunchConfig
    head_dim: int = 0
    spatial: SpatialKernel = "none"
    coordinates: int = 0
    features: int = 0
    key_term: bool = False

    @property
    def name(self) -> str:
        """File name without ending: every field that tells it from the others."""
        parts = [self.kernel, f"sm{self.architecture}", self.dtype]
        parts += [f"d{self.head_dim}"] * bool(self.head_dim)
        if self.kernel == "attention":
            parts.append(f"{self.spatial}{self.coordinates or self.features or ''}")
            parts += ["term"] * self.key_term
        if self.kernel == "plan":
            parts.append(f"c{self.coordinates}")
        if self.kernel in ("key_tiles", "plan"):
            parts.append(f"m{self.configuration.block_m}n{self.configuration.block_n}")
        return "_".join(parts)


def specialisations(architectures: Sequence[int] = COMPILED) -> Iterator[Specialisation]:
    """Yield the full set for these architectures (of `COMPILED`)."""
    for architecture in architectures:
        for dtype, bits in DTYPES.items():
            helper = LaunchConfig(0, 0, 4, 1)
            yield Specialisation("features", architecture, dtype, helper)
            for head_dim in HEAD_DIMS[bits]:
                yield from _attention(architecture, dtype, head_dim)


def _attention(architecture: int, dtype: str, head_dim: int) -> Iterator[Specialisation]:
    def make(kernel: Kernel, spatial: SpatialKernel, **fields: Any) -> Specialisation:
        chosen = launch_config.choose(
            architecture, DTYPES[dtype], spatial, head_dim, fields.get("features", 0)
        )
        if kernel == "plan":
            warps = launch_config.tile_ranges_warps(architecture, chosen, head_dim)
            chosen = replace(chosen, num_warps=warps, num_stages=1)
        return Specialisation(
            kernel, architecture, dtype, chosen, head_dim=head_dim, spatial=spatial, **fields
        )

    for key_term in (False, True):
        yield make("attention", "none", key_term=key_term)
    yield make("key_tiles", "gaussian")
    for coordinates in range(1, MAX_COORDINATES + 1):
        yield make("attention", "gaussian", coordinates=coordinates, key_term=True)
        if DTYPES[dtype] == 16:
            yield make("plan", "gaussian", coordinates=coordinates, key_term=True)
    if head_dim <= 128:
        for features in FEATURES:
            yield make("attention", "dot", features=features, key_term=True)


def select(architectures: Sequence[int], dtypes: Sequence[str], only: str) -> list[Specialisation]:
    """Return the set for compute capabilities; 8.9 gets the code of 8.6.

    Raises:
        UserError: `only`, which names have to contain, is not a regular expression, or none does.
    """
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UserError(f"--only {only!r} is not a regular expression: {error}") from error
    wanted = [
        item
        for item in specialisations(compiled_for(architectures))
        if item.dtype in dtypes and pattern.search(item.name)
    ]
    if not wanted:
        raise UserError(f"no cubin has {only!r} in its name", "Leave --only out.")
    return wanted
