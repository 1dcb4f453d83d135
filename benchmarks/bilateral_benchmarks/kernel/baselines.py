"""Baselines of the fused kernel: other implementations of bilateral attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import PlainSerializer, PlainValidator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bilateral_export.op.attention import attention, spatial_logits
from bilateral_export.op.contract import RangeKernel, SpatialKernel
from bilateral_export.op.kernel.launch_config import LaunchConfig
from bilateral_export.op.operands import Operands

Run = Callable[[], Tensor]
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_NAMED: dict[object, torch.dtype] = {
    **{name: dtype for dtype, name in DTYPES.items()},
    **{dtype: dtype for dtype in DTYPES},
}
# How a shape is written to JSON, which has neither these types nor infinity.
Dtype = Annotated[
    torch.dtype, PlainValidator(_NAMED.__getitem__), PlainSerializer(DTYPES.__getitem__)
]
Bandwidth = Annotated[float, PlainSerializer(lambda value: "inf" if math.isinf(value) else value)]


@dataclass(frozen=True)
class Shape:
    """One problem to time.

    Attributes:
        name: What it stands for.
        batch: B.
        heads: H.
        tokens: Nq = Nk.
        head_dim: D.
        dtype: T.
        range_kernel: The range kernel.
        spatial_kernel: The spatial kernel; its positions lie on a line (`causal`) or in a square.
        causal: Whether it is a causal language model.
        prefix: Tokens without position.
        bandwidth: Sigma as a share of the extent of the positions.
        features: P of a dot spatial kernel; 0 for D.
    """

    name: str
    batch: int
    heads: int
    tokens: int
    head_dim: int
    dtype: Dtype = torch.bfloat16
    range_kernel: RangeKernel = "dot"
    spatial_kernel: SpatialKernel = "gaussian"
    causal: bool = False
    prefix: int = 0
    bandwidth: Bandwidth = 0.2
    features: int = 0

    @property
    def flops(self) -> float:
        """Of the two matrix products on D columns, the usual count; half of it if causal."""
        products = 4.0 * self.batch * self.heads * self.tokens**2 * self.head_dim
        return products / 2 if self.causal else products


@dataclass(frozen=True)
class Problem:
    """The operands of a shape; fields as in the operator's contract (op/README.md)."""

    shape: Shape
    query: Tensor
    key: Tensor
    value: Tensor
    positions: Tensor | None
    bandwidth: Tensor | None
    scale: float

    @property
    def operands(self) -> Operands:
        """The same as the operator takes them."""
        shape = self.shape
        return Operands(
            self.query, self.key, self.value, self.positions, self.positions, self.bandwidth,
            scale=self.scale, range_kernel=shape.range_kernel, spatial_kernel=shape.spatial_kernel,
            query_prefix=shape.prefix, key_prefix=shape.prefix, causal=shape.causal,
        )  # fmt: skip

    @property
    def key_term(self) -> Tensor:
        """What the Gaussian range kernel adds per key, `[B, H, N]` float32."""
        return -0.5 * self.scale * self.key.float().square().sum(-1)

    @property
    def spatial(self) -> Tensor:
        """The spatial logits, `[H, N, N]`."""
        assert self.positions is not None
        logits = spatial_logits(
            self.positions, self.positions, self.bandwidth, self.shape.spatial_kernel
        )
        logits[:, : self.shape.prefix] = 0
        logits[:, :, : self.shape.prefix] = 0
        return logits


def problem(shape: Shape, device: str, seed: int = 0) -> Problem:
    """Return standard normal tokens, cut out of one fused projection as in a model."""
    generator = torch.Generator(device).manual_seed(seed)
    projection = torch.randn(
        (shape.batch, shape.tokens, 3, shape.heads, shape.head_dim),
        generator=generator,
        device=device,
        dtype=torch.float32,
    ).to(shape.dtype)
    query, key, value = projection.permute(2, 0, 3, 1, 4)
    positions = bandwidth = None
    if shape.spatial_kernel == "gaussian":
        positions = _coordinates(shape, device)
        extent = float(positions.max() - positions.min()) or 1.0
        bandwidth = torch.full((shape.heads,), shape.bandwidth * extent, device=device)
    elif shape.spatial_kernel == "dot":
        features = shape.features or shape.head_dim
        positions = torch.randn(
            (shape.heads, shape.tokens, features), generator=generator, device=device
        ) / math.sqrt(math.sqrt(features))
        positions[:, : shape.prefix] = 0
    return Problem(shape, query, key, value, positions, bandwidth, 1 / math.sqrt(shape.head_dim))


def _coordinates(shape: Shape, device: str) -> Tensor:
    """`[N, 1]` on a line for a causal model, else `[N, 2]` row by row in a square."""
    index = torch.arange(shape.tokens - shape.prefix, device=device, dtype=torch.float32)
    if shape.causal:
        coordinates = index[:, None]
    else:
        side = math.ceil(math.sqrt(len(index)))
        coordinates = torch.stack((index // side, index % side), 1)
    return torch.nn.functional.pad(coordinates, (0, 0, shape.prefix, 0))


def fused(
    case: Problem, skip_tiles: bool | None = None, configuration: LaunchConfig | None = None
) -> Run:
    """Return the fused kernel; arguments as `launcher.bilateral_attention_forward`."""
    from bilateral_export.op.kernel.launch import bilateral_attention_forward

    operands = case.operands
    return lambda: bilateral_attention_forward(
        operands, skip_tiles=skip_tiles, configuration=configuration
    )


def by_rule(case: Problem) -> Run:
    """Return the fused kernel in the form that the rule chooses, made beforehand (features.py)."""
    from bilateral_export.op.kernel.launch import bilateral_attention_forward
    from bilateral_export.op.kernel.spatial_features import cheapest_form

    operands = cheapest_form(case.operands)
    return lambda: bilateral_attention_forward(operands)


def exact_form(case: Problem) -> Run:
    """Return the fused kernel in exact form, where the rule chooses another."""
    from bilateral_export.op.kernel.spatial_features import cheapest_form

    if cheapest_form(case.operands).spatial_kernel == case.shape.spatial_kernel:
        raise RuntimeError("the same as fused: no form but the exact one, by the rule")
    return fused(case)


def plain(case: Problem, backend: SDPBackend) -> Run:
    """Return PyTorch's attention without any spatial term: the ceiling."""

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(
                case.query, case.key, case.value, is_causal=case.shape.causal, scale=case.scale
            )

    return run


def materialised(case: Problem) -> Run:
    """Return PyTorch's attention with every logit but q.k in a mask made beforehand, not timed.

    Its rows begin at multiples of 16, or PyTorch would copy it to such ones with every call.
    """
    shape = case.shape
    bias = torch.zeros(1, 1, shape.tokens, shape.tokens, device=case.query.device)
    if shape.spatial_kernel != "none":
        bias = bias + case.spatial
    if shape.range_kernel == "gaussian":
        bias = bias + case.key_term[:, :, None, :]
    if shape.causal:
        future = torch.ones(shape.tokens, shape.tokens, device=bias.device).triu(1).bool()
        bias = bias.masked_fill(future, float("-inf"))
    width = math.ceil(shape.tokens / 16) * 16
    mask = bias.new_empty((*bias.shape[:-1], width), dtype=shape.dtype)[..., : shape.tokens]
    mask.copy_(bias)
    return lambda: scaled_dot_product_attention(
        case.query, case.key, case.value, attn_mask=mask, scale=case.scale
    )


def flex(case: Problem) -> Run:
    """Return compiled FlexAttention with the same logits; features are columns of q and k."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape, device = case.shape, case.query.device
    key_term, bandwidth, positions = case.key_term, case.bandwidth, case.positions
    query, key, value = case.query, case.key, case.value
    if shape.spatial_kernel == "dot":
        assert positions is not None
        factor = case.scale**-0.5
        columns = (positions * factor).to(shape.dtype).expand(shape.batch, -1, -1, -1)
        query, key = (torch.cat((tokens, columns), -1) for tokens in (query, key))

    def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if shape.range_kernel == "gaussian":
            logit = logit + key_term[b, h, j]
        if shape.spatial_kernel == "gaussian":
            assert positions is not None
            assert bandwidth is not None
            distance = torch.zeros_like(logit)
            for axis in range(positions.shape[1]):
                distance = distance + (positions[i, axis] - positions[j, axis]) ** 2
            with_position = (i >= shape.prefix) & (j >= shape.prefix)
            spatial = -distance / (2 * bandwidth[h] ** 2)
            logit = logit + torch.where(with_position, spatial, 0.0)
        return logit

    block_mask = None
    if shape.causal:
        block_mask = create_block_mask(
            lambda b, h, i, j: i >= j, None, None, shape.tokens, shape.tokens, device=str(device)
        )
    function = _compile(flex_attention, device)
    return lambda: function(
        query, key, value, score_mod=score, block_mask=block_mask, scale=case.scale
    )


def decomposed(case: Problem) -> Run:
    """Return the composite implementation in eager mode, a chunk of queries at a time."""
    given = vars(case.operands)
    return lambda: attention(**given)


def compiled(case: Problem) -> Run:
    """Return the same formula under torch.compile, all queries at once, not in chunks."""

    def formula(
        query: Tensor, key: Tensor, value: Tensor, positions: Tensor | None,
        bandwidth: Tensor | None,
    ) -> Tensor:  # fmt: skip
        given = Problem(case.shape, query, key, value, positions, bandwidth, case.scale)
        logits = (case.scale * (query @ key.transpose(-1, -2))).float()
        if case.shape.range_kernel == "gaussian":
            logits = logits + given.key_term[:, :, None, :]
        if case.shape.spatial_kernel != "none":
            logits = logits + given.spatial
        if case.shape.causal:
            index = torch.arange(case.shape.tokens, device=query.device)
            logits = logits.masked_fill(index > index[:, None], float("-inf"))
        return logits.softmax(-1).to(value.dtype) @ value

    function = _compile(formula, case.query.device)
    return lambda: function(case.query, case.key, case.value, case.positions, case.bandwidth)


def _compile(function: Callable[..., Any], device: torch.device) -> Callable[..., Tensor]:
    """Return a function compiled for the shapes it is given first; on the CPU no more than traced.

    All shapes share the function's code, of which PyTorch keeps eight variants and runs the next in
    eager mode: what was compiled before is forgotten, and a graph that is not whole is an error.
    """
    torch.compiler.reset()
    backend = "inductor" if device.type == "cuda" else "eager"
    return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)


PLAIN = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
BASELINES: dict[str, Callable[[Problem], Run]] = {
    "fused": by_rule,
    "fused, exact form": exact_form,
    **{name: functools.partial(plain, backend=backend) for name, backend in PLAIN.items()},
    "sdpa with bias": materialised,
    "flex": flex,
    "eager": decomposed,
    "compiled": compiled,
}
# What this project wrote, and what takes seconds to compile or to run.
OURS = ("fused", "fused, exact form")
SLOW = ("flex", "eager", "compiled")
