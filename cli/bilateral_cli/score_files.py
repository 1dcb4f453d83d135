"""`bilateral score-files`: an archive of images or texts, scored without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import JsonOption, notes, out, print_json, progress, table

if TYPE_CHECKING:
    from bilateral_serving.scoring import Summary


@app.command()
def score_files(
    model: Annotated[
        Path,
        typer.Argument(help="An exported or lowered .onnx file, or a TensorRT plan."),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="A folder, a glob in quotes, a text file of one path a line, or Parquet: a file or"
            " a folder of them."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the Parquet files; if it is there, go on."),
    ],
    column: Annotated[
        str, typer.Option(help="The Parquet column with paths, which name the rows.")
    ] = "path",
    content: Annotated[
        str,
        typer.Option(
            help="The Parquet column with texts or files' bytes. Default: read the paths."
        ),
    ] = "",
    where: Annotated[
        str,
        typer.Option(help="Rows of Parquet to take, such as \"split == 'test' and width > 99\"."),
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Items to take, from the first.")] = None,
    top: Annotated[
        int, typer.Option(min=0, help="Keep the probabilities of so many classes. 0: of all.")
    ] = 0,
    runtime: Annotated[
        str,
        typer.Option(help="Default: what the file was lowered or built for, else onnxruntime."),
    ] = "",
    parity: Annotated[
        Path | None,
        typer.Option(
            help="The report of `bilateral parity --json`; its verdict goes into each row."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Copies of the model. 0: by cores or GPUs, and memory.")
    ] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one copy. 0: one, more if memory is short.")
    ] = 0,
    batch: Annotated[
        int, typer.Option(min=0, help="Items at once. 0: 16 on CPUs, 64 on GPUs, if allowed.")
    ] = 0,
    address: Annotated[
        str,
        typer.Option(help="A Ray cluster: host:6379 or ray://host:10001. Default: this machine."),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Score millions of images or texts with a model file, and write a row for each to Parquet.

    A row has the path, the decision with its probabilities (or the features), the model's SHA-256,
    the verdict of parity and the versions; an item that cannot be read has the reason instead. The
    same command again goes on where it was stopped, whatever stopped it, and takes in new items.

    Example: bilateral score-files digits.onnx photos --output scores
    """
    from bilateral_serving.scoring import Wanted, load_model
    from bilateral_serving.scoring import score_files as run
    from bilateral_serving.scoring.items import Source

    found = load_model(model, runtime, parity)
    if not found.lowered and not found.on_gpu:
        notes.print(
            f"{model} is not lowered; `bilateral lower` makes it faster on a CPU.", soft_wrap=True
        )
    with progress() as bar:
        task = bar.add_task("Starting", total=None)
        summary = run(
            found,
            Source(data, column, content, where),
            output,
            wanted=Wanted(workers, threads, batch),
            limit=limit,
            top=top,
            address=address,
            on_progress=lambda done, total: bar.update(
                task, description=f"{done:,} of {total:,} items", completed=done, total=total
            ),
        )
    if json:
        print_json(summary)
    else:
        _show(summary)


def _show(found: Summary) -> None:
    if not found.scored:
        out.print(f"{found.output} has a row for each of {found.items:,} items.", soft_wrap=True)
        return
    rows = [
        ("model", f"{found.model}, SHA-256 {found.model_sha256[:12]}, parity {found.parity}"),
        ("rows", f"{found.items:,}; of this run {found.scored:,}, {found.failed:,} with a reason"),
        (
            "workers",
            f"{found.workers}, {found.threads} thread(s) each, batch {found.batch},"
            f" {found.worker_mib:.0f} MiB at most",
        ),
        (
            "time",
            f"{found.seconds:.1f} s; {found.scored / found.scoring_seconds:,.1f} items/s once"
            " started",
        ),
    ]
    out.print(table(["", found.output], rows))
