"""Readable summaries of an ONNX file, a plan, or an entry of a model repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format

from bilateral_export.artifact import document, dtype_name, external_files, interface, load_graph
from bilateral_export.engine.attention_path import attention_nodes
from bilateral_export.engine.plan import kernels
from bilateral_export.engine.plan.header import PlanHeader, read_header
from bilateral_export.engine.plan.manifest import PlanManifest, manifest_path, verify_plan
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.graph.changes import changes, precisions, read_metadata
from bilateral_export.metadata import METADATA_KEY
from bilateral_export.preprocessing import preprocessing_text
from bilateral_export.tensors import TensorSpec

CONFIG = "config.pbtxt"
_PLAN_SUFFIXES = (".plan", ".engine")


@dataclass(frozen=True)
class OnnxSummary:
    """An ONNX file.

    Attributes:
        path: The file.
        bytes: Its size, external data included.
        ir_version: Of the file.
        opsets: Version by domain; the standard domain is "ai.onnx".
        inputs, outputs: The graph's.
        nodes: Number of nodes by operator, other domains' written as "domain::operator".
        functions: Local functions, with their overload.
        attention: One line for each distinct BilateralAttention configuration, with its count.
        weights: Number of elements by type.
        precisions: Types of the weights that are multiplied with, most numbers first.
        changes: What other tools have changed since `bilateral export` wrote the file.
        preprocessing: How a file becomes the input, and where that comes from, in one line.
        metadata: What the exporter wrote about the model, if anything.
    """

    path: Path
    bytes: int
    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: dict[str, int]
    functions: tuple[str, ...]
    attention: dict[str, int]
    weights: dict[str, int]
    precisions: tuple[str, ...]
    changes: tuple[str, ...]
    preprocessing: str
    metadata: dict[str, Any] | None


@dataclass(frozen=True)
class PlanSummary:
    """A plan.

    Attributes:
        path: The file.
        bytes: Its size.
        header: What the first bytes say; None when they are not a plan's.
        manifest: What the manifest says; None without one, or when it does not belong.
        problem: Why there is no manifest; empty when there is.
        kernels: Number of launches by kernel name; None when the plan does not tell.
    """

    path: Path
    bytes: int
    header: PlanHeader | None
    manifest: PlanManifest | None
    problem: str
    kernels: dict[str, int] | None


@dataclass(frozen=True)
class EntrySummary:
    """A model of a repository: what its configuration says, and the files of its versions."""

    path: Path
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: dict[str, tuple[OnnxSummary | PlanSummary, ...]]


Summary = OnnxSummary | PlanSummary | EntrySummary


def inspect(path: Path) -> Summary:
    """Return a summary of what lies at `path`, recognised by its content, not its name alone.

    Args:
        path: An ONNX file, a plan, or the directory of a repository's model.

    Raises:
        UserError: It does not exist or is none of these.
    """
    if path.is_dir():
        return _inspect_entry(path)
    return _inspect_file(path)


def _inspect_file(path: Path) -> OnnxSummary | PlanSummary:
    require_file(path, "file")
    if path.suffix in _PLAN_SUFFIXES or read_header(path) is not None:
        return _inspect_plan(path)
    return _inspect_onnx(path)


def _inspect_onnx(path: Path) -> OnnxSummary:
    try:
        model = load_graph(path, weights=False)
    except UserError as error:
        raise UserError(
            f"{path} is neither an ONNX file nor a plan", "Give one, or a model's directory."
        ) from error
    inputs, outputs = interface(model)
    return OnnxSummary(
        path=path,
        bytes=sum(f.stat().st_size for f in (path, *external_files(path, model)) if f.is_file()),
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=inputs,
        outputs=outputs,
        nodes=_by_count(_operator(node) for node in model.graph.node),
        functions=tuple(
            f"{f.domain}::{f.name}" + (f" ({f.overload})" if f.overload else "")
            for f in model.functions
        ),
        attention=_by_count(_attention_text(node) for node in attention_nodes(model)),
        weights=_weights(model),
        precisions=precisions(model),
        changes=changes(model),
        preprocessing=_preprocessing(model),
        metadata=document(model, METADATA_KEY),
    )


def _preprocessing(model: onnx.ModelProto) -> str:
    said = read_metadata(model)
    return "" if said is None else preprocessing_text(said.preprocessing, said.preprocessing_source)


def _inspect_plan(path: Path) -> PlanSummary:
    manifest, problem = None, ""
    try:
        manifest = verify_plan(path)
    except UserError as error:
        missing = not manifest_path(path).exists()
        problem = "it has no manifest" if missing else error.problem
    launched = kernels.launched_kernels(path)
    return PlanSummary(
        path=path,
        bytes=path.stat().st_size,
        header=read_header(path),
        manifest=manifest,
        problem=problem,
        kernels=None if launched is None else _by_count(kernel.name for kernel in launched),
    )


def _inspect_entry(path: Path) -> EntrySummary:
    from tritonclient.grpc import model_config_pb2

    config_path = path / CONFIG
    if not config_path.is_file():
        raise UserError(
            f"{path} is not a model of a repository: it has no {CONFIG}",
            "Give the directory of one model.",
        )
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(config_path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{config_path} cannot be read: {error}") from error
    return EntrySummary(
        path=path,
        backend=config.backend or config.platform,
        max_batch_size=config.max_batch_size,
        inputs=_config_tensors(config.input),
        outputs=_config_tensors(config.output),
        versions={
            version.name: tuple(
                _inspect_file(file)
                for file in sorted(version.iterdir())
                if file.suffix in (*_PLAN_SUFFIXES, ".onnx")
            )
            for version in sorted(
                (v for v in path.iterdir() if v.is_dir() and v.name.isdigit()),
                key=lambda v: int(v.name),
            )
        },
    )


def _config_tensors(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    from tritonclient.grpc import model_config_pb2

    return tuple(
        TensorSpec(
            tensor.name,
            model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_").lower(),
            tuple(tensor.dims),
        )
        for tensor in tensors
    )


def _by_count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _attention_text(node: onnx.NodeProto) -> str:
    shown = ("range_kernel", "spatial_kernel", "query_prefix", "key_prefix", "causal")
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    parts = []
    for name in shown:
        if name in values:
            value = values[name]
            text = value.decode() if isinstance(value, bytes) else str(value)
            parts.append(f"{name}={text}")
    plugin = "plugin_namespace" in values and "plugin_version" in values
    return " ".join(parts) + ("" if plugin else " (function body only)")


def _weights(model: onnx.ModelProto) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        counts[dtype_name(tensor.data_type)] += int(np.prod(tensor.dims, dtype=np.int64))
    return dict(sorted(counts.items()))
