"""The choice of each attention's form: the first in a runtime's order that passes the gate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import onnx
from pydantic import BaseModel, ConfigDict

from bilateral_export.lowering.attention_decomposed import decompose
from bilateral_export.lowering.attention_flash import rewrite_to_flash
from bilateral_export.lowering.attention_free_grid import rewrite_to_free_grid
from bilateral_export.lowering.attention_mask import rewrite_to_mask
from bilateral_export.lowering.attention_pattern import (
    AttentionPattern,
    Graph,
    PreconditionError,
    attention_nodes,
    read_attention,
)
from bilateral_export.lowering.attention_tiles import rewrite_to_tiles
from bilateral_export.lowering.gate import FACTOR, RoundingError, measure_attentions
from bilateral_export.lowering.graph_edit import copied, drop_unused
from bilateral_export.lowering.grid_tiling import worth_tiling
from bilateral_export.lowering.push_down_gather import read_in_part

Runtime = Literal["onnxruntime-cpu", "openvino"]
Form = Literal["tiles", "augmented", "mask", "decomposed"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
FORMS: tuple[Form, ...] = get_args(Form)

# From this length on the flash form is faster on ONNX Runtime's CPU provider, as `bilateral bench
# suite --only crossover` measures, interleaved. On two cores of an EPYC with AVX-512 it is 1.05
# times as fast at 401 tokens (95% interval 1.04 .. 1.07; dot range kernel 1.03, 1.02 .. 1.04),
# cannot be distinguished at 197, and is slower at 65.
FLASH_LENGTH = 400

_REWRITES: dict[Form, Callable[[onnx.ModelProto, AttentionPattern], None]] = {
    "tiles": rewrite_to_tiles,
    "augmented": rewrite_to_flash,
    "mask": rewrite_to_mask,
}
# Where the graph computes positions for each image.
_FREE_GRID = _REWRITES | {"augmented": rewrite_to_free_grid}


class LoweredAttention(BaseModel):
    """The form of one attention.

    Attributes:
        node: The operator node's name.
        form: The form it has now.
        error: Relative error on the model's own activations; None for the decomposed form, which
            is the operator's own definition.
        budget: The largest error allowed.
        refused: Forms that were preferred, and why each was not used.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    form: Form | Literal["attention"]  # the latter in files that an earlier version lowered
    error: float | None = None
    budget: float | None = None
    refused: tuple[str, ...] = ()


def lower_attentions(
    canonical: onnx.ModelProto,
    runtime: Runtime,
    form: Form | None = None,
    factor: float = FACTOR,
    length: int | None = None,
) -> tuple[onnx.ModelProto, tuple[LoweredAttention, ...]]:
    """Return a copy of a model whose attentions have their best form, and which form that is.

    An attention that fails the gate gets its next form, until all pass.

    Args:
        canonical: The model; its attentions are operator nodes.
        runtime: What will run it.
        form: Use this form wherever its conditions hold; None: the runtime's best.
        factor: How much larger than that of float32 arithmetic an error may be; infinite: nothing
            is measured.
        length: Choose for so many tokens, in a model of several sizes; None: for those of its own.
    """
    refused: dict[str, list[str]] = {node.name: [] for node in attention_nodes(canonical)}
    failed: set[tuple[str, Form]] = set()
    while True:
        model, chosen = _rewrite(canonical, runtime, form, length, refused, failed)
        patterns = [pattern for pattern, _ in chosen.values()]
        gated = patterns and math.isfinite(factor)
        measured = measure_attentions(model, patterns, factor) if gated else []
        errors = {error.name: error for error in measured}
        too_large = [error for error in measured if not error.passed]
        if not too_large:
            break
        for error in too_large:
            _, used = chosen[error.name]
            failed.add((error.name, used))
            refused[error.name].append(
                f"{used}: error {error.error:.1e}, budget {error.budget:.1e}"
            )
    return model, tuple(
        _lowered(name, chosen[name][1] if name in chosen else "decomposed", errors, reasons)
        for name, reasons in refused.items()
    )


def preferred_forms(runtime: Runtime, pattern: AttentionPattern) -> Sequence[Form]:
    """Return the forms of one attention on one runtime, best first; "decomposed" always works.

    OpenVINO fuses the decomposed form without materialising N x N, so nothing is gained there.
    Plain attention without a spatial term needs no extra columns; the flash form is always best.
    Tiles come first where a bandwidth is narrow and the grid long (grid_tiling.py).
    """
    if runtime == "openvino":
        return ("decomposed",)
    if worth_tiling(pattern):
        return ("tiles", "augmented", "mask", "decomposed")
    plain = pattern.spatial_kernel == "none"
    if plain or (pattern.length or 0) >= FLASH_LENGTH:
        return ("augmented", "mask", "decomposed")
    return ("mask", "augmented", "decomposed")


def _lowered(
    name: str, form: Form, errors: dict[str, RoundingError], reasons: Sequence[str]
) -> LoweredAttention:
    found = errors.get(name)
    return LoweredAttention(
        node=name,
        form=form,
        error=found.error if found else None,
        budget=found.budget if found else None,
        refused=tuple(dict.fromkeys(reasons)),
    )


def _rewrite(
    canonical: onnx.ModelProto,
    runtime: Runtime,
    form: Form | None,
    length: int | None,
    refused: dict[str, list[str]],
    failed: set[tuple[str, Form]],
) -> tuple[onnx.ModelProto, dict[str, tuple[AttentionPattern, Form]]]:
    """Rewrite every attention to its best form that applies and has not failed the gate.

    Returns:
        The model, and by the attention's name what was rewritten to which form; the others are
        decomposed.
    """
    model = copied(canonical)
    graph = Graph(model)
    patterns = []
    for node in attention_nodes(model):
        try:
            pattern = read_attention(model, graph, node)
            patterns.append(replace(pattern, own_length=length or pattern.own_length))
        except PreconditionError as error:
            refused[node.name].append(str(error))
    partly = functools.cache(lambda: read_in_part(canonical))
    chosen: dict[str, tuple[AttentionPattern, Form]] = {}
    for pattern in patterns:
        name = pattern.node.name
        for option in (form, "decomposed") if form else preferred_forms(runtime, pattern):
            if option == "decomposed":
                break
            if (name, option) in failed:
                continue
            if option == "tiles" and pattern.merged in partly():
                refused[name].append("tiles: only some tokens of its output are read")
                continue
            try:
                rewrites = _FREE_GRID if pattern.computed else _REWRITES
                rewrites[option](model, pattern)
            except PreconditionError as error:
                refused[name].append(f"{option}: {error}")
                continue
            chosen[name] = (pattern, option)
            break
    if len(chosen) < len(refused):
        model = decompose(model)
    drop_unused(model)
    return model, chosen
