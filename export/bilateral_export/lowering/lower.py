"""Choose and apply the lowering of a model for one runtime, held to the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx
from pydantic import BaseModel, ConfigDict

from bilateral_export.artifact import load_graph
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file, require_file, sha256
from bilateral_export.graph.changes import changes, missing_bodies
from bilateral_export.lowering.attention_decomposed import decompose
from bilateral_export.lowering.attention_flash import augment
from bilateral_export.lowering.attention_mask import fold_mask
from bilateral_export.lowering.attention_pattern import (
    Graph,
    PreconditionError,
    Site,
    attention_nodes,
    read_site,
)
from bilateral_export.lowering.attention_standard import use_attention
from bilateral_export.lowering.fold_residual_scale import fold_residual_scales
from bilateral_export.lowering.gate import (
    FACTOR,
    measure_norms,
    measure_outputs,
    measure_sites,
    open_session,
)
from bilateral_export.lowering.gelu import keep_gelu
from bilateral_export.lowering.graph_edit import drop_unused
from bilateral_export.lowering.head_layout import read_heads_in_place
from bilateral_export.lowering.push_down_gather import keep_read_rows
from bilateral_export.lowering.residual_into_gemm import add_shares_in_products
from bilateral_export.lowering.residual_stream import read_stream, rewrite_stream
from bilateral_export.lowering.token_major_layout import keep_tokens_first
from bilateral_export.metadata import LOWERING_KEY

Runtime = Literal["onnxruntime-cpu", "openvino"]
Form = Literal["augmented", "mask", "attention", "decomposed"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
FORMS: tuple[Form, ...] = get_args(Form)

# From here on the flash form is faster on ONNX Runtime's CPU provider, which `bilateral bench suite
# --only crossover` measures by turns. On two cores of an EPYC with AVX-512 it is 1.05 times as fast
# at 401 tokens (95% interval 1.04 .. 1.07; dot range kernel 1.03, 1.02 .. 1.04), not to be told
# apart at 197, slower at 65.
FLASH_LENGTH = 400

_REWRITES: dict[Form, Callable[[onnx.ModelProto, Site], None]] = {
    "augmented": augment,
    "mask": fold_mask,
    "attention": use_attention,
}


class LoweredSite(BaseModel):
    """What became of one attention.

    Attributes:
        node: The operator node's name.
        form: The form it has now.
        error: Relative error on the model's own activations; None for the decomposed form, which
            is the operator's own definition.
        budget: What it may be.
        refused: Forms that were preferred, and why each was not used.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    form: Form
    error: float | None = None
    budget: float | None = None
    refused: tuple[str, ...] = ()


class LoweredStream(BaseModel):
    """What became of the residual stream.

    Attributes:
        rewritten: Whether it is one running sum.
        error: Largest relative error of a norm that reads it, on the model's own activations.
        budget: What it may be.
        refused: Why it is as it was.
    """

    model_config = ConfigDict(frozen=True)

    rewritten: bool
    error: float | None = None
    budget: float | None = None
    refused: str = ""


class LoweredRows(BaseModel):
    """What became of tokens that no output reads.

    Attributes:
        nodes: How many nodes leave them out now.
        error: Largest relative difference that this makes to an output.
        budget: What it may be.
        refused: Why none does.
    """

    model_config = ConfigDict(frozen=True)

    nodes: int
    error: float | None = None
    budget: float | None = None
    refused: str = ""


class LoweredKernels(BaseModel):
    """What was written so that ONNX Runtime's CPU provider takes its faster kernels.

    Attributes:
        heads: How many attentions read their heads where the projection left them.
        shares: How many norms read the running sum, whose products add their shares of x0.
        moves: How many nodes less there are as tokens stay the rows of one matrix.
        gelus: How many are not fused with the bias before them, which changes nothing else.
        error: Largest relative difference that all but the last make to an output.
        budget: What it may be.
        refused: Why all but the last were not done.
    """

    model_config = ConfigDict(frozen=True)

    heads: int = 0
    shares: int = 0
    moves: int = 0
    gelus: int = 0
    error: float | None = None
    budget: float | None = None
    refused: str = ""


class Lowering(BaseModel):
    """What was done to a file; kept in its metadata under LOWERING_KEY."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    runtime: Runtime
    source_sha256: str
    sites: tuple[LoweredSite, ...]
    stream: LoweredStream = LoweredStream(rewritten=False)
    residual_scales: int = 0
    rows: LoweredRows = LoweredRows(nodes=0)
    kernels: LoweredKernels = LoweredKernels()

    @property
    def summary(self) -> str:
        """Such as "12 x augmented"."""
        counts = {form: sum(site.form == form for site in self.sites) for form in FORMS}
        parts = [f"{count} x {form}" for form, count in counts.items() if count]
        return ", ".join(parts) or "no attention"


@dataclass(frozen=True)
class LoweredModel:
    """A lowered file."""

    path: Path
    lowering: Lowering


def lower(
    model: Path,
    runtime: str,
    output: Path,
    *,
    form: str | None = None,
    factor: float = FACTOR,
    stream: bool = True,
    rows: bool = True,
    kernels: bool = True,
) -> LoweredModel:
    """Write the form of an exported model that is fastest on one runtime and still right.

    Args:
        model: A canonical file, as `bilateral export` writes it.
        runtime: "onnxruntime-cpu" or "openvino".
        output: The file to write; it must be another than `model`.
        form: Use this form wherever its conditions hold; None: the runtime's best.
        factor: The gate: how much larger than that of plain float32 an error may be.
        stream: Whether the residual stream may become one running sum.
        rows: Whether tokens that nothing reads may be left out.
        kernels: Whether ONNX Runtime may be led to its faster kernels.

    Raises:
        UserError: The file is not an ONNX model, was lowered before, is too large to rewrite, or
            the runtime or form is unknown.
    """
    require_file(model, "model")
    if output.resolve() == model.resolve():
        raise UserError(f"{output} is the model itself", "Write to another file.")
    proto, lowering = lowered_proto(
        model, runtime, form=form, factor=factor, stream=stream, rows=rows, kernels=kernels
    )
    with atomic_file(output) as temporary:
        onnx.save(proto, temporary)
    return LoweredModel(output, lowering)


def lowered_proto(
    model: Path,
    runtime: str,
    *,
    form: str | None = None,
    factor: float = FACTOR,
    stream: bool = True,
    rows: bool = True,
    kernels: bool = True,
) -> tuple[onnx.ModelProto, Lowering]:
    """The same as `lower`, in memory."""
    if runtime not in RUNTIMES:
        raise UserError(f"no lowering for '{runtime}'", f"There is one for {', '.join(RUNTIMES)}.")
    if form is not None and form not in FORMS:
        raise UserError(f"unknown form '{form}'", f"Use one of {', '.join(FORMS)}.")
    canonical = _read(model)
    source = sha256(model)
    refused: dict[str, list[str]] = {node.name: [] for node in attention_nodes(canonical)}
    banned: set[tuple[str, Form]] = set()
    while True:
        candidate, sites, chosen = _rewrite(canonical, runtime, form, refused, banned)
        errors = (
            {error.name: error for error in measure_sites(candidate, sites, factor)}
            if sites
            else {}
        )
        failed = [error for error in errors.values() if not error.passed]
        if not failed:
            break
        for error in failed:
            banned.add((error.name, chosen[error.name]))
            refused[error.name].append(
                f"{chosen[error.name]}: error {error.error:.1e}, budget {error.budget:.1e}"
            )
    running = LoweredStream(rewritten=False, refused="not wanted")
    if stream:
        running = _lower_stream(candidate, factor)
    folded = 0 if running.rewritten else fold_residual_scales(candidate)
    read = LoweredRows(nodes=0, refused="not wanted")
    if rows:
        read = _keep_read_rows(candidate, factor)
    faster = LoweredKernels(refused="not wanted")
    if kernels and runtime == "onnxruntime-cpu":
        faster = _use_kernels(candidate, factor)
    drop_unused(candidate)
    done = tuple(
        LoweredSite(
            node=name,
            form=chosen[name],
            error=errors[name].error if name in errors else None,
            budget=errors[name].budget if name in errors else None,
            refused=tuple(dict.fromkeys(reasons)),
        )
        for name, reasons in refused.items()
    )
    lowering = Lowering(
        runtime=runtime,
        source_sha256=source,
        sites=done,
        stream=running,
        residual_scales=folded,
        rows=read,
        kernels=faster,
    )
    entry = candidate.metadata_props.add()
    entry.key, entry.value = LOWERING_KEY, lowering.model_dump_json()
    return candidate, lowering


def read_lowering(proto: onnx.ModelProto) -> Lowering | None:
    """What was done to a model, or None for a canonical one."""
    for entry in proto.metadata_props:
        if entry.key == LOWERING_KEY:
            return Lowering.model_validate_json(entry.value)
    return None


def has_attention(path: Path) -> bool:
    """Whether a file has operator nodes, which is what is lowered; its weights are not read.

    Raises:
        UserError: The file is not an ONNX model.
    """
    return bool(attention_nodes(load_graph(path, weights=False)))


def preferred_forms(runtime: Runtime, site: Site) -> Sequence[Form]:
    """The forms of one attention on one runtime, best first; "decomposed" always works.

    OpenVINO fuses the decomposed form without materialising N x N, so nothing is gained there.
    Plain attention without a spatial term needs no columns and is best in the flash form always.
    """
    if runtime == "openvino":
        return ("decomposed",)
    plain = site.spatial_kernel == "none"
    if plain or (site.length or 0) >= FLASH_LENGTH:
        return ("augmented", "mask", "decomposed")
    return ("mask", "augmented", "decomposed")


def _rewrite(
    canonical: onnx.ModelProto,
    runtime: Runtime,
    form: Form | None,
    refused: dict[str, list[str]],
    banned: set[tuple[str, Form]],
) -> tuple[onnx.ModelProto, list[Site], dict[str, Form]]:
    """Rewrite every attention to the best form that its conditions allow and that is not banned."""
    candidate = onnx.ModelProto()
    candidate.CopyFrom(canonical)
    graph = Graph(candidate)
    chosen: dict[str, Form] = dict.fromkeys(refused, "decomposed")
    sites = []
    for node in attention_nodes(candidate):
        try:
            sites.append(read_site(candidate, graph, node))
        except PreconditionError as error:
            refused[node.name].append(str(error))
    rewritten = []
    for site in sites:
        for option in (form, "decomposed") if form else preferred_forms(runtime, site):
            if option == "decomposed":
                break
            if (site.node.name, option) in banned:
                continue
            try:
                _REWRITES[option](candidate, site)
            except PreconditionError as error:
                refused[site.node.name].append(f"{option}: {error}")
                continue
            chosen[site.node.name] = option
            rewritten.append(site)
            break
    if "decomposed" in chosen.values():
        candidate = decompose(candidate)
    drop_unused(candidate)
    return candidate, rewritten, chosen


def _lower_stream(candidate: onnx.ModelProto, factor: float) -> LoweredStream:
    """Rewrite the residual stream in place, unless it is another or fails the gate."""
    before = onnx.ModelProto()
    before.CopyFrom(candidate)
    try:
        stream = read_stream(candidate)
    except PreconditionError as error:
        return LoweredStream(rewritten=False, refused=str(error))
    rewrite_stream(candidate, stream)
    worst = max(
        measure_norms(candidate, stream, factor), key=lambda found: found.error / found.budget
    )
    if not worst.passed:
        candidate.CopyFrom(before)
    return LoweredStream(
        rewritten=worst.passed,
        error=worst.error,
        budget=worst.budget,
        refused="" if worst.passed else f"{worst.name}: its rounding fails the gate",
    )


def _keep_read_rows(candidate: onnx.ModelProto, factor: float) -> LoweredRows:
    """Leave out tokens that nothing reads, in place, unless the outputs change by it."""
    before = onnx.ModelProto()
    before.CopyFrom(candidate)
    try:
        nodes = keep_read_rows(candidate)
    except PreconditionError as error:
        return LoweredRows(nodes=0, refused=str(error))
    change, budget = measure_outputs(candidate, before, factor)
    if change <= budget:
        return LoweredRows(nodes=nodes, error=change, budget=budget)
    candidate.CopyFrom(before)
    return LoweredRows(nodes=0, error=change, budget=budget, refused="the outputs change")


def _use_kernels(candidate: onnx.ModelProto, factor: float) -> LoweredKernels:
    """Lead ONNX Runtime's CPU provider to its faster kernels, in place, if the outputs allow it."""
    before = onnx.ModelProto()
    before.CopyFrom(candidate)
    done = LoweredKernels(
        heads=read_heads_in_place(candidate),
        shares=add_shares_in_products(candidate),
        moves=keep_tokens_first(candidate),
    )
    if done.heads + done.shares + done.moves:
        change, budget = _change(candidate, before, factor)
        done = done.model_copy(update={"error": change, "budget": budget})
        if change > budget:
            candidate.CopyFrom(before)
            done = LoweredKernels(error=change, budget=budget, refused="the outputs change")
    return done.model_copy(update={"gelus": keep_gelu(candidate)})


def _change(
    candidate: onnx.ModelProto, before: onnx.ModelProto, factor: float
) -> tuple[float, float]:
    """As `measure_outputs`; infinite where an output is a class: rounding does not show in it."""
    types = {value.type.tensor_type.elem_type for value in before.graph.output}
    if types != {onnx.TensorProto.FLOAT}:
        return float("inf"), 0.0
    return measure_outputs(candidate, before, factor)


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
        open_session(model, optimised=False)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = str(error).rpartition("] : ")[2] or str(error)
        if "NOT_IMPLEMENTED" in reason:
            fix = "Its CPU provider has no such kernel; export fp32 or fp16 for it."
        raise UserError(f"ONNX Runtime cannot open {path} ({reason})", fix) from error
