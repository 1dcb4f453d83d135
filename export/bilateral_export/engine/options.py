"""Options of a build, and which of them a library supports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bilateral_export.engine.installation.cuda import device_sm, has_gpu
from bilateral_export.engine.installation.library import Library
from bilateral_export.engine.profiles import DEFAULT_MAX_BATCH, Profile
from bilateral_export.errors import UserError
from bilateral_export.op.architectures import AMPERE

HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
AttentionChoice = Literal["auto", "plugin", "function"]
_MOST_MIB = 1 << 32  # in bytes it still fits in 64 bits


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
        refit: Keep the weights replaceable, by others too.
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


def check_options(options: BuildOptions, library: Library) -> None:
    """Refuse options that the library would ignore or fail on without a clear message.

    Raises:
        UserError: An option that does not go with the library or with another one.
    """
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
    if options.workspace_mib is not None and not 1 <= options.workspace_mib <= _MOST_MIB:
        raise UserError(
            f"a workspace limit of {options.workspace_mib} MiB is not in 1 MiB..2^32 MiB",
            "Leave it out for no limit.",
        )
    if options.max_batch < 1:
        raise UserError(f"the largest batch is {options.max_batch}", "Give 1 or more.")
    if options.embed_plugin and options.attention == "function":
        raise UserError(
            "the plugin cannot be embedded in a plan that does not use it",
            "Leave out --embed-plugin or --attention function.",
        )


def choose_targets(
    options: BuildOptions, library: Library, plugin_targets: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the SMs that a plan is built for.

    Args:
        options: How to build; checked.
        library: What builds. A full TensorRT builds for the GPU it runs on.
        plugin_targets: SMs the plugin has code for; None for a plan without it.

    Raises:
        UserError: The plugin has no code for one of them, or there is no GPU where one is needed.
    """
    if not library.ahead_of_time:
        targets: tuple[int, ...] = (device_sm(),)
    else:
        # Not sm_75: it has neither bfloat16 nor, in TensorRT for RTX, products in float32.
        targets = tuple(dict.fromkeys(options.targets)) or tuple(
            sm
            for sm in buildable_targets(library)
            if sm >= AMPERE and (plugin_targets is None or sm in plugin_targets)
        )
    lacking = [sm for sm in targets if plugin_targets is not None and sm not in plugin_targets]
    if lacking or not targets:
        raise UserError(
            f"the plugin has no code for {', '.join(f'sm_{sm}' for sm in lacking) or 'these GPUs'}",
            "Build the plan with --attention function, or the plugin for this GPU.",
        )
    return targets


def buildable_targets(library: Library) -> tuple[int, ...]:
    """Return the SMs TensorRT for RTX builds for, ascending: those it knows and this GPU's."""
    names = [name for name in dir(library.trt.ComputeCapability) if name.startswith("SM")]
    known = {int(name[2:]) for name in names}
    return tuple(sorted(known | ({device_sm()} if has_gpu() else set())))
