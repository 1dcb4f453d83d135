"""`bilateral study`: the studies whose results the documentation cites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import notes, print_page, progress
from bilateral_cli.options import numbers, one_of

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Reproduce a study that the documentation cites.

    Each writes JSON, Markdown and HTML, and prints the Markdown.
    """,
)
app.add_typer(study, name="study")

ResultsOption = Annotated[Path, typer.Option("--out", help="Directory for the report.")]
RESULTS = Path("benchmarks/results")


@study.command()
def robustness(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints of image classifiers.")],
    data: Annotated[Path, typer.Option(help="Held-out images: an .npz file.")] = Path(
        "export/checkpoints/digits_heldout.npz"
    ),
    images: Annotated[int | None, typer.Option(help="Only the first so many images.")] = None,
    budgets: Annotated[
        str, typer.Option(help="Of the attacks, in 255ths of a pixel's range.")
    ] = "1,2,4,8,12,16,24,32,48,64",
    grpc_port: Annotated[int, typer.Option(help="For the server; it must be free.")] = 8001,
    out: ResultsOption = RESULTS,
) -> None:
    """Measure accuracy under FGSM and PGD of torch, ONNX Runtime and the served model.

    Checkpoints of the same kind and another seed add to the spread shown.

    Example: bilateral study robustness export/checkpoints/digits_*.safetensors
    """
    from bilateral_benchmarks.studies.robustness.study import measure_robustness

    chosen = numbers(budgets, whole=False)
    with progress() as bar:
        task = bar.add_task("Attacking", total=None)
        print_page(
            measure_robustness(
                checkpoints,
                data,
                out,
                images=images,
                budgets=chosen,
                grpc_port=grpc_port,
                on_point=lambda done, of: bar.update(task, completed=done, total=of),
            )
        )


@study.command()
def theory(out: ResultsOption = RESULTS) -> None:
    """Reproduce three theoretical claims about attention, in half a minute on the CPU.

    Example: bilateral study theory
    """
    from bilateral_benchmarks.studies.theory.report import reproduce

    print_page(reproduce(out))


@study.command("tile-skipping")
def tile_skipping(
    sm: Annotated[int, typer.Option("--sm", help="Architecture whose block sizes are used.")] = 90,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", help="Directory for the report.")
    ] = None,
) -> None:
    """Count the key tiles that the kernel skips on trained weights, against two oracles.

    Needs no GPU with TRITON_INTERPRET=1: these are counts, not times.

    Example: TRITON_INTERPRET=1 bilateral study tile-skipping --out benchmarks/results
    """
    from bilateral_benchmarks.studies.tile_skipping import measure_skipping
    from bilateral_export.op.architectures import COMPILED

    one_of("--sm", [sm], COMPILED)
    print_page(measure_skipping(sm, out))


@study.command("build-matrix")
def build_matrix(
    models: Annotated[
        list[str] | None, typer.Option("--models", help="This model; may be repeated.")
    ] = None,
    precisions: Annotated[
        list[str] | None, typer.Option("--precisions", help="This precision; may be repeated.")
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Option("--paths", help="What runs attention: function or plugin; may be repeated."),
    ] = None,
    sm: Annotated[
        list[str] | None,
        typer.Option("--sm", help="GPU; 80,86 is one plan for two. May be repeated."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build again what is there.")] = False,
    out: ResultsOption = RESULTS,
) -> None:
    """Build TensorRT plans of every family in every precision, for several GPUs.

    Started again with the same library, plugin and machine, it goes on where it stopped. Exit code
    1 when a build for an Ampere GPU or later failed.

    Example: bilateral study build-matrix --models digits_bilateral --sm 86 --sm 80,120
    """
    from bilateral_benchmarks.studies import build_matrix as matrix

    found = matrix.run_matrix(
        one_of("--models", models, matrix.MODELS),
        one_of("--precisions", precisions, matrix.PRECISIONS),
        one_of("--paths", paths, matrix.PATHS),
        [targets(text) for text in sm] if sm else matrix.TARGETS,
        out,
        fresh=fresh,
        on_row=lambda row: notes.print(row, soft_wrap=True),
    )
    print_page(found)
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)


def targets(text: str) -> tuple[int, ...]:
    """Return the GPUs of one plan, such as 80,86.

    Raises:
        UserError: It is not such a list.
    """
    return tuple(int(value) for value in numbers(text, whole=True))
