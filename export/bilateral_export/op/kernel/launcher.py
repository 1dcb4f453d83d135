"""PyTorch tensors in, launches of the fused kernel out."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from bilateral_export.errors import UserError
from bilateral_export.op.contract import RangeKernel, SpatialKernel
from bilateral_export.op.kernel import configurations
from bilateral_export.op.kernel.configurations import Configuration, class_of, plan_warps
from bilateral_export.op.kernel.forward import bilateral_attention_kernel
from bilateral_export.op.kernel.plan import bilateral_plan_kernel
from bilateral_export.op.kernel.prepare import (
    bilateral_features_kernel,
    bilateral_key_tiles_kernel,
)

# The share of a row's weights that skipped tiles may hold: it moves an output by at most half a
# unit in the last place of max|v| in that type.
BUDGET = {torch.float16: 2.0**-13, torch.bfloat16: 2.0**-10, torch.float32: 2.0**-26}

# From so many keys on, finding out which tiles can be skipped is predicted to cost less than 3%.
SKIP_FROM = 4096

# float32 operands are multiplied as three TF32 products, which keeps 21 bits of each product.
PRECISION = "tf32x3"

FEATURE_BLOCK = 1024

INTERPRETED = bool(triton.knobs.runtime.interpret)


def unsupported(query: Tensor, query_positions: Tensor | None, spatial_kernel: str) -> str:
    """Why the fused kernel cannot take these tensors; empty if it can."""
    if query.dtype not in BUDGET:
        return f"{query.dtype} is not float32, float16 or bfloat16"
    largest = configurations.LARGEST_HEAD[8 * query.element_size()]
    if query.shape[-1] > largest:
        return f"head dimension {query.shape[-1]} is above {largest}, the most for {query.dtype}"
    if spatial_kernel == "dot" and query_positions is not None:
        features = query_positions.shape[-1]
        if features > configurations.FEATURES[-1]:
            return f"{features} position features are above {configurations.FEATURES[-1]}"
    return ""


def bilateral_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    bandwidth: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
    range_kernel: RangeKernel,
    spatial_kernel: SpatialKernel,
    query_prefix: int,
    key_prefix: int,
    causal: bool,
    *,
    skip_tiles: bool | None = None,
    configuration: Configuration | None = None,
) -> Tensor:
    """Bilateral attention (op/README.md) by the fused kernel.

    Query, key and value may have any strides; where the last axis has stride 1 and the others are
    multiples of 8, as in a fused QKV projection `[B, N, 3, H, D]`, nothing is copied.

    Args:
        query: `[B, H, Nq, D]`, float32, float16 or bfloat16, on a GPU (or on the CPU under Triton's
            interpreter, TRITON_INTERPRET=1).
        key: `[B, H, Nk, D]`.
        value: `[B, H, Nk, D]`.
        query_positions: Coordinates `[Nq, C]` or features `[H, Nq, P]`.
        key_positions: Coordinates `[Nk, C]` or features `[H, Nk, P]`.
        bandwidth: `[H]`, sigma > 0, inf allowed.
        key_bias: `[B, Nk]`.
        scale: Factor of the range kernel.
        range_kernel: "dot" or "gaussian".
        spatial_kernel: "gaussian", "dot" or "none".
        query_prefix: Number of leading queries without position.
        key_prefix: Number of leading keys without position.
        causal: Whether query i sees only keys j <= i + (Nk - Nq).
        skip_tiles: Whether to look for key tiles that the Gaussian spatial kernel makes negligible;
            by default from `SKIP_FROM` keys on. Changes the result by at most `BUDGET`.
        configuration: Block sizes; by default those of `configurations.csv` for the device.

    Returns:
        `[B, H, Nq, D]`, contiguous, in the query's dtype. A query that sees no key gives zeros.

    Raises:
        UserError: The kernel does not take the dtype, the sizes or the device.
    """
    reason = unsupported(query, query_positions, spatial_kernel)
    if reason:
        raise UserError(
            f"the fused kernel does not take this problem: {reason}",
            "Use the composite implementation, bilateral_export.op.attention.",
        )
    if query.numel() == 0 or key.shape[2] == 0:
        return torch.zeros_like(query, memory_format=torch.contiguous_format)
    launch = prepare(
        query, key, value, query_positions, key_positions, bandwidth, key_bias, scale,
        range_kernel, spatial_kernel, query_prefix, key_prefix, causal, skip_tiles, configuration,
    )  # fmt: skip
    with _on(query.device):
        return launch.run()[..., : query.shape[-1]].contiguous()


@dataclass(frozen=True)
class Launch:
    """One problem in the form the kernels take it: see the ABI in README.md."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_positions: Tensor | None
    key_positions: Tensor | None
    bandwidth: Tensor | None
    key_bias: Tensor | None
    scale: float
    range_kernel: RangeKernel
    spatial_kernel: SpatialKernel
    query_prefix: int
    key_prefix: int
    diagonal: int
    skip_tiles: bool
    configuration: Configuration

    @property
    def block_d(self) -> int:
        """Head dimension, padded."""
        return class_of(self.query.shape[-1], configurations.HEAD_DIMS, "head dimension")

    @property
    def coordinates(self) -> int:
        """C of the Gaussian spatial kernel, else 0."""
        if self.spatial_kernel != "gaussian" or self.query_positions is None:
            return 0
        return self.query_positions.shape[-1]

    @property
    def sequences(self) -> int:
        """B H."""
        return self.query.shape[0] * self.query.shape[1]

    @property
    def row_tiles(self) -> int:
        """Programs of one sequence."""
        return math.ceil(self.query.shape[2] / self.configuration.block_m)

    @property
    def key_tiles(self) -> int:
        """Tiles of keys."""
        return math.ceil(self.key.shape[2] / self.configuration.block_n)

    def run(self) -> Tensor:
        """Launch what the problem needs."""
        query, key = self.query, self.key
        key_term, term_strides, bounds = self.key_terms()
        tile_ranges = self.tile_ranges(key_term, term_strides, bounds) if bounds else None
        query_positions, key_positions = self.query_positions, self.key_positions
        n_features = 0
        if self.spatial_kernel == "dot":
            assert query_positions is not None
            assert key_positions is not None
            n_features = query_positions.shape[-1]
            query_positions = self.features(query_positions, self.query_prefix)
            key_positions = self.features(key_positions, self.key_prefix)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        bilateral_attention_kernel[(self.row_tiles * self.sequences,)](
            query, key, self.value, output,
            _pointer(query_positions, query), _pointer(key_positions, query),
            _pointer(self.bandwidth, query), _pointer(key_term, query),
            _pointer(tile_ranges, query),
            *query.stride()[:3], *key.stride()[:3], *self.value.stride()[:3],
            *output.stride()[:3], *term_strides,
            query.shape[1], query.shape[2], key.shape[2], query.shape[3], n_features,
            self.query_prefix, self.key_prefix, self.diagonal, int(tile_ranges is not None),
            abs(self.scale) or 1.0,
            SPATIAL=self.spatial_kernel, KEY_TERM=key_term is not None,
            C=max(self.coordinates, 1),
            P=class_of(max(n_features, 1), configurations.FEATURES, "position features"),
            BLOCK_D=self.block_d, BLOCK_M=self.configuration.block_m,
            BLOCK_N=self.configuration.block_n, STAGES=self.configuration.num_stages,
            PRECISION=self.precision, **self.options,
        )  # fmt: skip
        return output

    @property
    def precision(self) -> str:
        """PRECISION of the kernels: see `forward.product`."""
        widen = INTERPRETED and self.query.dtype == torch.bfloat16
        return "widened" if widen else PRECISION

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options of the main kernel."""
        chosen: dict[str, int | bool] = {
            "num_warps": self.configuration.num_warps,
            "num_stages": self.configuration.num_stages,
            "enable_fp_fusion": True,
        }
        if self.configuration.max_registers:
            chosen["maxnreg"] = self.configuration.max_registers
        return chosen

    def key_terms(self) -> tuple[Tensor | None, tuple[int, int], tuple[Tensor, ...]]:
        """The key term with its strides for batch and head, and the bounds over tiles if wanted."""
        batch, heads, n_key, head_dim = self.key.shape
        gaussian = self.range_kernel == "gaussian"
        if not gaussian and not self.skip_tiles:
            return self.key_bias, (n_key, 0), ()

        key_term = _empty(self.key, batch, heads, n_key)
        bounds: tuple[Tensor, ...] = ()
        if self.skip_tiles:
            bounds = (
                _empty(self.key, batch, heads, self.key_tiles),
                _empty(self.key, batch, heads, self.key_tiles),
                _empty(self.key, self.key_tiles, 2, self.coordinates),
            )
        tile_norm, tile_term, tile_boxes = bounds or (key_term,) * 3
        bilateral_key_tiles_kernel[(self.key_tiles * self.sequences,)](
            self.key, _pointer(self.key_bias, key_term), _pointer(self.key_positions, key_term),
            key_term, tile_norm, tile_term, tile_boxes,
            *self.key.stride()[:3], n_key,
            heads, n_key, head_dim, self.key_prefix,
            int(gaussian), int(self.key_bias is not None), self.coordinates if bounds else 0,
            self.scale,
            BLOCK_D=self.block_d, BLOCK_N=self.configuration.block_n, enable_fp_fusion=True,
        )  # fmt: skip
        return key_term, (heads * n_key, n_key), bounds

    def tile_ranges(
        self, key_term: Tensor | None, term_strides: tuple[int, int], bounds: tuple[Tensor, ...]
    ) -> Tensor:
        """`[B, H, row tiles, 2]` int32: the whole key tiles each program attends to."""
        query, key = self.query, self.key
        ranges = torch.empty(
            (*query.shape[:2], self.row_tiles, 2), dtype=torch.int32, device=query.device
        )
        bilateral_plan_kernel[(self.row_tiles * self.sequences,)](
            query, key, self.query_positions, self.key_positions, self.bandwidth, key_term,
            *bounds, ranges,
            *query.stride()[:3], *key.stride()[:3], *term_strides,
            query.shape[1], query.shape[2], key.shape[2], query.shape[3],
            self.query_prefix, self.key_prefix, self.diagonal,
            abs(self.scale) or 1.0, BUDGET[query.dtype],
            C=self.coordinates, BLOCK_D=self.block_d, BLOCK_M=self.configuration.block_m,
            BLOCK_N=self.configuration.block_n, PRECISION=self.precision,
            num_warps=plan_warps(
                _capability(query.device), self.configuration, self.block_d
            ),
            enable_fp_fusion=True,
        )  # fmt: skip
        return ranges

    def features(self, positions: Tensor, prefix: int) -> Tensor:
        """Features of the dot spatial kernel, in T and in the unit of q.k."""
        target = torch.empty(positions.shape, dtype=self.query.dtype, device=positions.device)
        heads, n_tokens, n_features = positions.shape
        bilateral_features_kernel[(triton.cdiv(positions.numel(), FEATURE_BLOCK),)](
            positions, target, heads, n_tokens, n_features, prefix,
            abs(self.scale) or 1.0, min(torch.finfo(target.dtype).max, 3.38e38),
            BLOCK=FEATURE_BLOCK,
        )  # fmt: skip
        return target


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    bandwidth: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
    range_kernel: RangeKernel,
    spatial_kernel: SpatialKernel,
    query_prefix: int,
    key_prefix: int,
    causal: bool,
    skip_tiles: bool | None,
    configuration: Configuration | None,
) -> Launch:
    """Bring the operands of `bilateral_attention_forward` into the form of the ABI."""
    n_query, n_key = query.shape[2], key.shape[2]
    if configuration is None:
        configuration = configurations.configuration(
            _capability(query.device), query.element_size() * 8, spatial_kernel, query.shape[-1]
        )
    if skip_tiles is None:
        skip_tiles = n_key >= SKIP_FROM
    query, key, value = (_aligned(tensor) for tensor in (query, key, value))
    if scale < 0:
        query = -query
    elif scale == 0:
        query = torch.zeros_like(query)
    if spatial_kernel == "none":
        query_positions = key_positions = bandwidth = None
    if spatial_kernel == "dot":
        bandwidth = None
        query_positions = _padded(query_positions)
        key_positions = _padded(key_positions)
    return Launch(
        query, key, value,
        _float32(query_positions), _float32(key_positions), _float32(bandwidth),
        _float32(key_bias), scale, range_kernel, spatial_kernel, query_prefix, key_prefix,
        n_key - n_query if causal else n_key,
        skip_tiles and spatial_kernel == "gaussian" and math.isfinite(scale), configuration,
    )  # fmt: skip


def _capability(device: torch.device) -> int:
    """Compute capability of a GPU as an integer; under the interpreter, that of the oldest row."""
    if device.type != "cuda":
        return min(configurations.ARCHITECTURES)
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows can be read 16 bytes at a time, else a copy that can."""
    padded = _padded(tensor)
    assert padded is not None
    strides = padded.stride()
    whole = strides[-1] == 1 and all(stride % 8 == 0 for stride in strides[:-1])
    return padded if whole and padded.data_ptr() % 16 == 0 else padded.clone(
        memory_format=torch.contiguous_format
    )  # fmt: skip


def _padded(tensor: Tensor | None) -> Tensor | None:
    """The tensor with zeros after its last axis up to a multiple of 8; they change no product."""
    if tensor is None or tensor.shape[-1] % 8 == 0:
        return tensor
    return torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % 8))


def _float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _pointer(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """A pointer the kernel does not read still has to be one."""
    return unused if tensor is None else tensor
