"""Options that several measurements have, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_export.errors import UserError

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
BatchOption = Annotated[int, typer.Option("--batch", help="Items in one request.")]
LengthOption = Annotated[
    int, typer.Option("--length", help="Size of every free axis but the batch.")
]
InputsOption = Annotated[
    Path | None,
    typer.Option("--inputs", help="Real inputs: an .npz file. Default: made up."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the report to this JSON file.")
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", "-c", help="Callers at a time.")]


def numbers(text: str) -> list[float]:
    """Read a list such as 1,2,4.

    Raises:
        UserError: It is none.
    """
    try:
        return [float(value) for value in text.split(",") if value.strip()]
    except ValueError as error:
        raise UserError(f"'{text}' is no list of numbers", "Write it as 1,2,4.") from error
