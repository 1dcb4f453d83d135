"""`bilateral new`: the starting point of a model of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bilateral_cli.app import app
from bilateral_cli.console import out


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The Python file to write, such as my_model.py.")],
) -> None:
    """Write a commented model of your own, with its test, to start from.

    It defines a module with bilateral attention, its inputs and its outputs. Given as --model to
    `export` and `parity`, the file is run: it is your code, and not looked at before.

    Example: bilateral new my_model.py
    """
    from bilateral_export.models.starting_point import write_starting_point

    write_starting_point(path)
    for line in (
        f"{path}: change what is marked CHANGE, then",
        f"  pytest {path}",
        f"  bilateral export CHECKPOINT OUT.onnx --model {path}:build",
        f"  bilateral parity CHECKPOINT OUT.onnx --model {path}:build",
    ):
        out.print(line, markup=False, soft_wrap=True)
