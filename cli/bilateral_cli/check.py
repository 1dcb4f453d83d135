"""`bilateral check`: what has to be checked by hand, on a GPU or before a commit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import notes, out, print_page

check = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Check the plugin, the kernel and the TensorRT runner on an NVIDIA GPU.

    Exit code 1 when a check fails, 2 without a GPU.
    """,
)
app.add_typer(check, name="check")


@check.command()
def plugin(
    library: Annotated[
        Path | None, typer.Option("--plugin", help="The library. Default: the installation's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for plugin_check.json.")
    ] = None,
) -> None:
    """Run the plugin library through its own interfaces, without TensorRT. Needs an NVIDIA GPU.

    Every case of a grid is compared with the operator in float64.

    Example: bilateral check plugin --output benchmarks/results
    """
    from bilateral_benchmarks.gpu_checks.plugin import check_plugin

    found = check_plugin(library, output, notes.print)
    print_page(found)
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)


@check.command()
def runner(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint.")],
) -> None:
    """Run a checkpoint with TensorRT in every configuration, against FP64. Needs an NVIDIA GPU.

    Every precision, with the function body and with the plugin, with CUDA graphs on and off.

    Example: bilateral check runner export/checkpoints/digits_bilateral.safetensors
    """
    from bilateral_benchmarks.gpu_checks.runner import check_runner

    if not check_runner(checkpoint, lambda line: out.print(line, soft_wrap=True)):
        raise typer.Exit(EXIT_FAILED)


@check.command()
def schema(
    write: Annotated[
        bool, typer.Option("--write", help="Write the schema beside the code instead.")
    ] = False,
) -> None:
    """Compare the committed JSON schema of parity reports with the code. Needs no GPU.

    Exit code 1 when they differ.

    Example: bilateral check schema --write
    """
    from bilateral_export.files import write_text
    from bilateral_export.parity.report.document import SCHEMA_PATH
    from bilateral_export.parity.report.document import schema as current

    if write:
        write_text(SCHEMA_PATH, current())
        notes.print(f"Wrote {SCHEMA_PATH}")
    elif SCHEMA_PATH.read_text(encoding="utf-8") != current():
        notes.print(f"{SCHEMA_PATH} differs from the code", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED)
    else:
        sys.stdout.write("The schema is current.\n")
