"""`bilateral bench pipeline`: every model of the paper from checkpoint to served answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED
from bilateral_cli.bench.app import bench
from bilateral_cli.console import JsonOption, notes, out, print_json, styled


@bench.command()
def pipeline(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for pipeline.json and pipeline.md.")
    ] = Path("out"),
    checkpoints: Annotated[
        Path, typer.Option(help="Directory of the committed checkpoints.")
    ] = Path("export/checkpoints"),
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This model; may be given repeatedly.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what passed before, by the output.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Take every model of the paper from checkpoint to gRPC at its real size.

    Checkpoint, ONNX, parity, TensorRT plan, repository, tritonserver, real inputs, parity of what
    is served. Exit code 1 when a model does not arrive or is not served as it was trained.

    Example: bilateral bench pipeline --only segmenter_bilateral_tiny
    """
    from bilateral_benchmarks.end_to_end.model_report import ModelReport
    from bilateral_benchmarks.end_to_end.study import run_pipeline

    def on_report(name: str, result: ModelReport | str) -> None:
        if isinstance(result, ModelReport):
            word = styled("pass", "green") if result.passed else styled("FAIL", "bold red")
            said = "; ".join(f"{answer.asked}: {answer.said}" for answer in result.answers)
            notes.print(word, styled(name, "bold"), said, soft_wrap=True)
        else:
            notes.print(styled("Failed:", "bold red"), f"{name}: {result}", soft_wrap=True)

    with notes.status("Starting") as status:
        found = run_pipeline(output, checkpoints, only or (), resume, status.update, on_report)
    if json:
        print_json(found)
    else:
        out.print(f"Table: {output / 'pipeline.md'}")
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)
