"""`bilateral inspect`: what an ONNX file, a plan or a repository entry is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, out, print_json, table
from bilateral_export.checkpoint.formats.text import listed
from bilateral_export.tensors import TensorSpec

if TYPE_CHECKING:
    from bilateral_export.checkpoint.summary import CheckpointSummary
    from bilateral_export.engine.plan.inspect import EntrySummary, OnnxSummary, PlanSummary, Summary

Rows = list[tuple[str, str]]
_SHOWN = 12  # operators or kernels by name; the rest is a number


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="An ONNX file, a plan, a model's directory in a repository, or a checkpoint."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Of a checkpoint: as in `bilateral export`.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of a checkpoint: as in `bilateral export`.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what a file is: inputs, outputs, nodes by type, attention, types, sizes.

    For a plan: its manifest, whether it still belongs to it, and the kernels it launches. For a
    checkpoint: whose names it has, the architecture that was found, how many tensors were taken and
    which were left over, and what was assumed because the weights do not show it.

    Example: bilateral inspect digits.plan
    """
    from bilateral_export.checkpoint.formats.recognise import is_checkpoint
    from bilateral_export.checkpoint.summary import summarise_checkpoint
    from bilateral_export.engine.plan.inspect import inspect as summarise

    if is_checkpoint(path):
        about = summarise_checkpoint(path, model, weights)
        if json:
            print_json(_as_json(about))
        else:
            out.print(table(["", str(path)], _checkpoint_rows(about)))
        return
    summary = summarise(path)
    if json:
        print_json(_as_json(summary))
        return
    for title, rows in _sections(summary):
        out.print(table(["", title], rows))


def _sections(summary: Summary) -> Iterable[tuple[str, Rows]]:
    from bilateral_export.engine.plan.inspect import EntrySummary, OnnxSummary

    if isinstance(summary, EntrySummary):
        yield str(summary.path), _entry_rows(summary)
        for version, files in summary.versions.items():
            for file in files:
                title, rows = next(iter(_sections(file)))
                yield f"version {version}: {Path(title).name}", rows
    elif isinstance(summary, OnnxSummary):
        yield str(summary.path), _onnx_rows(summary)
    else:
        yield str(summary.path), _plan_rows(summary)


def _checkpoint_rows(about: CheckpointSummary) -> Rows:
    values = ", ".join(f"{count:,} {dtype}" for dtype, count in about.dtypes.items())
    changed = {k: v for k, v in about.model.items() if v not in (None, False) and k != "family"}
    rows = [
        ("format", f"{about.format}, {values}"),
        ("names of", about.source),
        ("architecture", about.architecture),
        ("model", f"{about.model['family']}: {', '.join(_field(k, changed[k]) for k in changed)}"),
        ("tensors", f"{about.mapped} mapped, {len(about.left_over)} left over"),
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in about.left_over.items():
        reasons.setdefault(reason, []).append(name)
    rows += [("left over", f"{listed(names)}: {why}") for why, names in reasons.items()]
    rows += [("assumed", line) for line in about.assumptions]
    if about.weights is not None:
        rows.append(("weights", about.weights))
    rows += [("not taken", f"{other}; --weights {other} takes it") for other in about.other_weights]
    rows.append(("labels", str(about.labels) if about.labels else "none"))
    rows.append(("preprocessing", about.preprocessing))
    rows += [("note", note) for note in about.notes]
    return rows


def _field(name: str, value: Any) -> str:
    if isinstance(value, dict):
        value = "/".join(str(v) for v in value.values() if isinstance(v, str))
    return f"{name} {'x'.join(map(str, value)) if isinstance(value, list) else value}"


def _entry_rows(summary: EntrySummary) -> Rows:
    return [
        ("backend", summary.backend),
        ("max batch size", str(summary.max_batch_size)),
        *_tensor_rows(summary.inputs, summary.outputs),
        ("versions", ", ".join(summary.versions) or "none"),
    ]


def _onnx_rows(summary: OnnxSummary) -> Rows:
    weights = ", ".join(f"{count:,} {dtype}" for dtype, count in summary.weights.items())
    opsets = ", ".join(f"{domain} {version}" for domain, version in summary.opsets.items())
    rows = [
        ("file", f"ONNX, {_size(summary.bytes)}, IR {summary.ir_version}, {opsets}"),
        *_tensor_rows(summary.inputs, summary.outputs),
        ("nodes", _counts(summary.nodes)),
        ("functions", "\n".join(summary.functions) or "none"),
    ]
    rows += [("attention", f"{count} x {text}") for text, count in summary.attention.items()]
    rows.append(("weights", weights or "none"))
    rows.append(("precision", " and ".join(summary.precisions) or "no products"))
    if summary.metadata is not None:
        said = summary.metadata
        weights_key = f", weights {said['weights']}" if said.get("weights") else ""
        exported_as = f"exported as {said.get('precision')}"
        rows.append(("model", f"{said.get('name')}, {exported_as}{weights_key}"))
    if summary.preprocessing:
        rows.append(("preprocessing", summary.preprocessing))
    if summary.changes:
        rows.append(("changed since", "\n".join(summary.changes)))
    return rows


def _plan_rows(summary: PlanSummary) -> Rows:
    header = summary.header
    made = f"{header.library} {header.version}".strip() if header else "not a plan's first bytes"
    rows = [("file", f"plan, {_size(summary.bytes)}, {made}")]
    manifest = summary.manifest
    if manifest is None:
        rows.append(("manifest", summary.problem))
    else:
        attention = manifest.attention
        fused = f", {attention.fused} fused" if attention.fused is not None else ""
        types = ", ".join(f"{count} in {dtype}" for dtype, count in manifest.types.items())
        rows += [
            ("manifest", f"belongs to the plan; built {manifest.built}"),
            ("for", ", ".join(manifest.targets)),
            ("precision", f"{manifest.precision} ({types}), TF32 {_on(manifest.tf32)}"),
            ("attention", f"{attention.nodes} nodes, {attention.path}{fused}"),
            ("activations", _activations(manifest.activation_bytes)),
            *_tensor_rows(manifest.inputs, manifest.outputs),
        ]
        for number, profile in enumerate(manifest.profiles, 1):
            shapes = ", ".join(f"{name}={ranges.range()}" for name, ranges in profile.items())
            rows.append((f"profile {number}", shapes))
        if manifest.plugin is not None:
            embedded = "embedded" if manifest.plugin.embedded else "not embedded"
            rows.append(("plugin", f"{manifest.plugin.name}, {embedded}"))
    kernels = "the plan does not tell" if summary.kernels is None else _counts(summary.kernels)
    rows.append(("kernels", kernels))
    return rows


def _tensor_rows(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> Rows:
    return [("input", _tensor(tensor)) for tensor in inputs] + [
        ("output", _tensor(tensor)) for tensor in outputs
    ]


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.sizes)}"


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{count} {name}" for name, count in list(counts.items())[:_SHOWN]]
    rest = sum(list(counts.values())[_SHOWN:])
    return ", ".join(shown) + (f", {rest} others" if rest else "")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _activations(count: int | None) -> str:
    return "unknown" if count is None else f"{_size(count)} on the GPU for each instance"


def _on(value: bool) -> str:
    return "on" if value else "off"


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, TensorSpec):
        return {"name": value.name, "dtype": value.dtype, "shape": list(value.sizes)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value
