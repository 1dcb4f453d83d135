"""`bilateral quickstart`: the main job from end to end, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import EXIT_FAILED, app
from bilateral_cli.console import (
    DEFAULT_REPOSITORY,
    JsonOption,
    RepositoryOption,
    out,
    print_json,
    progress,
    styled,
)


@app.command()
def quickstart(
    checkpoints: Annotated[
        Path, typer.Option(help="Directory of the committed checkpoints.")
    ] = Path("export/checkpoints"),
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    output: Annotated[
        Path, typer.Option(help="Directory for the ONNX file and the summary.")
    ] = Path("out"),
    json: JsonOption = False,
) -> None:
    """Take the committed digits checkpoint all the way to a verified gRPC service.

    Loads the checkpoint, exports it, compares it with FP64 PyTorch, puts it into the model
    repository, starts the real tritonserver, classifies the held-out images over gRPC, measures
    latency, and stops the server. Exit code 1 when what is served is not what was trained.

    Example: bilateral quickstart
    """
    from bilateral_benchmarks.end_to_end.quickstart import STEPS
    from bilateral_benchmarks.end_to_end.quickstart import quickstart as run

    with progress() as bar:
        task = bar.add_task("", total=STEPS)

        def on_step(doing: str) -> None:
            bar.update(task, description=doing, advance=1)

        def on_result(step: str, line: str) -> None:
            if not json:
                out.print(styled(f"{step:>13}", "bold"), f" {line}", soft_wrap=True)

        summary = run(checkpoints, Path(repository), output, on_step, on_result)
    if json:
        print_json(summary)
    else:
        out.print(f"Summary: {output / 'quickstart.json'}")
    if not summary.passed:
        raise typer.Exit(EXIT_FAILED)
