"""From an ONNX file to a plan and its manifest."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import onnx

from bilateral_export.engine import kernels
from bilateral_export.engine.attention_path import name_attention_nodes, use_function_bodies
from bilateral_export.engine.cuda import device_target, has_gpu
from bilateral_export.engine.library import Library, load_library
from bilateral_export.engine.manifest import (
    AttentionRecord,
    PlanManifest,
    PluginRecord,
    RangeRecord,
    TensorRecord,
    describe_file,
    manifest_path,
)
from bilateral_export.engine.network import NetworkFacts, Tensor, network_facts
from bilateral_export.engine.profiles import (
    DEFAULT_MAX_BATCH,
    Profile,
    Shape,
    check_profile,
    default_profile,
    max_batch,
)
from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file, require_file
from bilateral_export.metadata import METADATA_KEY
from bilateral_export.plugin import find_plugin, load_plugin, require_plugin

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
AttentionChoice = Literal["auto", "plugin", "function"]
# (phase, steps done, steps in all)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """How a plan is to be built. The precision is not among these: it is the graph's.

    Attributes:
        profiles: Shapes the plan accepts; empty for one profile made from the model.
        max_batch: Largest batch of that profile.
        attention: Run attention through the plugin or the function body; "auto" takes the plugin
            where the installation has one.
        plugin: The plugin library; None for the installation's.
        embed_plugin: Put the plugin library into the plan, so that a server needs no file.
        targets: SMs to build for, such as 86 (TensorRT for RTX); empty for all it can build for,
            from sm_80 on. A full TensorRT builds for the GPU it runs on.
        tf32: Let float32 products round their operands to TF32 (10 bits of mantissa).
        hardware_compatibility: Let other GPUs load the plan (full TensorRT).
        version_compatible: Let later TensorRT versions load the plan (full TensorRT).
        optimization_level: The builder's effort, 0 to 5; None for its default.
        workspace_mib: Limit of scratch memory, in MiB; None for the library's own.
        strip_weights: Leave out the weights, to be refitted from the ONNX file.
        refit: Keep the weights replaceable.
        timing_cache: File of kernel timings to read and to update (full TensorRT).
    """

    profiles: tuple[Profile, ...] = ()
    max_batch: int = DEFAULT_MAX_BATCH
    attention: AttentionChoice = "auto"
    plugin: Path | None = None
    embed_plugin: bool = False
    targets: tuple[int, ...] = ()
    tf32: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    optimization_level: int | None = None
    workspace_mib: int | None = None
    strip_weights: bool = False
    refit: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class _Source:
    """A model made ready for the parser."""

    path: Path
    model: onnx.ModelProto = field(repr=False)
    attention_nodes: tuple[str, ...]
    metadata: dict[str, Any] | None
    plugin: Path | None


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
        KeyboardInterrupt: Ctrl-C was pressed; the builder was stopped in an orderly way.
    """
    options = options or BuildOptions()
    library = library or load_library()
    _check_options(options, library)
    source = _read_model(onnx_path, options)
    if source.plugin is not None:
        load_plugin(library, source.plugin)

    started = time.monotonic()
    with library.log.fresh():
        builder = library.trt.Builder(library.logger)
        network = _parse(builder, source, library)
        facts = network_facts(network, library)
        _check_attention(source, facts)
        profiles = _profiles(source, facts, options)
        config = _configure(builder, network, profiles, source, options, library)
        plan = _build(builder, network, config, progress, library)
    seconds = time.monotonic() - started

    with atomic_file(plan_path) as temporary:
        temporary.write_bytes(memoryview(plan))
        manifest = PlanManifest(
            plan=describe_file(temporary),
            onnx=describe_file(onnx_path),
            plugin=_plugin_record(source, facts, options),
            library=library.name,
            version=library.version,
            targets=_target_names(options, library),
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            precision=facts.precision,
            types=facts.types,
            tf32=options.tf32,
            attention=_attention_record(source, facts, temporary),
            inputs=tuple(_tensor_record(tensor) for tensor in facts.inputs),
            outputs=tuple(_tensor_record(tensor) for tensor in facts.outputs),
            profiles=tuple(
                {name: RangeRecord(**asdict(shapes)) for name, shapes in profile.items()}
                for profile in profiles
            ),
            max_batch=max_batch(profiles, _shapes(facts.inputs)),
            workspace_bytes=None if options.workspace_mib is None else options.workspace_mib << 20,
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


def _check_options(options: BuildOptions, library: Library) -> None:
    """Refuse what the library would ignore or fail on without a word a user understands."""
    if options.targets and not library.ahead_of_time:
        raise UserError(
            "a full TensorRT builds for the GPU it runs on, not for named SMs",
            "Leave out --sm, or use --hardware-compatibility.",
        )
    if library.ahead_of_time:
        for given, option in (
            (options.hardware_compatibility != "none", "--hardware-compatibility"),
            (options.version_compatible, "--version-compatible"),
            (options.timing_cache is not None, "--timing-cache"),
        ):
            if given:
                raise UserError(
                    f"TensorRT for RTX has no {option}",
                    "Leave it out: name the GPUs with --sm; kernels are tuned when a plan is"
                    " loaded.",
                )
        known = buildable_targets(library)
        for target in options.targets:
            if target not in known:
                raise UserError(
                    f"{library.name} {library.version} does not build for sm_{target}",
                    f"It builds for {', '.join(f'sm_{sm}' for sm in known)}.",
                )
        if (options.strip_weights or options.refit) and not has_gpu():
            raise UserError(
                "TensorRT for RTX makes refittable plans only where there is a GPU",
                "Leave out --strip-weights and --refit, or build on the GPU machine.",
            )
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise UserError(
            f"optimisation level {options.optimization_level} is not in 0..5", "The default is 3."
        )
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise UserError("the workspace limit is below 1 MiB", "Leave it out for no limit.")
    if options.max_batch < 1:
        raise UserError(f"the largest batch is {options.max_batch}", "Give 1 or more.")
    if options.embed_plugin and options.attention == "function":
        raise UserError(
            "the plugin cannot be embedded in a plan that does not use it",
            "Leave out --embed-plugin or --attention function.",
        )


def buildable_targets(library: Library) -> tuple[int, ...]:
    """The SMs TensorRT for RTX builds for, ascending."""
    names = [name for name in dir(library.trt.ComputeCapability) if name.startswith("SM")]
    return tuple(sorted(int(name[2:]) for name in names))


def _default_targets(library: Library) -> tuple[int, ...]:
    # Not sm_75: it has neither bfloat16 nor, in this library, products in float32.
    return tuple(sm for sm in buildable_targets(library) if sm >= 80)


def _read_model(path: Path, options: BuildOptions) -> _Source:
    require_file(path, "model")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises DecodeError, onnx its own
        raise UserError(
            f"{path} is not an ONNX file", "Write it with `bilateral export`."
        ) from error
    if not model.graph.node:
        raise UserError(f"{path} holds no graph", "Write it with `bilateral export`.")
    names = name_attention_nodes(model)
    plugin = _choose_plugin(bool(names), options)
    if plugin is None:
        use_function_bodies(model)
    return _Source(path, model, names, _metadata(model), plugin)


def _choose_plugin(has_attention: bool, options: BuildOptions) -> Path | None:
    if options.attention == "function" or not has_attention:
        return None
    if options.attention == "plugin" or options.plugin is not None or options.embed_plugin:
        return require_plugin(options.plugin)
    return find_plugin()


def _metadata(model: onnx.ModelProto) -> dict[str, Any] | None:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            with contextlib.suppress(json.JSONDecodeError):
                document = json.loads(entry.value)
                return document if isinstance(document, dict) else None
    return None


def _parse(builder: Any, source: _Source, library: Library) -> Any:
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


def _check_attention(source: _Source, facts: NetworkFacts) -> None:
    wanted = len(source.attention_nodes) if source.plugin is not None else 0
    ours = [name for name in facts.plugins if any(node in name for node in source.attention_nodes)]
    if len(ours) != wanted:
        raise UserError(
            f"{len(ours)} of {len(source.attention_nodes)} attention nodes run through the plugin,"
            f" not {wanted}",
            "The nodes need the attributes plugin_namespace and plugin_version: export again.",
        )


def _shapes(tensors: tuple[Tensor, ...]) -> dict[str, Shape]:
    return {tensor.name: tensor.shape for tensor in tensors}


def _profiles(source: _Source, facts: NetworkFacts, options: BuildOptions) -> tuple[Profile, ...]:
    shapes = _shapes(facts.inputs)
    if not any(-1 in shape for shape in shapes.values()):
        if options.profiles:
            raise UserError("the model has no dynamic dimension", "Leave out --profile.")
        return ()
    profiles = options.profiles or (
        default_profile(shapes, options.max_batch, _sizes(source, shapes)),
    )
    for profile in profiles:
        check_profile(profile, shapes)
    return profiles


def _sizes(source: _Source, shapes: dict[str, Shape]) -> dict[tuple[str, int], tuple[int, int]]:
    """The sizes of each dynamic dimension after the first, where the metadata tells.

    A sequence is as long as the model's configuration says; one that counts what is cached may be
    empty.
    """
    model = (source.metadata or {}).get("model")
    if not isinstance(model, dict):
        return {}
    length = model.get("length") or model.get("context")
    if not isinstance(length, int):
        return {}
    names = _dimension_names(source.model)
    return {
        (name, axis): (0 if "past" in names.get((name, axis), "") else 1, length)
        for name, shape in shapes.items()
        for axis, size in enumerate(shape)
        if axis > 0 and size < 0
    }


def _dimension_names(model: onnx.ModelProto) -> dict[tuple[str, int], str]:
    return {
        (value.name, axis): size.dim_param
        for value in model.graph.input
        for axis, size in enumerate(value.type.tensor_type.shape.dim)
        if size.dim_param
    }


def _configure(
    builder: Any,
    network: Any,
    profiles: tuple[Profile, ...],
    source: _Source,
    options: BuildOptions,
    library: Library,
) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, wanted in profile.items():
            shapes.set_shape(name, wanted.minimum, wanted.optimum, wanted.maximum)
        config.add_optimization_profile(shapes)
    for flag, wanted_on in (
        ("TF32", options.tf32),
        ("REFIT", options.refit and not options.strip_weights),
        ("REFIT_IDENTICAL", options.strip_weights),
        ("STRIP_PLAN", options.strip_weights),
        ("VERSION_COMPATIBLE", options.version_compatible),
    ):
        value = getattr(trt.BuilderFlag, flag)
        if wanted_on:
            config.set_flag(value)
        else:
            config.clear_flag(value)
    # So that the plan can be inspected; costs kilobytes.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if library.ahead_of_time:
        targets = options.targets or _default_targets(library)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), index)
    elif options.hardware_compatibility != "none":
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper()
        )
    if options.embed_plugin and source.plugin is not None:
        config.plugins_to_serialize = [str(source.plugin)]
    if options.timing_cache is not None:
        path = options.timing_cache
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise UserError(
                f"timing cache {path} was made by another TensorRT or for another GPU",
                "Remove it, or give another file.",
            )
    return config


def _build(
    builder: Any, network: Any, config: Any, progress: Progress | None, library: Library
) -> Any:
    with _interruptible(config, progress, library) as interrupted:
        plan = builder.build_serialized_network(network, config)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if plan is None:
        reasons = library.log.errors
        raise UserError(
            f"{library.name} {library.version} cannot build the plan:"
            f" {reasons[0] if reasons else 'no reason given'}",
            "For attention that the plugin refuses there is --attention function.",
        )
    return plan


@contextlib.contextmanager
def _interruptible(
    config: Any, progress: Progress | None, library: Library
) -> Iterator[threading.Event]:
    """Turn Ctrl-C into the builder's own way of stopping, while the block runs.

    A KeyboardInterrupt raised in a callback would have to pass through the builder's C++ frames;
    so the signal sets a flag, and the monitor's next step tells the builder to stop.
    """
    interrupted = threading.Event()
    config.progress_monitor = _monitor(library.trt, interrupted, progress)
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread alone
        return
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def _monitor(trt: Any, interrupted: threading.Event, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if progress is not None:
                progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if progress is not None:
                progress(phase, step + 1, self.steps.get(phase, step + 1))
            return not interrupted.is_set()

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase, 0)
            if progress is not None:
                progress(phase, steps, steps)

    return Monitor()


def _target_names(options: BuildOptions, library: Library) -> tuple[str, ...]:
    if library.ahead_of_time:
        return tuple(f"sm_{sm}" for sm in options.targets or _default_targets(library))
    return (device_target(),)


def _tensor_record(tensor: Tensor) -> TensorRecord:
    return TensorRecord(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def _plugin_record(
    source: _Source, facts: NetworkFacts, options: BuildOptions
) -> PluginRecord | None:
    if source.plugin is None:
        return None
    return PluginRecord(
        **describe_file(source.plugin).model_dump(),
        embedded=options.embed_plugin,
        nodes=len(facts.plugins),
    )


def _attention_record(source: _Source, facts: NetworkFacts, plan: Path) -> AttentionRecord:
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
