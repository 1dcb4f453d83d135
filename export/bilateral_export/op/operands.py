"""The operator's operands as one value, in the order of `torch.ops.bilateral.attention`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bilateral_export.op.contract import RangeKernel, SpatialKernel


@dataclass(frozen=True)
class Operands:
    """What one call of the operator is given; op/README.md has the formula.

    Attributes:
        query: `[B, H, Nq, D]`.
        key: `[B, H, Nk, D]`, the query's dtype.
        value: `[B, H, Nk, D]`, the query's dtype.
        query_positions: Coordinates `[Nq, C]` (gaussian) or features `[H, Nq, P]` (dot).
        key_positions: Coordinates `[Nk, C]` or features `[H, Nk, P]`.
        bandwidth: `[H]`, the sigma of the Gaussian spatial kernel, in units of the coordinates.
        key_bias: `[B, Nk]`, added to the logits of each key; -inf removes the key.
        scale: Factor of the range kernel.
        range_kernel: Similarity of tokens.
        spatial_kernel: Similarity of positions.
        query_prefix: Number of leading queries that have no position.
        key_prefix: Number of leading keys that have no position.
        causal: Whether query i sees only keys j <= i + (Nk - Nq).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    bandwidth: Tensor | None = None
    key_bias: Tensor | None = None
    scale: float = 1.0
    range_kernel: RangeKernel = "dot"
    spatial_kernel: SpatialKernel = "none"
    query_prefix: int = 0
    key_prefix: int = 0
    causal: bool = False

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All of them in the order of the torch operator, tensors first."""
        return tuple(vars(self).values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Operands:
        """Return the operands with every tensor changed."""
        given: list[Any] = [
            change(one) if isinstance(one, Tensor) else one for one in self.arguments
        ]
        return Operands(*given)


N_TENSORS = sum("Tensor" in str(kind) for kind in Operands.__annotations__.values())
