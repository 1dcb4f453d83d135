"""The model repository: the directory of models and versions that Triton serves.

    <repository>/<name>/config.pbtxt      how the model is served, and its metadata
    <repository>/<name>/labels.txt        one class name per line, if the model has labels
    <repository>/<name>/<version>/        model.onnx or model.plan, and what runs it

A version directory appears whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors
from bilateral_export.metadata import ArtifactMetadata
from bilateral_export.tensors import TensorSpec
from bilateral_serving import config as configs
from bilateral_serving import raw
from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.repository.lock import writing
from bilateral_serving.repository.provenance import Provenance, read_provenance
from bilateral_serving.repository.version_files import (
    replace_text,
    restored_on_error,
)


@dataclass(frozen=True)
class Version:
    """One version of a model: its number, its directory, and the size of its files in bytes."""

    number: int
    directory: Path
    size: int
    metadata: ArtifactMetadata | None
    provenance: Provenance | None = None

    @property
    def precision(self) -> str:
        """Of the weights: as the file has them, else as it says."""
        found = self.provenance.precision if self.provenance else ""
        return found or (self.metadata.precision if self.metadata else "")

    @property
    def document(self) -> dict[str, Any]:
        """The version as JSON has it."""
        return {
            "number": self.number,
            "directory": str(self.directory),
            "bytes": self.size,
            "metadata": self.metadata.model_dump(mode="json") if self.metadata else None,
            "provenance": self.provenance.model_dump() if self.provenance else None,
        }


@dataclass(frozen=True)
class Entry:
    """A model of the repository.

    Attributes:
        name: The name under which it is served.
        directory: Where it lies.
        target: Triton's backend: "python", "onnxruntime", "tensorrt" or another.
        versions: What is there, lowest number first; empty if only the configuration is.
        inputs: Inputs, batch axis included.
        outputs: Outputs, batch axis included.
        max_batch_size: Largest batch; 0 if Triton does not batch.
        instances: Copies that run side by side.
        threads: Threads of one instance; 0 for an even share of the cores.
        max_queue_delay_us: How long a request may wait for others, in microseconds.
        device: "gpu" if an instance asks for one, else "cpu".
        raw: The input for files as they are; "" where it takes tensors only.
        remarks: What `add` has to say of the file, one line each; empty from `show`.
    """

    name: str
    directory: Path
    target: str
    versions: tuple[Version, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    instances: int
    threads: int
    max_queue_delay_us: int
    device: str
    raw: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any]:
        """The model as JSON has it, without the remarks."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "target": self.target,
            "max_batch_size": self.max_batch_size,
            "instances": self.instances,
            "threads": self.threads,
            "max_queue_delay_us": self.max_queue_delay_us,
            "device": self.device,
            "raw": self.raw,
            "inputs": [str(tensor) for tensor in self.inputs],
            "outputs": [str(tensor) for tensor in self.outputs],
            "versions": [version.document for version in self.versions],
        }


def list_entries(repository: Path) -> tuple[Entry, ...]:
    """Return every model of the repository, by name.

    Raises:
        UserError: The repository is not a directory, or a configuration is not valid.
    """
    return tuple(_entry(directory) for directory in _model_directories(repository).values())


def list_names(repository: Path) -> tuple[str, ...]:
    """Return the names of the models of the repository, readable or not.

    Raises:
        UserError: The repository is not a directory.
    """
    return tuple(_model_directories(repository))


def show(name: str, repository: Path) -> Entry:
    """Return one model of the repository.

    Raises:
        UserError: There is no such model, or its configuration is not valid.
    """
    directories = _model_directories(repository)
    if name not in directories:
        known = ", ".join(directories) or "none"
        raise UserError(f"no model '{name}' in {repository}", f"The models there are: {known}.")
    return _entry(directories[name])


def remove(name: str, repository: Path, *, version: int | None = None) -> None:
    """Remove one version of a model, or with version None the model and everything in it.

    A version policy that names the version does not any more; the newest is served if it named no
    other.

    A directory is first moved to where Triton does not look, so that no half of it is ever served.

    Raises:
        UserError: There is no such model or version, or it cannot be removed.
    """
    show(name, repository)
    with writing(repository) as staging:
        directory = show(name, repository).directory
        with disk_errors(directory):
            if version is None:
                directory.rename(staging / name)
            else:
                _remove_version(directory, version, staging)


def _remove_version(directory: Path, version: int, staging: Path) -> None:
    versions = configs.version_directories(directory)
    if version not in versions:
        known = ", ".join(map(str, versions)) or "none"
        raise UserError(f"model '{directory.name}' has no version {version}", f"It has: {known}.")
    path = directory / CONFIG_FILE
    config = existing_config(directory)
    assert config is not None
    with restored_on_error(path, staging):
        if version in config.version_policy.specific.versions:
            # First of all: a server would look for a version that is gone.
            policy = configs.without_version(config.version_policy, version)
            config.version_policy.CopyFrom(policy)
            replace_text(path, configs.write(config), staging)
        versions[version].rename(staging / str(version))
    configs.keep_versions(config, configs.version_directories(directory))
    replace_text(path, configs.write(config), staging)


def _model_directories(repository: Path) -> dict[str, Path]:
    if not repository.is_dir():
        raise UserError(
            f"there is no model repository at {repository}",
            "Make one with `bilateral repository add NAME MODEL.onnx`.",
        )
    # Names with a dot in front are being written or removed.
    return {
        path.parent.name: path.parent
        for path in sorted(repository.glob(f"*/{CONFIG_FILE}"))
        if not path.parent.name.startswith(".")
    }


def existing_config(directory: Path) -> pb.ModelConfig | None:
    """Return the configuration of a model; None if there is no model.

    Raises:
        UserError: It is not valid, or the directory has none.
    """
    path = directory / CONFIG_FILE
    if not directory.exists():  # asked first: a model appears with its configuration
        return None
    if not path.is_file():
        raise UserError(
            f"{directory} exists but has no {CONFIG_FILE}", "Remove it or choose another name."
        )
    return configs.read(path)


def _entry(directory: Path) -> Entry:
    config = existing_config(directory)
    assert config is not None
    inputs, outputs = configs.interface(config)
    threads = config.parameters.get("threads") or config.parameters.get("intra_op_thread_count")
    return Entry(
        name=directory.name,
        directory=directory,
        target=config.backend,
        versions=tuple(
            Version(
                number,
                path,
                sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
                configs.read_metadata(config, number),
                read_provenance(config, number),
            )
            for number, path in configs.version_directories(directory).items()
        ),
        inputs=inputs,
        outputs=outputs,
        max_batch_size=config.max_batch_size,
        instances=sum(group.count for group in config.instance_group) or 1,
        threads=int(threads.string_value) if threads and threads.string_value.isdecimal() else 0,
        max_queue_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
        device="gpu" if configs.wants_gpu(config) else "cpu",
        raw=raw.input_name(config),
    )
