"""The launcher: from PyTorch tensors to launches of the fused kernel."""

from __future__ import annotations

import math
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from bilateral_export.errors import UserError
from bilateral_export.op.architectures import AMPERE
from bilateral_export.op.kernel import launch_config
from bilateral_export.op.kernel.forward import bilateral_attention_kernel
from bilateral_export.op.kernel.launch_config import (
    FEATURE_BLOCK,
    PRECISION,
    TILE_RANGES_REGISTERS,
    LaunchConfig,
    class_of,
    tile_ranges_warps,
)
from bilateral_export.op.kernel.prepare import (
    bilateral_features_kernel,
    bilateral_key_tiles_kernel,
)
from bilateral_export.op.kernel.spatial_features import SKIP_FROM
from bilateral_export.op.kernel.tile_ranges import bilateral_tile_ranges_kernel
from bilateral_export.op.operands import Operands

# The share of a row's weights that skipped tiles may hold: it moves an output by at most half a
# unit in the last place of max|v| in that type.
SKIP_TOLERANCE = {torch.float16: 2.0**-13, torch.bfloat16: 2.0**-10, torch.float32: 2.0**-26}

INTERPRETED = bool(triton.knobs.runtime.interpret)


def unsupported(operands: Operands) -> str:
    """Return why the fused kernel cannot take these operands; empty if it can."""
    query, query_positions = operands.query, operands.query_positions
    if query.dtype not in SKIP_TOLERANCE:
        return f"{query.dtype} is not float32, float16 or bfloat16"
    capability, oldest = _capability(query.device), AMPERE
    if capability < oldest:
        return f"compute capability {capability / 10:.1f} is below {oldest / 10:.1f}"
    largest = launch_config.LARGEST_HEAD
    if query.shape[-1] > largest:
        return f"head dimension {query.shape[-1]} is above {largest}, the most for {query.dtype}"
    if operands.spatial_kernel == "dot" and query_positions is not None:
        features = query_positions.shape[-1]
        if features > launch_config.FEATURES[-1]:
            return f"{features} position features are above {launch_config.FEATURES[-1]}"
    return ""


def bilateral_attention_forward(
    operands: Operands,
    *,
    skip_tiles: bool | None = None,
    configuration: LaunchConfig | None = None,
) -> Tensor:
    """Return bilateral attention (op/README.md), computed by the fused kernel.

    Query, key and value may have any strides; where the last axis has stride 1 and the others are
    multiples of 8, as in a fused QKV projection `[B, N, 3, H, D]`, nothing is copied.

    Args:
        operands: float32, float16 or bfloat16, on a GPU (or on the CPU under Triton's interpreter,
            TRITON_INTERPRET=1).
        skip_tiles: Whether to look for key tiles that the Gaussian spatial kernel makes negligible;
            by default from `SKIP_FROM` keys on. Changes the result by at most `SKIP_TOLERANCE`.
        configuration: Block sizes; by default those of `launch_config.csv` for the device.

    Returns:
        `[B, H, Nq, D]`, contiguous, in the query's dtype. A query that sees no key gives zeros.

    Raises:
        UserError: The kernel does not take the dtype, the sizes or the device.
    """
    query = operands.query
    reason = unsupported(operands)
    if reason:
        raise UserError(
            f"the fused kernel does not take this problem: {reason}",
            "Use the composite implementation, bilateral_export.op.attention.",
        )
    if query.numel() == 0 or operands.key.shape[2] == 0:
        return torch.zeros_like(query, memory_format=torch.contiguous_format)
    launch = prepare(operands, skip_tiles, configuration)
    with _on(query.device):
        return launch.run()[..., : query.shape[-1]].contiguous()


@dataclass(frozen=True)
class Launch:
    """One problem in the form the kernels take it: see the ABI in README.md.

    Attributes:
        operands: Tokens with rows that can be read 16 bytes at a time, everything else float32 and
            contiguous, what the spatial kernel does not use left out.
        skip_tiles: Whether to look for key tiles that may be left out.
        configuration: Block sizes.
    """

    operands: Operands
    skip_tiles: bool
    configuration: LaunchConfig

    @property
    def block_d(self) -> int:
        """Head dimension, padded."""
        return class_of(self.operands.query.shape[-1], launch_config.HEAD_DIMS, "head dimension")

    @property
    def coordinates(self) -> int:
        """C of the Gaussian spatial kernel, else 0."""
        if self.operands.spatial_kernel != "gaussian" or self.operands.query_positions is None:
            return 0
        return self.operands.query_positions.shape[-1]

    @property
    def diagonal(self) -> int:
        """Query i sees keys j <= i + diagonal."""
        n_query, n_key = self.operands.query.shape[2], self.operands.key.shape[2]
        return n_key - n_query if self.operands.causal else n_key

    @property
    def sequences(self) -> int:
        """B H."""
        return self.operands.query.shape[0] * self.operands.query.shape[1]

    @property
    def row_tiles(self) -> int:
        """Programs of one sequence."""
        return math.ceil(self.operands.query.shape[2] / self.configuration.block_m)

    @property
    def key_tiles(self) -> int:
        """Tiles of keys."""
        return math.ceil(self.operands.key.shape[2] / self.configuration.block_n)

    def run(self) -> Tensor:
        """Launch the kernels that the problem needs and return the output."""
        given = self.operands
        query, key, value = given.query, given.key, given.value
        key_term, term_strides, bounds = self.key_terms()
        tile_ranges = self.tile_ranges(key_term, term_strides, bounds) if bounds else None
        query_positions, key_positions = given.query_positions, given.key_positions
        n_features = 0
        if given.spatial_kernel == "dot":
            assert query_positions is not None
            assert key_positions is not None
            n_features = query_positions.shape[-1]
            query_positions = self.features(query_positions, given.query_prefix)
            key_positions = self.features(key_positions, given.key_prefix)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if tile_ranges is None:  # compiled all the same, behind `has_ranges`: the type matters
            tile_ranges = torch.empty(0, dtype=torch.int32, device=query.device)
        bilateral_attention_kernel[(self.row_tiles * self.sequences,)](
            query, key, value, output,
            _pointer(query_positions, query), _pointer(key_positions, query),
            _pointer(given.bandwidth, query), _pointer(key_term, query),
            tile_ranges,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
            *output.stride()[:3], *term_strides,
            query.shape[1], query.shape[2], key.shape[2], query.shape[3], n_features,
            given.query_prefix, given.key_prefix, self.diagonal, int(bool(bounds)),
            abs(given.scale) or 1.0,
            SPATIAL=given.spatial_kernel, KEY_TERM=key_term is not None,
            C=max(self.coordinates, 1),
            P=class_of(max(n_features, 1), launch_config.FEATURES, "position features"),
            BLOCK_D=self.block_d, BLOCK_M=self.configuration.block_m,
            BLOCK_N=self.configuration.block_n, STAGES=self.configuration.num_stages,
            PRECISION=self.precision, **self.options,
        )  # fmt: skip
        return output

    @property
    def precision(self) -> str:
        """PRECISION of the kernels: see `forward.product`."""
        widen = INTERPRETED and self.operands.query.dtype == torch.bfloat16
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
        """Return the key term, its strides for batch and head, and the bounds over tiles."""
        given, key = self.operands, self.operands.key
        batch, heads, n_key, head_dim = key.shape
        gaussian = given.range_kernel == "gaussian"
        if not gaussian and not self.skip_tiles:
            return given.key_bias, (n_key, 0), ()

        key_term = _empty(key, batch, heads, n_key)
        bounds: tuple[Tensor, ...] = ()
        if self.skip_tiles:
            bounds = (
                _empty(key, batch, heads, self.key_tiles),
                _empty(key, batch, heads, self.key_tiles),
                _empty(key, self.key_tiles, 2, self.coordinates),
            )
        tile_norm, tile_term, tile_boxes = bounds or (key_term,) * 3
        bilateral_key_tiles_kernel[(self.key_tiles * self.sequences,)](
            key, _pointer(given.key_bias, key_term), _pointer(given.key_positions, key_term),
            key_term, tile_norm, tile_term, tile_boxes,
            *key.stride()[:3], n_key,
            heads, n_key, head_dim, given.key_prefix,
            int(gaussian), int(given.key_bias is not None), self.coordinates if bounds else 0,
            given.scale,
            BLOCK_D=self.block_d, BLOCK_N=self.configuration.block_n, enable_fp_fusion=True,
        )  # fmt: skip
        return key_term, (heads * n_key, n_key), bounds

    def tile_ranges(
        self, key_term: Tensor | None, term_strides: tuple[int, int], bounds: tuple[Tensor, ...]
    ) -> Tensor:
        """Return the whole key tiles of each program, `[B, H, row tiles, 2]` int32."""
        given = self.operands
        query, key = given.query, given.key
        ranges = torch.empty(
            (*query.shape[:2], self.row_tiles, 2), dtype=torch.int32, device=query.device
        )
        bilateral_tile_ranges_kernel[(self.row_tiles * self.sequences,)](
            query, key, given.query_positions, given.key_positions, given.bandwidth, key_term,
            *bounds, ranges,
            *query.stride()[:3], *key.stride()[:3], *term_strides,
            query.shape[1], query.shape[2], key.shape[2], query.shape[3],
            given.query_prefix, given.key_prefix, self.diagonal,
            abs(given.scale) or 1.0, SKIP_TOLERANCE[query.dtype],
            C=self.coordinates, BLOCK_D=self.block_d, BLOCK_M=self.configuration.block_m,
            BLOCK_N=self.configuration.block_n, PRECISION=self.precision,
            num_warps=tile_ranges_warps(
                _capability(query.device), self.configuration, self.block_d
            ),
            maxnreg=TILE_RANGES_REGISTERS, enable_fp_fusion=True,
        )  # fmt: skip
        return ranges

    def features(self, positions: Tensor, prefix: int) -> Tensor:
        """Return the features of the dot spatial kernel, in T and in the unit of q.k.

        Those of a tensor that lives on, a model's constant, are computed once and kept with it.
        """
        kind = (self.operands.query.dtype, self.operands.scale, prefix)
        kept = _kept_features(positions)
        if kept is None:
            return self._round_features(positions, prefix)
        if kind not in kept:
            kept[kind] = self._round_features(positions, prefix)
        return kept[kind]

    def _round_features(self, positions: Tensor, prefix: int) -> Tensor:
        dtype = self.operands.query.dtype
        target = torch.empty(positions.shape, dtype=dtype, device=positions.device)
        heads, n_tokens, n_features = positions.shape
        bilateral_features_kernel[(triton.cdiv(positions.numel(), FEATURE_BLOCK),)](
            positions, target, heads, n_tokens, n_features, prefix,
            abs(self.operands.scale) or 1.0, min(torch.finfo(dtype).max, 3.38e38),
            BLOCK=FEATURE_BLOCK,
        )  # fmt: skip
        return target


def prepare(
    operands: Operands, skip_tiles: bool | None = None, configuration: LaunchConfig | None = None
) -> Launch:
    """Return operands in the form of the ABI; arguments as `bilateral_attention_forward`."""
    query, scale, spatial_kernel = operands.query, operands.scale, operands.spatial_kernel
    if configuration is None:
        learned = operands.query_positions if spatial_kernel == "dot" else None
        configuration = launch_config.choose(
            _capability(query.device), query.element_size() * 8, spatial_kernel, query.shape[-1],
            0 if learned is None else learned.shape[-1],
        )  # fmt: skip
    if skip_tiles is None:
        skip_tiles = operands.key.shape[2] >= SKIP_FROM
    query, key, value = (
        _aligned(tensor) for tensor in (operands.query, operands.key, operands.value)
    )
    if scale < 0:
        query = -query
    elif scale == 0:
        query = torch.zeros_like(query)
    positions = operands.query_positions, operands.key_positions
    if spatial_kernel == "none":
        positions = None, None
    if spatial_kernel == "dot":
        positions = _padded(positions[0]), _padded(positions[1])
    ready = replace(
        operands,
        query=query,
        key=key,
        value=value,
        query_positions=_float32(positions[0]),
        key_positions=_float32(positions[1]),
        bandwidth=_float32(operands.bandwidth) if spatial_kernel == "gaussian" else None,
        key_bias=_float32(operands.key_bias),
    )
    skip_tiles = skip_tiles and spatial_kernel == "gaussian" and math.isfinite(scale)
    return Launch(ready, skip_tiles, configuration)


# By the id of a live tensor: a reference to it, its memory and version, its features by kind.
_Kept = dict[tuple[torch.dtype, float, int], Tensor]
_KEPT: dict[int, tuple[weakref.ref[Tensor], tuple[int, int], _Kept]] = {}


def _kept_features(positions: Tensor) -> _Kept | None:
    """Return what was computed of this unchanged tensor; None where that cannot be known.

    Only of leaves and buffers: what a graph computes is another tensor with every call.
    """
    if positions.is_inference() or positions.grad_fn is not None:
        return None
    number, state = id(positions), (positions.data_ptr(), positions._version)
    found = _KEPT.get(number)
    if found is None or found[0]() is not positions or found[1] != state:
        reference = weakref.ref(positions, lambda _: _KEPT.pop(number, None))
        found = _KEPT[number] = (reference, state, {})
    return found[2]


def _capability(device: torch.device) -> int:
    """Return a GPU's SM; under the interpreter, the oldest that is supported."""
    if device.type != "cuda":
        return AMPERE
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _aligned(tensor: Tensor) -> Tensor:
    """Return the tensor if its rows can be read 16 bytes at a time, else a copy that can."""
    padded = _padded(tensor)
    assert padded is not None
    strides = padded.stride()
    whole = strides[-1] == 1 and all(stride % 8 == 0 for stride in strides[:-1])
    return padded if whole and padded.data_ptr() % 16 == 0 else padded.clone(
        memory_format=torch.contiguous_format
    )  # fmt: skip


def _padded(tensor: Tensor | None) -> Tensor | None:
    """Pad the last axis with zeros to a multiple of 8; they change no product."""
    if tensor is None or tensor.shape[-1] % 8 == 0:
        return tensor
    return torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % 8))


def _float32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _pointer(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """Return the tensor, or any other where the kernel is compiled not to read it."""
    return unused if tensor is None else tensor
