"""Compatibility of a plan with a machine: what the runner refuses and the doctor reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bilateral_export.engine.plan.manifest import PlanManifest
from bilateral_export.files import sha256
from bilateral_export.op.architectures import AMPERE


@dataclass(frozen=True)
class Obstacle:
    """A reason why a plan would not load or not run, and what to do about it."""

    problem: str
    fix: str


def version_obstacle(manifest: PlanManifest, library: str, version: str) -> Obstacle | None:
    """Return why a plan would not load in a library of this name and version, or None.

    A plan loads in the version that built it alone, unless it was built version compatible; then in
    later ones too (TensorRT documentation, "Version Compatibility").

    Args:
        manifest: Of the plan.
        library: "tensorrt" or "tensorrt_rtx".
        version: Its version, with as many numbers as are known: 10.14.1 is any build of it.
    """
    again = f"Build it again with {library} {version}."
    if manifest.library != library:
        return Obstacle(f"the plan is for {manifest.library}, here is {library}", again)
    built, here = _numbers(manifest.version), _numbers(version)
    known = min(len(built), len(here))
    if built[:known] == here[:known]:
        return None
    if not manifest.version_compatible:
        return Obstacle(f"the plan is of {library} {manifest.version}, here is {version}", again)
    if built <= here:
        return None
    return Obstacle(
        f"the plan is of {library} {manifest.version} and loads in later versions only,"
        f" here is {version}",
        again,
    )


def device_obstacle(manifest: PlanManifest, sm: int) -> Obstacle | None:
    """Return why a plan would not run on a GPU of this SM, such as 90, or None.

    Args:
        manifest: Of the plan. Its hardware compatibility widens the SMs it was built for to all
            from Ampere on, or to those of the same compute capability.
        sm: 10 * major + minor of the GPU's compute capability.
    """
    targets = [int(target.removeprefix("sm_")) for target in manifest.targets]
    if sm in targets:
        return None
    widened = manifest.hardware_compatibility == "ampere_plus"
    if widened and sm >= AMPERE and min(targets, default=sm + 1) <= sm:
        return None
    return Obstacle(
        f"the plan is for {', '.join(manifest.targets)}, the GPU is sm_{sm}",
        f"Build it for this GPU: `bilateral build MODEL.onnx MODEL.plan --sm {sm}` (TensorRT for"
        " RTX), or on this machine (a full TensorRT).",
    )


def weights_obstacle(manifest: PlanManifest) -> Obstacle | None:
    """Return why a plan has nothing to compute with, or None: its weights were stripped."""
    if not manifest.options.get("strip_weights"):
        return None
    return Obstacle(
        "the plan was built without its weights",
        "Refit it from its ONNX file (TensorRT's OnnxParserRefitter), or build it without"
        " --strip-weights.",
    )


def plugin_obstacle(manifest: PlanManifest, plugin: Path | None) -> Obstacle | None:
    """Return why a plan would not find the plugin it was built with, or None.

    Args:
        manifest: Of the plan.
        plugin: The plugin library that would be loaded; None when there is none.
    """
    if manifest.plugin is None or manifest.plugin.embedded:
        return None
    if plugin is None or not plugin.is_file():
        where = f" {plugin}" if plugin is not None else ""
        return Obstacle(
            f"the plan runs {manifest.plugin.nodes} layers through the plugin"
            f" {manifest.plugin.name}, and the library{where} is not there",
            "Build it with `make plugin`, or build the plan with --embed-plugin.",
        )
    if sha256(plugin) != manifest.plugin.sha256:
        return Obstacle(
            f"the plan was built with another plugin than {plugin} (SHA-256)",
            "Build the plan again with this plugin, or give the one it was built with.",
        )
    return None


def plugin_device_obstacle(
    manifest: PlanManifest, targets: Sequence[int], sm: int
) -> Obstacle | None:
    """Return why the plugin would not run on a GPU of this SM, or None.

    One that the plan carries is not judged by the one that is here: a plan is built only for GPUs
    its plugin has code for.

    Args:
        manifest: Of the plan.
        targets: SMs that the plugin says its code runs on.
        sm: The GPU's.
    """
    if manifest.plugin is None or manifest.plugin.embedded or sm in targets:
        return None
    return Obstacle(
        f"the plugin has no code for sm_{sm}; it has code for"
        f" {', '.join(f'sm_{target}' for target in targets) or 'no GPU'}",
        "Build the plan with --attention function, or the plugin for this GPU.",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
