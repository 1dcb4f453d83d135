"""What the operator is called and takes, in one place, for every runtime that implements it."""

from __future__ import annotations

from typing import Literal, get_args

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
    """The node's inputs, in order.

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
