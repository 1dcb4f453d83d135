"""Containment of a model: what Triton opens for it lies in the repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE


def check_contained(directory: Path) -> None:
    """Refuse a model of which a file, or a name in its configuration, leads out of the repository.

    Links within the repository are fine, and so is a repository that is itself a link.

    Args:
        directory: The model's.

    Raises:
        UserError: One does, or the configuration cannot be read.
    """
    path = directory / CONFIG_FILE
    for name in _names(configs.read(path)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{path} names '{name}', which is not inside the model's directory",
                "Name a file of the model, without '..'.",
            )
    root = directory.parent.resolve()
    for found in (directory, *directory.rglob("*")):
        # A link to nothing is no file, which is said elsewhere.
        if found.exists() and not found.resolve().is_relative_to(root):
            raise UserError(
                f"{found} is a link that leads out of the repository, to {found.resolve()}",
                "Copy the file into the repository.",
            )


def _names(config: pb.ModelConfig) -> Iterator[str]:
    """Yield every name of a file that Triton takes from a configuration."""
    yield config.default_model_filename
    yield from config.cc_model_filenames.values()
    yield from (output.label_filename for output in config.output)
    for warmup in config.model_warmup:
        yield from (tensor.input_data_file for tensor in warmup.inputs.values())
