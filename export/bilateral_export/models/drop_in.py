"""Drop-in replacements for attention in PyTorch, timm and Hugging Face models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from bilateral_export.op import torch_op
from bilateral_export.op.contract import RangeKernel

# What timm's `Attention` has; a module with anything else computes something else.
_TIMM_PARTS = ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop")
HF_NAME = "bilateral"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    range_kernel: RangeKernel = "dot",
    positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    bandwidth: Tensor | None = None,
    prefix: int = 0,
) -> Tensor:
    """Return bilateral attention, called as `F.scaled_dot_product_attention`.

    Without the arguments after `enable_gqa` it computes what that function computes.

    Args:
        query: `[B, H, Nq, D]`.
        key: `[B, H, Nk, D]`.
        value: `[B, H, Nk, D]`.
        attn_mask: Which keys take part, the same for every query and head: `[B, 1, 1, Nk]`, or
            anything shorter that broadcasts to it; boolean, or added to the logits.
        dropout_p: Must be 0: the operator has no dropout.
        is_causal: Whether query i sees only keys j <= i; as many queries as keys.
        scale: Factor of the range kernel; `1 / sqrt(D)` if not given.
        enable_gqa: Whether keys and values have fewer heads, each for a group of queries' heads.
        range_kernel: Similarity of tokens: "dot" or "gaussian".
        positions: Where the queries are: coordinates `[Nq, C]`, with a bandwidth, for a Gaussian
            spatial kernel; features `[H, Nq, P]`, without, for their dot product; or None.
        key_positions: Where the keys are; where the queries are if not given.
        bandwidth: `[H]`, sigma per head in units of the coordinates.
        prefix: Number of leading tokens without a position.

    Returns:
        `[B, H, Nq, D]`.

    Raises:
        ValueError: A mask varies by query or head, dropout is wanted, or shapes do not fit.
    """
    if dropout_p:
        raise ValueError(f"dropout_p is {dropout_p}: bilateral attention has no dropout, give 0")
    if query.dim() != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}, expected [B, H, N, D]")
    sizes = (query.shape[-2], key.shape[-2])
    if is_causal and all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1]:
        raise ValueError(
            f"is_causal with {sizes[0]} queries and {sizes[1]} keys: PyTorch aligns their starts,"
            " the operator their ends; call torch.ops.bilateral.attention, which says so"
        )
    return _attend(
        query,
        key,
        value,
        None if attn_mask is None else _key_bias(attn_mask, query.shape[0], key.shape[-2]),
        is_causal,
        scale,
        enable_gqa,
        range_kernel,
        (positions, positions if key_positions is None else key_positions, bandwidth),
        prefix,
    )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    causal: bool,
    scale: float | None,
    grouped: bool,
    range_kernel: RangeKernel,
    placed: tuple[Tensor | None, Tensor | None, Tensor | None],
    prefix: int,
) -> Tensor:
    """Return the operator's output; queries are the last of the keys where it is causal."""
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    positions, _, bandwidth = placed
    spatial = "none" if positions is None else "dot" if bandwidth is None else "gaussian"
    output: Tensor = torch_op.bilateral_attention(
        query,
        key,
        value,
        *(None if part is None else _at_least_float32(part) for part in placed),
        key_bias,
        1 / math.sqrt(query.shape[-1]) if scale is None else scale,
        range_kernel,
        spatial,
        prefix,
        prefix,
        causal,
    )
    return output


def _at_least_float32(tensor: Tensor) -> Tensor:
    """The spatial term is computed in float32 whatever the tokens' type is."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _key_bias(mask: Tensor, batch: int, keys: int) -> Tensor:
    """Return a mask of keys as what is added to their logits, `[B, Nk]`."""
    if mask.dim() > 4 or any(size != 1 for size in mask.shape[-3:-1]):
        raise ValueError(
            f"attn_mask has shape {tuple(mask.shape)}, expected [B, 1, 1, Nk]: it may leave out"
            " keys, the same for every query and head (is_causal is an argument of its own)"
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    mask = _at_least_float32(mask)
    rows = mask.reshape(mask.shape[0] if mask.dim() == 4 else 1, mask.shape[-1])
    return rows.expand(batch, keys)


class BilateralAttention(nn.Module):
    """Multi-head bilateral self-attention with the signature and the weights of timm's `Attention`.

    Give it as `attn_layer` to a model of timm, or put it where such a module stands. Without the
    arguments after `norm_layer` it computes what timm's computes, with the same `state_dict`.

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        attn_head_dim: Width of a head; `dim / num_heads` if None.
        dim_out: Width of the result; `dim` if None.
        qkv_bias: Whether query, key and value have a bias.
        qk_norm: Whether query and key are normalised per head.
        scale_norm: Whether the heads' output is normalised before the projection.
        proj_bias: Whether the projection has a bias.
        gated: Whether the heads' output is multiplied by a sigmoid gate of the tokens.
        attn_drop: Dropout of attention weights; the operator has none, so training with it fails.
        proj_drop: Dropout after the projection.
        norm_layer: The normalisation that `qk_norm` and `scale_norm` ask for; layer norm if None.
        device: Where the weights are made.
        dtype: Their type.
        range_kernel: Similarity of tokens: "dot" or "gaussian".
        positions: Coordinates `[N, C]` of the tokens, for a Gaussian spatial kernel; see
            `grid_positions`. Calls with fewer tokens take the first rows.
        bandwidth: Initial sigmas of the first and last head, in units of the coordinates.
        prefix: Number of leading tokens without a position, such as the class token.
        causal: Whether a token sees only those before it and itself.
    """

    positions: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[..., nn.Module] | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        range_kernel: RangeKernel = "dot",
        positions: Tensor | None = None,
        bandwidth: tuple[float, float] = (1.0, 4.0),
        prefix: int = 0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if attn_head_dim is None and dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        norm: Callable[..., nn.Module] = norm_layer or nn.LayerNorm
        made = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = attn_head_dim or dim // num_heads
        self.scale = self.head_dim**-0.5
        inside = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inside, bias=qkv_bias, **made)
        self.q_norm = norm(self.head_dim, **_given(made)) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim, **_given(made)) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm(inside, **_given(made)) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, inside, bias=qkv_bias, **made) if gated else None
        self.proj = nn.Linear(inside, dim_out or dim, bias=proj_bias, **made)
        self.proj_drop = nn.Dropout(proj_drop)
        self._kernels(range_kernel, positions, bandwidth, prefix, causal)

    def _kernels(
        self,
        range_kernel: RangeKernel,
        positions: Tensor | None,
        bandwidth: tuple[float, float],
        prefix: int,
        causal: bool,
    ) -> None:
        self.range_kernel: RangeKernel = range_kernel
        self.prefix = prefix
        self.causal = causal
        self.register_buffer("positions", positions, persistent=False)
        if positions is not None:
            first, last = (math.log(sigma) for sigma in bandwidth)
            self.log_bandwidth = nn.Parameter(torch.linspace(first, last, self.num_heads))

    @classmethod
    def of(
        cls,
        attention: nn.Module,
        *,
        range_kernel: RangeKernel = "dot",
        positions: Tensor | None = None,
        bandwidth: tuple[float, float] = (1.0, 4.0),
        prefix: int = 0,
        causal: bool = False,
    ) -> BilateralAttention:
        """Return timm's `Attention`, or a module with its attributes, as bilateral attention.

        The weights are shared with it. The other arguments are those of the class.

        Raises:
            ValueError: The module has parameters or parts that timm's `Attention` does not have.
        """
        kind = type(attention).__name__
        children = dict(attention.named_children())
        own = [name for name, _ in attention.named_parameters(recurse=False)]
        if strange := sorted({*children, *own} - {*_TIMM_PARTS}):
            raise ValueError(f"{kind} has {', '.join(strange)}, which timm's Attention has not")
        if not {"qkv", "proj"} <= children.keys() or not hasattr(attention, "num_heads"):
            raise ValueError(f"{kind} has no qkv, proj and num_heads, as timm's Attention has")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        qkv = cast(nn.Linear, children["qkv"])
        made.num_heads = int(cast(int, attention.num_heads))
        made.head_dim = qkv.out_features // 3 // made.num_heads
        made.scale = float(cast(float, getattr(attention, "scale", made.head_dim**-0.5)))
        for name in _TIMM_PARTS:
            setattr(made, name, children.get(name, None if name == "gate" else nn.Identity()))
        made._kernels(range_kernel, positions, bandwidth, prefix, causal)
        return made.train(attention.training)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the attended tokens `[B, N, dim]` of tokens `[B, N, dim]`.

        Args:
            x: The tokens.
            attn_mask: As in `scaled_dot_product_attention`.
            is_causal: Whether a token sees only those before it and itself.
        """
        batch, tokens, _ = x.shape
        # Written as in models/attention.py, which is what a lowering recognises.
        query, key, value = (
            part.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        places = self.positions
        if places is not None:
            index = torch.arange(tokens, device=x.device)
            places = places.index_select(0, index)
        drop = self.attn_drop.p if isinstance(self.attn_drop, nn.Dropout) and self.training else 0.0
        heads = scaled_dot_product_attention(
            self.q_norm(query),
            self.k_norm(key),
            value,
            attn_mask,
            drop,
            is_causal or self.causal,
            self.scale,
            range_kernel=self.range_kernel,
            positions=places,
            bandwidth=None if places is None else self.log_bandwidth.exp(),
            prefix=self.prefix,
        )
        joined = self.norm(heads.transpose(1, 2).flatten(2))
        if self.gate is not None:
            joined = joined * self.gate(x).sigmoid()
        return cast(Tensor, self.proj_drop(self.proj(joined)))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Norm layers of older models take no device and no dtype."""
    return {name: value for name, value in options.items() if value is not None}


def replace_attention(
    model: nn.Module,
    *,
    range_kernel: RangeKernel = "dot",
    positions: Tensor | None = None,
    bandwidth: tuple[float, float] = (1.0, 4.0),
    prefix: int = 0,
    causal: bool = False,
) -> int:
    """Replace every attention of a timm model by a bilateral one, in place, and return how many.

    An attention is a module with `qkv`, `proj` and `num_heads`. Weights and their names stay; with
    positions each attention gets a `log_bandwidth` beside them. The other arguments are those of
    `BilateralAttention`.

    Raises:
        ValueError: There is no attention, or one of another kind than timm's `Attention`.
    """
    found = [
        name
        for name, module in model.named_modules()
        if name and all(hasattr(module, part) for part in ("qkv", "proj", "num_heads"))
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention with qkv, proj and num_heads")
    for name in found:
        owner, _, attribute = name.rpartition(".")
        bilateral = BilateralAttention.of(
            model.get_submodule(name),
            range_kernel=range_kernel,
            positions=positions,
            bandwidth=bandwidth,
            prefix=prefix,
            causal=causal,
        )
        setattr(model.get_submodule(owner), attribute, bilateral)
    return len(found)


def hf_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return bilateral attention, called as Hugging Face's attention functions.

    Kernels are the attention module's own attributes, where it has them: `range_kernel`,
    `positions` (`[N, C]`) with `log_bandwidth` (`[H]`), and `prefix`.

    Args:
        module: The attention module that calls.
        query: `[B, H, Nq, D]`.
        key: `[B, H or fewer, Nk, D]`.
        value: `[B, H or fewer, Nk, D]`.
        attention_mask: `[B, Nk]`, 1 where there is a token (`register_with_transformers` sees to
            it), or as in `scaled_dot_product_attention`.
        scaling: Factor of the range kernel.
        dropout: Must be 0, as it is in evaluation.
        is_causal: Whether a token sees only those before it; the module's `is_causal` if None.

    Returns:
        `[B, Nq, H, D]`, and None instead of attention weights.
    """
    if dropout:
        raise ValueError(f"dropout is {dropout}: bilateral attention has none; call model.eval()")
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask.bool()[:, None, None, :]
    keys = key.shape[2]
    log_bandwidth: Any = getattr(module, "log_bandwidth", None)
    positions: Any = getattr(module, "positions", None)
    places: tuple[Any, Any, Any] = (None, None, None)
    if positions is not None and log_bandwidth is not None:
        index = torch.arange(keys, device=query.device)
        key_positions = positions.index_select(0, index)
        places = (key_positions[-query.shape[2] :], key_positions, log_bandwidth.exp())
    output = _attend(
        query,
        key,
        value,
        None if attention_mask is None else _key_bias(attention_mask, query.shape[0], keys),
        bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal,
        scaling,
        key.shape[1] != query.shape[1],
        cast(RangeKernel, getattr(module, "range_kernel", "dot")),
        places,
        int(cast(int, getattr(module, "prefix", 0))),
    )
    return output.transpose(1, 2), None


def hf_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *_: Any,
    attention_mask: Tensor | None = None,
    mask_function: Callable[..., Any] | None = None,
    local_size: int | None = None,
    **__: Any,
) -> Tensor | None:
    """Return the mask that Hugging Face hands on to `hf_attention`: `[B, Nk]`, or None.

    Raises:
        ValueError: The model wants another mask than padding and causality, a window say.
    """
    kind = getattr(mask_function, "__name__", "causal_mask_function")
    if local_size is not None or kind not in (
        "causal_mask_function",
        "bidirectional_mask_function",
    ):
        raise ValueError(
            f"the model masks by {kind}{'' if local_size is None else f' in {local_size} tokens'}:"
            " bilateral attention masks padding and the future only"
        )
    return None if attention_mask is None else attention_mask[:, -kv_length:]


def register_with_transformers(name: str = HF_NAME) -> str:
    """Make `attn_implementation="bilateral"` known to Hugging Face's models and return the name.

    Both interfaces are registered: without that of masks, padding would be forgotten silently.
    """
    transformers: Any = __import__("transformers")
    transformers.AttentionInterface.register(name, hf_attention)
    transformers.AttentionMaskInterface.register(name, hf_attention_mask)
    return name
