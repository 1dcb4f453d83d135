"""`bilateral kernels`: the fused kernel's code and block sizes, without a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import notes, out
from bilateral_cli.options import one_of

kernels = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Compile the fused kernel ahead of time. Needs Triton and no GPU.",
)
app.add_typer(kernels, name="kernels")

SmOption = Annotated[
    list[int] | None, typer.Option("--sm", help="Architecture; may be repeated. Default: all.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes. Default: one per core.")
]


@kernels.command("compile")
def compile_(
    outdir: Annotated[Path, typer.Argument(help="Directory to create.")],
    sm: SmOption = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="fp32, fp16 or bf16; may be repeated.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Regular expression that the names of cubins have to contain.")
    ] = "",
    workers: WorkersOption = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory for kernel_build.json, .md and .html.")
    ] = None,
) -> None:
    """Compile the kernels into cubins and a manifest, from which the plugin is built.

    Exit code 1 when a kernel spills, needs too much shared memory, or has its wgmma serialised.

    Example: bilateral kernels compile out/cubins --sm 90
    """
    from bilateral_benchmarks.kernel.build_report import write_build_report
    from bilateral_export.op.architectures import ARCHITECTURES, COMPILED
    from bilateral_export.op.kernel.aot.compile import compile_all
    from bilateral_export.op.kernel.aot.manifest import problems
    from bilateral_export.op.kernel.aot.specialisation import DTYPES, select

    one_of("--sm", sm, ARCHITECTURES)
    wanted = select(sm or list(COMPILED), one_of("--dtype", dtype, DTYPES), only)
    result = compile_all(outdir, wanted, workers or os.cpu_count() or 1)
    found = problems(result)
    out.print(f"{len(result['cubins'])} cubins, {result['total_bytes'] / 1e6:.1f} MB")
    for problem in found:
        out.print(f"problem: {problem}", soft_wrap=True)
    if report is not None:
        write_build_report(result, report)
    if found:
        raise typer.Exit(EXIT_FAILED)


@kernels.command("block-sizes")
def block_sizes(
    sm: SmOption = None,
    anew: Annotated[
        bool, typer.Option("--all", help="Choose anew also where the table has a prediction.")
    ] = False,
    workers: WorkersOption = None,
) -> None:
    """Choose the kernel's block sizes by what the compiler reports, and record them.

    Exit code 1 when no candidate fits a case.

    Example: bilateral kernels block-sizes --sm 90
    """
    from bilateral_benchmarks.kernel.configurations import fill_table
    from bilateral_export.op.architectures import COMPILED

    chosen = one_of("--sm", sm, COMPILED)
    missing = fill_table(chosen, anew=anew, workers=workers or os.cpu_count() or 1, say=out.print)
    for case in missing:
        notes.print(f"no candidate fits {case}", soft_wrap=True)
    if missing:
        raise typer.Exit(EXIT_FAILED)
