"""`bilateral build`: an ONNX file to a TensorRT plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, choice, out, print_json, progress

if TYPE_CHECKING:
    from bilateral_export.engine.plan.manifest import PlanManifest


@app.command()
def build(
    onnx: Annotated[Path, typer.Argument(help="The ONNX file to build from.")],
    plan: Annotated[
        Path, typer.Argument(help="The plan to write; its manifest goes to PLAN.json.")
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=MIN:OPT:MAX",
            help="Shapes the plan accepts, as input=1x3x224x224:8x3x224x224:32x3x224x224, inputs"
            " separated by commas. May be given several times. If left out: batches of 1 to"
            " --max-batch, lengths as the model says.",
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Largest batch, where no --profile is given.")
    ] = 32,
    attention: Annotated[
        str,
        typer.Option(
            help="What runs attention: plugin, function (standard operators, which TensorRT fuses"
            " where it can), or auto: the plugin if it is installed."
        ),
    ] = "auto",
    plugin: Annotated[
        Path | None, typer.Option(help="The plugin library; the installed one if left out.")
    ] = None,
    embed_plugin: Annotated[
        bool, typer.Option("--embed-plugin", help="Put the plugin library into the plan.")
    ] = False,
    sm: Annotated[
        list[int] | None,
        typer.Option(
            help="GPU to build for, by compute capability such as 86 or 120 (TensorRT for RTX);"
            " may be given several times. If left out: all from 80 on that it can build for and the"
            " plugin has code for."
        ),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let float32 products round to TF32 (10-bit mantissa).")
    ] = False,
    hardware_compatibility: Annotated[
        str,
        typer.Option(help="none, ampere_plus or same_compute_capability (full TensorRT)."),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Load in later versions too (full TensorRT)."),
    ] = False,
    optimization_level: Annotated[
        int | None, typer.Option(help="The builder's effort, 0 to 5; 3 if left out.")
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", help="Limit of scratch memory in MiB.")
    ] = None,
    strip_weights: Annotated[
        bool,
        typer.Option("--strip-weights", help="Leave the weights out, to be refitted on loading."),
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Keep the weights replaceable.")] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="File of kernel timings to read and update (full TensorRT)."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Build a TensorRT plan, with a manifest beside it that is checked at each load.

    The precision is that of the graph: choose it in `bilateral export`. The manifest says what was
    built: precision, attention, inputs and outputs, profiles, library, SMs.

    Example: bilateral build digits.onnx digits.plan --sm 86 --sm 120
    """
    from bilateral_export.engine.build import build_plan
    from bilateral_export.engine.options import (
        AttentionChoice,
        BuildOptions,
        HardwareCompatibility,
    )
    from bilateral_export.engine.profiles import parse_profile

    options = BuildOptions(
        profiles=tuple(parse_profile(text) for text in profile or ()),
        max_batch=max_batch,
        attention=choice(attention, AttentionChoice, "--attention"),
        plugin=plugin,
        embed_plugin=embed_plugin,
        targets=tuple(sm or ()),
        tf32=tf32,
        hardware_compatibility=choice(
            hardware_compatibility, HardwareCompatibility, "--hardware-compatibility"
        ),
        version_compatible=version_compatible,
        optimization_level=optimization_level,
        workspace_mib=workspace,
        strip_weights=strip_weights,
        refit=refit,
        timing_cache=timing_cache,
    )
    with _phases() as on_phase:
        manifest = build_plan(onnx, plan, options, on_phase)
    if json:
        print_json(manifest)
    else:
        _print(plan, manifest)


@contextlib.contextmanager
def _phases() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show the builder's phases as they are reported to what this yields."""
    with progress() as bar:
        task = bar.add_task("Building", total=None)
        yield lambda phase, done, total: bar.update(
            task, description=phase, completed=done, total=total
        )


def _print(plan: Path, manifest: PlanManifest) -> None:
    attention = manifest.attention
    how = {
        "plugin": f"{attention.nodes} through the plugin",
        "function": f"{attention.nodes} as function bodies, "
        + ("fusion unknown" if attention.fused is None else f"{attention.fused} fused"),
        "none": "none",
    }[attention.path]
    tf32 = " (TF32)" if manifest.tf32 else ""
    out.print(
        f"{plan}: {manifest.precision}{tf32}, {manifest.library} {manifest.version}, for"
        f" {', '.join(manifest.targets)}, {manifest.plan.bytes / 1e6:.1f} MB in"
        f" {manifest.seconds:.1f} s",
        soft_wrap=True,
    )
    out.print(f"  attention: {how}")
    for number, profile in enumerate(manifest.profiles, 1):
        shapes = ", ".join(f"{name}={ranges.range()}" for name, ranges in profile.items())
        out.print(f"  profile {number}: {shapes}", soft_wrap=True)
