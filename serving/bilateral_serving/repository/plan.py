"""TensorRT plans: their interface, read from manifests, and the plugin they need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from bilateral_export.artifact import Artifact
from bilateral_export.engine.installation.plugin import require_plugin
from bilateral_export.engine.plan.manifest import (
    PlanManifest,
    manifest_path,
    verify_plan,
)
from bilateral_export.errors import UserError
from bilateral_export.metadata import ArtifactMetadata

__all__ = ["artifact_of", "has_manifest", "launch_arguments", "manifest_path", "read_plan"]


def has_manifest(plan: Path) -> bool:
    """Return whether `bilateral build` left a manifest beside this plan."""
    return manifest_path(plan).is_file()


def read_plan(plan: Path) -> Artifact:
    """Read a plan's interface from its manifest, and check that it belongs to the plan.

    Raises:
        UserError: The plan is not the file the manifest describes, or the manifest cannot be read.
    """
    return artifact_of(plan, verify_plan(plan))


def artifact_of(plan: Path, manifest: PlanManifest) -> Artifact:
    """Return the interface of a plan whose manifest is known to belong to it.

    Raises:
        UserError: The manifest carries a model description that is not understood.
    """
    return Artifact(
        path=plan,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        metadata=_metadata(plan, manifest),
        max_batch=manifest.max_batch,
    )


def launch_arguments(plans: Iterable[Path], plugin: Path | None = None) -> tuple[str, ...]:
    """Return the tritonserver arguments with which these plans find their plugin; check the plans.

    A plan that runs attention through standard operators needs nothing. One that carries code, the
    plugin or the runtime of a version-compatible plan, needs the server's permission to run it,
    which Triton's TensorRT backend gives with its option `version-compatible`.

    Args:
        plans: The plans to be served.
        plugin: The plugin library where the server runs; None for this installation's.

    Raises:
        UserError: A plan is not the file its manifest describes, is of TensorRT for RTX, or needs
            the plugin, and that is not built.
    """
    manifests = [verify_plan(plan) for plan in plans if plan.is_file() and has_manifest(plan)]
    if any(found.library == "tensorrt_rtx" for found in manifests):
        raise UserError(
            "a plan is of TensorRT for RTX, and Triton's TensorRT backend loads plans of the full"
            " TensorRT only",
            "On the server's machine, with `tensorrt` installed: bilateral build MODEL.onnx"
            " MODEL.plan",
        )
    arguments = []
    if any(found.plugin is not None and not found.plugin.embedded for found in manifests):
        arguments.append(f"--backend-config=tensorrt,plugins={require_plugin(plugin)}")
    if any(found.holds_host_code for found in manifests):
        arguments.append("--backend-config=tensorrt,version-compatible=true")
    return tuple(arguments)


def _metadata(plan: Path, manifest: PlanManifest) -> ArtifactMetadata | None:
    if manifest.metadata is None:
        return None
    try:
        return ArtifactMetadata.model_validate(dict(manifest.metadata))
    except ValidationError as error:
        raise UserError(
            f"the metadata in the manifest of {plan} is not understood here",
            "Export and build the model again with this version.",
        ) from error
