"""The operator's contract: its name, attributes, inputs and variants, for every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

RangeKernel = Literal["dot", "gaussian"]
SpatialKernel = Literal["gaussian", "dot", "none"]
RANGE_KERNELS: tuple[RangeKernel, ...] = get_args(RangeKernel)
SPATIAL_KERNELS: tuple[SpatialKernel, ...] = get_args(SpatialKernel)

DOMAIN = "ai.bilateral"
OP_TYPE = "BilateralAttention"
VERSION = 1
OUTPUT = "output"

# Attributes every node carries. The last two are how TensorRT's parser finds the plugin: without
# them it takes the function body.
SCALE = "scale"
RANGE_KERNEL = "range_kernel"
SPATIAL_KERNEL = "spatial_kernel"
QUERY_PREFIX = "query_prefix"
KEY_PREFIX = "key_prefix"
CAUSAL = "causal"
PLUGIN_NAMESPACE = "plugin_namespace"
PLUGIN_VERSION = "plugin_version"

MAX_COORDINATES = 3


def input_names(spatial_kernel: SpatialKernel, key_bias: bool) -> tuple[str, ...]:
    """Return the names of the node's inputs, in order.

    Inputs are packed: one that the spatial kernel does not use is left out, never written as an
    empty name, because TensorRT plugins take no absent inputs. The spatial kernel and the number
    of inputs together say which is which.
    """
    spatial: dict[SpatialKernel, tuple[str, ...]] = {
        "gaussian": ("query_positions", "key_positions", "bandwidth"),
        "dot": ("query_positions", "key_positions"),
        "none": (),
    }
    tokens = ("query", "key", "value")
    return tokens + spatial[spatial_kernel] + (("key_bias",) if key_bias else ())


@dataclass(frozen=True)
class OperatorVariant:
    """What is fixed in one function body; scale and prefixes stay attributes of each node."""

    range_kernel: RangeKernel = "dot"
    spatial_kernel: SpatialKernel = "none"
    causal: bool = False
    key_bias: bool = False

    @classmethod
    def of(cls, attributes: Mapping[str, Any], n_inputs: int) -> OperatorVariant:
        """Return the variant that a node's attributes and number of inputs say."""
        spatial_kernel = attributes.get(SPATIAL_KERNEL, "none")
        return cls(
            range_kernel=attributes.get(RANGE_KERNEL, "dot"),
            spatial_kernel=spatial_kernel,
            causal=bool(attributes.get(CAUSAL, 0)),
            key_bias=n_inputs > len(input_names(spatial_kernel, key_bias=False)),
        )

    @property
    def overload(self) -> str:
        """The name that tells this body from others of the same operator in one file."""
        parts: list[str] = [self.range_kernel, self.spatial_kernel]
        parts += ["causal"] * self.causal + ["key_bias"] * self.key_bias
        return "_".join(parts)
