"""The lowering pipeline: a model's attention forms and graph rewrites for one runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from bilateral_export.artifact import load_graph
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file, require_file, sha256
from bilateral_export.graph.changes import changes, missing_bodies
from bilateral_export.lowering.attention_forms import (
    FLASH_LENGTH,
    FORMS,
    RUNTIMES,
    Form,
    LoweredAttention,
    Runtime,
    lower_attentions,
)
from bilateral_export.lowering.attention_pattern import PreconditionError, attention_nodes
from bilateral_export.lowering.forms_by_length import join_by_length, straddles
from bilateral_export.lowering.gate import (
    FACTOR,
    NotRunError,
    RoundingError,
    measure_float_outputs,
    measure_norms,
    measure_outputs,
    opened,
)
from bilateral_export.lowering.graph_edit import copied, drop_unused
from bilateral_export.lowering.head_layout import rewrite_head_layout
from bilateral_export.lowering.integer_products import (
    to_float_products,
    to_integer_products,
    to_qdq_products,
)
from bilateral_export.lowering.push_down_gather import push_down_gather
from bilateral_export.lowering.residual_stream import rewrite_residual_stream
from bilateral_export.lowering.token_major_layout import rewrite_token_major_layout
from bilateral_export.metadata import LOWERING_KEY

Gate = Callable[[onnx.ModelProto, onnx.ModelProto, float], Sequence[RoundingError]]


@dataclass(frozen=True)
class LoweringPass:
    """A rewrite of a graph, and the gate that it must pass.

    Attributes:
        name: For records and for leaving the pass out.
        apply: Rewrites a model in place and returns in how many places, or raises
            `PreconditionError` with the reason why it does not apply.
        gate: The rounding errors of a rewritten model, given the model before and the gate's
            factor; None where a rewrite needs no gate.
    """

    name: str
    apply: Callable[[onnx.ModelProto], int]
    gate: Gate | None = None


_EVERYWHERE = (
    LoweringPass("residual_stream", rewrite_residual_stream, measure_norms),
    LoweringPass("push_down_gather", push_down_gather, measure_outputs),
)
PASSES: dict[Runtime, tuple[LoweringPass, ...]] = {
    "onnxruntime-cpu": (
        *_EVERYWHERE,
        LoweringPass("head_layout", rewrite_head_layout, measure_float_outputs),
        LoweringPass("token_major_layout", rewrite_token_major_layout, measure_float_outputs),
    ),
    "openvino": _EVERYWHERE,
}
"""By runtime, the passes behind the choice of attention forms, in order."""


class PassRecord(BaseModel):
    """The outcome of one pass.

    Attributes:
        name: The pass.
        applied: In how many places it rewrote the graph; 0: the graph is as it was.
        error: Largest relative error that the gate found, against its budget.
        budget: The largest error allowed.
        refused: Why the pass was not applied.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    applied: int = 0
    error: float | None = None
    budget: float | None = None
    refused: str = ""


class Lowering(BaseModel):
    """What was done to a file; kept in its metadata under LOWERING_KEY.

    Attributes:
        runtime: What the file was lowered for.
        source_sha256: Of the exported file.
        sites: Every attention.
        passes: Every pass, in the order they ran; empty in files of versions without this key.
        from_length: The same for images of FLASH_LENGTH tokens and more, where the file holds two
            forms; `sites` and `passes` are those of smaller ones then.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    runtime: Runtime
    source_sha256: str
    sites: tuple[LoweredAttention, ...]
    passes: tuple[PassRecord, ...] = ()
    from_length: Lowering | None = None

    @property
    def summary(self) -> str:
        """Such as "12 x augmented"."""
        counts = {form: sum(site.form == form for site in self.sites) for form in FORMS}
        parts = [f"{count} x {form}" for form, count in counts.items() if count]
        found = ", ".join(parts) or "no attention"
        if self.from_length is None:
            return found
        return f"{found}; from {FLASH_LENGTH} tokens on {self.from_length.summary}"

    def record(self, name: str) -> PassRecord:
        """Return the record of a pass, also of one that this runtime does not have."""
        missing = PassRecord(name=name, refused="not wanted")
        return next((record for record in self.passes if record.name == name), missing)

    @model_serializer(mode="wrap")
    def _with_earlier_keys(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Add the keys under which readers of earlier versions find the passes."""
        stream, gather = self.record("residual_stream"), self.record("push_down_gather")
        heads, moves = self.record("head_layout"), self.record("token_major_layout")
        gated = {"error", "budget", "refused"}
        worst = max(heads, moves, key=lambda record: record.error or 0.0)
        layout = {"heads": heads.applied, "shares": 0, "moves": moves.applied, "gelus": 0}
        return {
            **fields(self),
            "stream": {"rewritten": stream.applied > 0, **stream.model_dump(include=gated)},
            "residual_scales": 0,
            "rows": {"nodes": gather.applied, **gather.model_dump(include=gated)},
            "kernels": {**layout, **worst.model_dump(include=gated)},
        }


@dataclass(frozen=True)
class LoweredModel:
    """A lowered file."""

    path: Path
    lowering: Lowering


def lower(
    model: Path,
    runtime: str,
    output: Path | None = None,
    *,
    form: str | None = None,
    factor: float = FACTOR,
    without: Collection[str] = (),
) -> LoweredModel:
    """Write the form of an exported model that is fastest on one runtime and passes the gate.

    Args:
        model: A canonical file, as `bilateral export` writes it.
        runtime: "onnxruntime-cpu" or "openvino".
        output: The file to write; it must be another than `model`. None: MODEL.RUNTIME.onnx beside
            the model.
        form: Use this form wherever its conditions hold; None: the runtime's best.
        factor: The gate: how much larger than that of plain float32 an error may be; infinite: no
            gate, for studies of time and memory.
        without: Names of passes to leave out.

    Raises:
        UserError: The file is not an ONNX model, was lowered before, is too large to rewrite, or
            the runtime or form is unknown.
    """
    require_file(model, "model")
    _known_runtime(runtime)
    output = output or model.with_suffix(f".{runtime}.onnx")
    if output.resolve() == model.resolve():
        raise UserError(f"{output} is the model itself", "Write to another file.")
    proto, lowering = lowered_proto(model, runtime, form=form, factor=factor, without=without)
    with atomic_file(output) as temporary:
        onnx.save(proto, temporary)
    return LoweredModel(output, lowering)


def lowered_proto(
    model: Path,
    runtime: str,
    *,
    form: str | None = None,
    factor: float = FACTOR,
    without: Collection[str] = (),
) -> tuple[onnx.ModelProto, Lowering]:
    """Return what `lower` writes, without writing it."""
    known = _known_runtime(runtime)
    if form is not None and form not in FORMS:
        raise UserError(f"unknown form '{form}'", f"Use one of {', '.join(FORMS)}.")
    canonical = _read(model)
    source = sha256(model)

    def lower_for(length: int | None) -> tuple[onnx.ModelProto, Lowering]:
        return _lower_to(copied(canonical), known, source, form, factor, without, length)

    if form is None and known == "onnxruntime-cpu" and straddles(canonical):
        (short, lowering), (long, beyond) = lower_for(1), lower_for(FLASH_LENGTH)
        if lowering.summary == beyond.summary:
            lowered = short
        else:
            lowered = join_by_length(short, long)
            lowering = lowering.model_copy(update={"from_length": beyond})
    else:
        lowered, lowering = lower_for(None)
    lowered.metadata_props.add(key=LOWERING_KEY, value=lowering.model_dump_json())
    return lowered, lowering


def _lower_to(
    canonical: onnx.ModelProto,
    runtime: Runtime,
    source: str,
    form: Form | None,
    factor: float,
    without: Collection[str],
    length: int | None,
) -> tuple[onnx.ModelProto, Lowering]:
    quantised = to_float_products(canonical) > 0
    lowered, sites = lower_attentions(canonical, runtime, form, factor, length)
    passes = tuple(
        PassRecord(name=one.name, refused="not wanted")
        if one.name in without
        else run_pass(one, lowered, factor)
        for one in PASSES[runtime]
    )
    if quantised:
        (to_qdq_products if runtime == "openvino" else to_integer_products)(lowered)
    drop_unused(lowered)
    return lowered, Lowering(runtime=runtime, source_sha256=source, sites=sites, passes=passes)


def _known_runtime(runtime: str) -> Runtime:
    for known in RUNTIMES:
        if known == runtime:
            return known
    raise UserError(f"no lowering for '{runtime}'", f"There is one for {', '.join(RUNTIMES)}.")


def run_pass(one: LoweringPass, model: onnx.ModelProto, factor: float = FACTOR) -> PassRecord:
    """Apply a pass to a model, in place, and return what came of it.

    Where the pass does not apply, or fails its gate or cannot be judged, the model is as it was.
    """
    before = copied(model)
    try:
        applied = one.apply(model)
    except PreconditionError as error:
        return PassRecord(name=one.name, refused=str(error))
    if not applied or one.gate is None or math.isinf(factor):
        return PassRecord(name=one.name, applied=applied)
    try:
        worst = max(one.gate(model, before, factor), key=lambda found: found.error / found.budget)
    except NotRunError as error:
        model.CopyFrom(before)
        return PassRecord(name=one.name, refused=f"the gate cannot run the model: {error}")
    measured = PassRecord(name=one.name, error=worst.error, budget=worst.budget)
    if worst.passed:
        return measured.model_copy(update={"applied": applied})
    model.CopyFrom(before)
    return measured.model_copy(update={"refused": f"{worst.name}: its rounding fails the gate"})


def read_lowering(proto: onnx.ModelProto) -> Lowering | None:
    """Return what was done to a model, or None for a canonical one."""
    for entry in proto.metadata_props:
        if entry.key == LOWERING_KEY:
            return Lowering.model_validate_json(entry.value)
    return None


def has_attention(path: Path) -> bool:
    """Return whether a file has operator nodes, which can be lowered; its weights are not read.

    Raises:
        UserError: The file is not an ONNX model.
    """
    return bool(attention_nodes(load_graph(path, weights=False)))


def _read(path: Path) -> onnx.ModelProto:
    model = load_graph(path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
        raise UserError(
            f"{path} is not an ONNX model that can be lowered ({reason})",
            "Export it with `bilateral export`; files over 2 GB are served as they are.",
        ) from error
    if done := read_lowering(model):
        raise UserError(
            f"{path} was lowered for {done.runtime} already", "Start from the exported file."
        )
    _require_runnable(model, path)
    return model


def _require_runnable(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a file that cannot be run as it is, so that a later failure is a fault of ours."""
    changed = "; ".join(changes(model))
    since = f"Another tool changed it: {changed}. " if changed else ""
    fix = f"{since}Export it again with `bilateral export`, which has --precision and --opset."
    if missing := missing_bodies(model):
        raise UserError(f"{path}: {missing[0]} has no function body", fix)
    try:
        with opened(model, optimised=False):
            pass
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = str(error).rpartition("] : ")[2] or str(error)
        if "NOT_IMPLEMENTED" in reason:
            fix = "Its CPU provider has no such kernel; export fp32 or fp16 for it."
        raise UserError(f"ONNX Runtime cannot open {path} ({reason})", fix) from error
