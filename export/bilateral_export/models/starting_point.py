"""The starting point of a model of your own: a Python file with its test."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_export.files import atomic_file


def write_starting_point(path: Path) -> None:
    """Write a commented definition of a model.

    Raises:
        UserError: The name is not a Python module's, the file exists, or it cannot be written.
    """
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{path} is not a Python module's name", "Choose one like my_model.py.")
    if path.exists():
        raise UserError(f"{path} exists already", "Choose another name, or remove it.")
    text = files(f"{__package__}.examples").joinpath("template.py").read_text(encoding="utf-8")
    with atomic_file(path) as temporary:
        temporary.write_text(text.replace("THIS_FILE", path.name), encoding="utf-8")
