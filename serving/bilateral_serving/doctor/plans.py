"""A version's plan: against its manifest, the library, the GPU and the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bilateral_export.engine.plan.compatibility import (
    Obstacle,
    device_obstacle,
    plugin_device_obstacle,
    plugin_obstacle,
    version_obstacle,
    weights_obstacle,
)
from bilateral_export.engine.plan.header import read_header
from bilateral_export.engine.plan.manifest import PlanManifest, verify_plan
from bilateral_export.errors import UserError
from bilateral_serving.doctor.findings import Finding, error, from_refusal, info, warning
from bilateral_serving.doctor.machine import Machine
from bilateral_serving.repository.plan import has_manifest

_BUILD = "bilateral build MODEL.onnx MODEL.plan"


def check_plan(
    subject: str, plan: Path, machine: Machine
) -> tuple[PlanManifest | None, list[Finding]]:
    """Return the manifest of a plan, if it belongs to it, and what is wrong with the plan."""
    header = read_header(plan)
    if header is not None and header.bytes is not None and header.bytes != plan.stat().st_size:
        return None, [
            error(
                subject,
                f"{plan.name} has {plan.stat().st_size} bytes and says it has {header.bytes}",
                "TensorRT cannot read a truncated plan.",
                f"Copy it again, or build it: {_BUILD}",
            )
        ]
    if not has_manifest(plan):
        found = [
            warning(
                subject,
                f"{plan.name} has no manifest",
                "Nothing says which TensorRT, GPU and plugin it was built for: it can only be"
                " tried.",
                f"Build it with this project: {_BUILD}",
            )
        ]
        if header is not None and header.library == "tensorrt_rtx":
            found.append(_rtx(subject))
        return None, found
    try:
        manifest = verify_plan(plan)
    except UserError as refusal:
        why = "The server would load something else than what was built and checked."
        return None, [from_refusal(subject, refusal, why)]
    return manifest, [*_check_fit(subject, manifest, machine)]


def _check_fit(subject: str, manifest: PlanManifest, machine: Machine) -> Iterator[Finding]:
    if manifest.library == "tensorrt_rtx":
        yield _rtx(subject)
    elif machine.tensorrt is None and machine.release is not None:
        image = f"nvcr.io/nvidia/tritonserver:{machine.release.name}-py3"
        yield warning(
            subject,
            f"the plan is of TensorRT {manifest.version}, and what TensorRT the container"
            f" {machine.release.name} has is not known here",
            "TensorRT refuses plans of another version.",
            "Ask the image, and say it with --tensorrt VERSION:"
            f' docker run --rm {image} bash -c "dpkg -l | grep tensorrt"',
        )
    elif machine.tensorrt is None:
        yield info(
            subject,
            f"the plan is of TensorRT {manifest.version}, and none is installed here",
            "Whether the server's TensorRT loads it is not known.",
            "Say what serves it: bilateral doctor --container RELEASE, or --tensorrt VERSION",
        )
    else:
        yield from _finding(
            subject,
            version_obstacle(manifest, "tensorrt", machine.tensorrt),
            "TensorRT refuses plans of another version.",
        )
    yield from _finding(
        subject, weights_obstacle(manifest), "Triton loads a plan as it is and refits nothing."
    )
    yield from _finding(
        subject,
        plugin_obstacle(manifest, machine.plugin),
        "The server would not find the plugin the plan asks for.",
    )
    devices = machine.driver.devices if machine.driver else ()
    for sm in sorted({device.sm for device in devices}):
        yield from _finding(
            subject,
            device_obstacle(manifest, sm),
            "TensorRT refuses plans of another GPU architecture.",
        )
        if machine.plugin_contents is not None:
            yield from _finding(
                subject,
                plugin_device_obstacle(manifest, machine.plugin_contents.targets, sm),
                "The first request would fail.",
            )


def _rtx(subject: str) -> Finding:
    return error(
        subject,
        "the plan is for TensorRT for RTX",
        "Triton's TensorRT backend loads plans of the full TensorRT only.",
        f"On the server's machine, with `tensorrt` installed: {_BUILD}",
    )


def _finding(subject: str, obstacle: Obstacle | None, why: str) -> Iterator[Finding]:
    if obstacle is not None:
        yield error(subject, obstacle.problem, why, obstacle.fix)
