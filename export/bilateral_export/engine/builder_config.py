"""TensorRT's builder configuration, from the options of a build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilateral_export.engine.installation.library import Library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.profiles import Profile
from bilateral_export.errors import UserError


def configure(
    builder: Any,
    options: BuildOptions,
    targets: Sequence[int],
    profiles: Sequence[Profile],
    plugin: Path | None,
    library: Library,
) -> Any:
    """Return an `IBuilderConfig` that holds the options.

    Args:
        builder: TensorRT's `Builder`.
        options: How to build; checked.
        targets: SMs to build for, with TensorRT for RTX.
        profiles: Shapes the plan accepts.
        plugin: The plugin library that may be embedded.
        library: What builds.

    Raises:
        UserError: A profile's sizes are beyond the library's, or the timing cache is another
            library's or another GPU's.
    """
    trt = library.trt
    config = builder.create_builder_config()
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, wanted in profile.items():
            try:
                shapes.set_shape(name, wanted.minimum, wanted.optimum, wanted.maximum)
            except (RuntimeError, TypeError) as error:  # TypeError: beyond 64 bits
                raise UserError(
                    f"{library.name} {library.version} does not take the profile {name}={wanted}",
                    "Give smaller sizes with --profile or --max-batch.",
                ) from error
        config.add_optimization_profile(shapes)
    for flag, wanted_on in (
        ("TF32", options.tf32),
        ("REFIT", options.refit),
        # Allows the weights of the build alone; --refit is for others too.
        ("REFIT_IDENTICAL", options.strip_weights and not options.refit),
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
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            # A GPU that is here and has no name in the library is built for as the current one.
            known = getattr(trt.ComputeCapability, f"SM{target}", trt.ComputeCapability.CURRENT)
            config.set_compute_capability(known, index)
    elif options.hardware_compatibility != "none":
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper()
        )
    if options.embed_plugin and plugin is not None:
        config.plugins_to_serialize = [str(plugin)]
    if options.timing_cache is not None:
        path = options.timing_cache
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise UserError(
                f"timing cache {path} was made by another TensorRT or for another GPU",
                "Remove it, or give another file.",
            )
    return config
