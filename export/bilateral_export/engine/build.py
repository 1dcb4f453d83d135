"""The build: from an ONNX file to a plan and its manifest."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bilateral_export.engine.builder_config import configure
from bilateral_export.engine.installation.library import Library, load_library
from bilateral_export.engine.installation.plugin import load_plugin, plugin_contents
from bilateral_export.engine.network import NetworkFacts, network_facts
from bilateral_export.engine.options import BuildOptions, check_options, choose_targets
from bilateral_export.engine.plan import kernels
from bilateral_export.engine.plan.manifest import (
    AttentionRecord,
    PlanManifest,
    PluginRecord,
    RangeRecord,
    describe_file,
    manifest_path,
)
from bilateral_export.engine.profiles import (
    Profile,
    Shape,
    check_profile,
    default_profile,
    max_batch,
)
from bilateral_export.engine.progress import Progress, interruptible
from bilateral_export.engine.source import Source, dimension_sizes, read_source, usual_sizes
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file
from bilateral_export.tensors import TensorSpec


def build_plan(
    onnx_path: Path,
    plan_path: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    library: Library | None = None,
) -> PlanManifest:
    """Build a plan and write it with its manifest beside it; on failure neither is there.

    Args:
        onnx_path: The model; its external data, if any, beside it.
        plan_path: Where the plan goes; the manifest goes to `manifest_path(plan_path)`.
        options: How to build.
        progress: Called as the builder goes on, in the builder's thread.
        library: Which TensorRT; None for this machine's.

    Returns:
        The manifest as it was written.

    Raises:
        UserError: The model, the options or the machine do not allow it; TensorRT's own reason is
            in the message.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the builder was stopped in an orderly way.
    """
    options = options or BuildOptions()
    _check_outputs(onnx_path, plan_path, options)
    library = library or load_library()
    check_options(options, library)
    source = read_source(onnx_path, options)
    contents = None if source.plugin is None else plugin_contents(source.plugin)
    targets = choose_targets(options, library, None if contents is None else contents.targets)
    if source.plugin is not None:
        load_plugin(library, source.plugin)

    started = time.monotonic()
    with library.log.fresh():
        builder = library.trt.Builder(library.logger)
        network = _parse(builder, source, library)
        facts = network_facts(network, library)
        _check_attention(source, facts)
        profiles = _profiles(source, facts, options)
        config = configure(builder, options, targets, profiles, source.plugin, library)
        plan = _build(builder, network, config, progress, source, library)
        activation_bytes = library.log.activation_bytes
    seconds = time.monotonic() - started

    with atomic_file(plan_path) as temporary:
        temporary.write_bytes(memoryview(plan))
        manifest = PlanManifest(
            plan=describe_file(temporary),
            onnx=describe_file(onnx_path),
            plugin=_plugin_record(source, facts, options),
            library=library.name,
            version=library.version,
            targets=tuple(f"sm_{sm}" for sm in targets),
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            precision=facts.precision,
            types=facts.types,
            tf32=options.tf32,
            attention=_attention_record(source, facts, temporary),
            inputs=facts.inputs,
            outputs=facts.outputs,
            profiles=tuple(
                {name: RangeRecord(**asdict(shapes)) for name, shapes in profile.items()}
                for profile in profiles
            ),
            max_batch=max_batch(profiles, _shapes(facts.inputs)),
            workspace_bytes=None if options.workspace_mib is None else options.workspace_mib << 20,
            activation_bytes=activation_bytes,
            options=_remaining_options(options),
            built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            metadata=source.metadata,
        )
        manifest_path(temporary).write_text(manifest.model_dump_json(indent=2) + "\n")
    if options.timing_cache is not None:
        with atomic_file(options.timing_cache) as temporary:
            temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return manifest


def _check_outputs(onnx_path: Path, plan_path: Path, options: BuildOptions) -> None:
    """Refuse before the build, which may take minutes, what could not be written after it."""
    written = [plan_path, manifest_path(plan_path)]
    written += [] if options.timing_cache is None else [options.timing_cache]
    for number, path in enumerate(written):
        if path.is_dir():
            raise UserError(f"{path} is a directory", "Give the name of a file to write.")
        if path.resolve() in {other.resolve() for other in (onnx_path, *written[:number])}:
            raise UserError(
                f"{path} would be written over another file of this build",
                "Give model, plan and timing cache names of their own.",
            )


def _parse(builder: Any, source: Source, library: Library) -> Any:
    trt = library.trt
    # From TensorRT 11 on every network is strongly typed, and there may be no flag to say so.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, library.logger)
    # The path tells the parser where external data lies.
    if not parser.parse(source.model.SerializeToString(), str(source.path)):
        error = parser.get_error(0)
        where = (
            f" at node {error.node_name()} ({error.node_operator()})" if error.node_name() else ""
        )
        raise UserError(
            f"{library.name} {library.version} cannot read {source.path}{where}: {error.desc()}",
            "Export the model again, or report the node.",
        )
    return network


def _check_attention(source: Source, facts: NetworkFacts) -> None:
    wanted = len(source.attention_nodes) if source.plugin is not None else 0
    ours = [name for name in facts.plugins if any(node in name for node in source.attention_nodes)]
    if len(ours) != wanted:
        raise UserError(
            f"{len(ours)} of {len(source.attention_nodes)} attention nodes run through the plugin,"
            f" not {wanted}",
            "The nodes need the attributes plugin_namespace and plugin_version: export again.",
        )


def _shapes(tensors: tuple[TensorSpec, ...]) -> dict[str, Shape]:
    return {tensor.name: tensor.sizes for tensor in tensors}


def _profiles(source: Source, facts: NetworkFacts, options: BuildOptions) -> tuple[Profile, ...]:
    shapes = _shapes(facts.inputs)
    if not any(-1 in shape for shape in shapes.values()):
        if options.profiles:
            raise UserError("the model has no dynamic dimension", "Leave out --profile.")
        return ()
    profiles = options.profiles or (
        default_profile(
            shapes,
            options.max_batch,
            dimension_sizes(source, shapes),
            usual_sizes(source, shapes),
        ),
    )
    for profile in profiles:
        check_profile(profile, shapes)
    return profiles


def _build(
    builder: Any,
    network: Any,
    config: Any,
    progress: Progress | None,
    source: Source,
    library: Library,
) -> Any:
    with interruptible(config, progress, library) as interrupted:
        plan = builder.build_serialized_network(network, config)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if plan is None:
        reasons = library.log.errors
        raise UserError(
            f"{library.name} {library.version} cannot build the plan:"
            f" {reasons[0] if reasons else 'no reason given'}",
            "Try smaller profiles, or export the model again."
            if source.plugin is None
            else "For attention that the plugin refuses there is --attention function.",
        )
    return plan


def _plugin_record(
    source: Source, facts: NetworkFacts, options: BuildOptions
) -> PluginRecord | None:
    if source.plugin is None:
        return None
    return PluginRecord(
        **describe_file(source.plugin).model_dump(),
        embedded=options.embed_plugin,
        nodes=len(facts.plugins),
    )


def _attention_record(source: Source, facts: NetworkFacts, plan: Path) -> AttentionRecord:
    nodes = source.attention_nodes
    if not nodes:
        return AttentionRecord(nodes=0, path="none")
    if source.plugin is not None:
        return AttentionRecord(nodes=len(nodes), path="plugin")
    launched = kernels.launched_kernels(plan)
    fused = None if launched is None else kernels.fused_attention(launched, nodes)
    return AttentionRecord(nodes=len(nodes), path="function", fused=fused)


def _remaining_options(options: BuildOptions) -> dict[str, Any]:
    return {
        "optimization_level": options.optimization_level,
        "strip_weights": options.strip_weights,
        "refit": options.refit,
        "timing_cache": options.timing_cache is not None,
    }
