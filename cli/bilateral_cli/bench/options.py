"""Options of several measurements, and how their values are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bilateral_export.errors import UserError
from bilateral_export.files import require_replaceable


def writable(path: Path | None) -> Path | None:
    """Return a path that can be written, judged before what is to be written has taken its time.

    Raises:
        UserError: It is a directory or a device, or lies where nothing may be written.
    """
    if path is None:
        return None
    require_replaceable(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"nothing can be written to {folder}", "Choose another path for --output.")
    return path


DurationOption = Annotated[
    float, typer.Option("--duration", metavar="SECONDS", help="Length of the measurement.")
]
MaxDurationOption = Annotated[
    float | None,
    typer.Option(
        "--max-duration",
        metavar="SECONDS",
        help="Go on up to so long until three windows agree. Default: --duration.",
    ),
]
WarmupOption = Annotated[
    float, typer.Option("--warmup", metavar="SECONDS", help="Least warm-up before it.")
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Items in one request.")]
LengthOption = Annotated[
    int, typer.Option("--length", help="Size of every free axis but the batch.")
]
InputsOption = Annotated[
    Path | None,
    typer.Option("--inputs", help="Real inputs: an .npz file. Default: made up."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Also write the report to this JSON file.", callback=writable
    ),
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", "-c", help="Callers at a time.")]
