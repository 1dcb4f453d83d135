"""The manifest: the JSON beside a plan that describes it, and the check that it still does.

It lies beside the plan and never inside it: a server reads the plan as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from bilateral_export.engine.profiles import Range
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, sha256
from bilateral_export.tensors import TensorSpec

SCHEMA_VERSION = 1
SUFFIX = ".json"

AttentionPath = Literal["plugin", "function", "none"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """A file as it was when the plan was built."""

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PluginRecord(FileRecord):
    """The plugin library a plan was built with.

    Attributes:
        embedded: Whether the plan carries it, so that a server need not be given the file.
        nodes: How many layers run through it.
    """

    embedded: bool
    nodes: int = Field(ge=0)


# Its shape is written with -1 where a profile gives the range.
_Tensor = Annotated[
    TensorSpec,
    PlainSerializer(lambda it: {"name": it.name, "dtype": it.dtype, "shape": it.sizes}),
]


class RangeRecord(_Record):
    """The shapes of one input in one profile."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    def range(self) -> Range:
        """Return the range that checks shapes."""
        return Range(self.minimum, self.optimum, self.maximum)


class AttentionRecord(_Record):
    """How the attention nodes of the graph were built.

    Attributes:
        nodes: How many the ONNX graph has.
        path: Whether the parser took the plugin or the function body.
        fused: How many became one fused attention kernel; None where the plan does not tell.
    """

    nodes: int = Field(ge=0)
    path: AttentionPath
    fused: int | None = None


class PlanManifest(_Record):
    """What a plan is.

    Attributes:
        plan, onnx, plugin: The files it was made of, by content.
        library, version: Which TensorRT made it, and which version.
        targets: The SMs it was built for, such as "sm_86"; the building GPU's for a full TensorRT.
        hardware_compatibility: Which other GPUs may load it.
        version_compatible: Whether other TensorRT versions may load it.
        precision: What the built network computes in, read from the network, never from a request.
        types: Number of layers that compute in each type: products of matrices, convolutions and
            plugins.
        tf32: Whether float32 products may round their operands to TF32.
        inputs, outputs: As the plan has them.
        profiles: Shapes by input.
        max_batch: Largest batch of any profile; 0 when the first dimension is fixed.
        workspace_bytes: The limit that was set; None for the library's own.
        activation_bytes: Device memory that each execution context takes, scratch memory included,
            at the profiles' largest shapes; None where the builder did not say.
        options: The remaining build options, as they were given.
        built: When it was built, ISO 8601, UTC.
        seconds: How long the build took.
        metadata: The exported model's own description (`bilateral_export.metadata`), if any.
    """

    schema_version: Literal[1] = 1
    plan: FileRecord
    onnx: FileRecord
    plugin: PluginRecord | None = None
    library: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    targets: tuple[str, ...]
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    precision: str
    types: Mapping[str, int]
    tf32: bool
    attention: AttentionRecord
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    profiles: tuple[Mapping[str, RangeRecord], ...]
    max_batch: int = Field(ge=0)
    workspace_bytes: int | None = None
    activation_bytes: int | None = Field(default=None, ge=0)
    options: Mapping[str, Any] = Field(default_factory=dict)
    built: str
    seconds: float = Field(ge=0)
    metadata: Mapping[str, Any] | None = None

    @property
    def holds_host_code(self) -> bool:
        """Whether loading the plan runs code that lies in it: the plugin, or a lean runtime."""
        return self.version_compatible or (self.plugin is not None and self.plugin.embedded)


def manifest_path(plan: Path) -> Path:
    """Return the path of a plan's manifest: `model.plan` has `model.plan.json`."""
    return plan.parent / (plan.name + SUFFIX)  # "." has no name to replace


def describe_file(path: Path) -> FileRecord:
    """Return a file's name, size and hash as they are now."""
    return FileRecord(name=path.name, bytes=path.stat().st_size, sha256=sha256(path))


def read_manifest(plan: Path) -> PlanManifest:
    """Return the manifest beside `plan`, without looking at the plan.

    Raises:
        UserError: There is none, it cannot be read, or it is not a manifest of this version.
    """
    path = require_file(manifest_path(plan), "manifest")
    try:
        return PlanManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(
            f"{path} is not a plan manifest of version {SCHEMA_VERSION}: {where}: {first['msg']}",
            "Build the plan again with `bilateral build`.",
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from error


def verify_plan(plan: Path) -> PlanManifest:
    """Return a plan's manifest, checked: the plan is the file it describes.

    Called at each load; what needs a GPU or a library to check is left to the runner and the
    doctor.

    Raises:
        UserError: The plan or manifest is missing, or the plan has another size or other bytes.
    """
    require_file(plan, "plan")
    manifest = read_manifest(plan)
    size = plan.stat().st_size
    again = "Build it again with `bilateral build`, or copy plan and manifest together."
    if size != manifest.plan.bytes:
        raise UserError(
            f"plan {plan} has {size} bytes, its manifest says {manifest.plan.bytes}", again
        )
    if sha256(plan) != manifest.plan.sha256:
        raise UserError(f"plan {plan} is not the file its manifest describes (SHA-256)", again)
    return manifest
