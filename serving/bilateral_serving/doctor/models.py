"""A model of the repository: its configuration against its files, version by version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.engine.plan.manifest import PlanManifest
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE, served_versions, version_directories
from bilateral_serving.doctor.findings import NOT_LOADED, Finding, error, from_refusal, warning
from bilateral_serving.doctor.machine import Machine
from bilateral_serving.doctor.rules import check_rules
from bilateral_serving.doctor.versions import check_version
from bilateral_serving.repository.containment import check_contained

_VERSION = re.compile(r"[1-9]\d*")


@dataclass(frozen=True)
class CheckedModel:
    """A model, as far as it could be read.

    Attributes:
        name: Its directory's name.
        config: Its configuration; None if it cannot be read.
        manifests: The manifests of its plans that belong to them.
        versions: The versions of it that are served.
    """

    name: str
    config: pb.ModelConfig | None
    manifests: tuple[PlanManifest, ...] = ()
    versions: tuple[int, ...] = ()


def check_model(directory: Path, machine: Machine, run: bool) -> tuple[CheckedModel, list[Finding]]:
    """Look at one model's directory.

    Args:
        directory: The model's.
        machine: What is to serve it.
        run: Whether to open its files and run its warm-up.
    """
    name = directory.name
    path = directory / CONFIG_FILE
    try:
        text = require_file(path, "configuration").read_text(encoding="utf-8")
        config = configs.parse(text, path)
    except UserError as refusal:
        return CheckedModel(name, None), [from_refusal(name, refusal, NOT_LOADED)]
    except (OSError, UnicodeDecodeError) as failure:
        problem = f"{path} cannot be read: {failure}"
        return CheckedModel(name, None), [error(name, problem, NOT_LOADED, "Add the model again.")]

    devices = machine.driver.devices if machine.driver else ()
    findings = [*_check_config(directory, config), *check_rules(name, config, len(devices))]
    run = run and not any(finding.why == NOT_LOADED for finding in findings)
    manifests: list[PlanManifest] = []
    served = served_versions(config, directory)
    for number, version in served.items():
        subject = f"{name} version {number}"
        manifest, found = check_version(subject, version, config, machine, run)
        findings += found
        if manifest is not None:
            manifests.append(manifest)
    if not any(finding.severity == "error" for finding in findings):
        findings += _check_contained(directory)
    return CheckedModel(name, config, tuple(manifests), tuple(served)), findings


def _check_contained(directory: Path) -> Iterator[Finding]:
    try:
        check_contained(directory)
    except UserError as refusal:
        why = "`bilateral serve` does not serve it: a file elsewhere may be anybody's."
        yield from_refusal(directory.name, refusal, why)


def _check_config(directory: Path, config: pb.ModelConfig) -> Iterator[Finding]:
    name = directory.name
    if config.name and config.name != name:
        yield error(
            name,
            f"{CONFIG_FILE} says the model is called '{config.name}'",
            NOT_LOADED,
            f'Write name: "{name}" in {directory / CONFIG_FILE}.',
        )
    versions = version_directories(directory)
    if not versions:
        yield warning(
            name,
            "there is no version of it",
            "Triton would not serve the model.",
            f"bilateral repository add {name} MODEL.onnx",
        )
    elif not served_versions(config, directory):
        yield error(
            name,
            f"the version policy serves none of the versions that are there:"
            f" {', '.join(map(str, versions))}",
            NOT_LOADED,
            f"Correct version_policy in {directory / CONFIG_FILE}.",
        )
    for number in config.version_policy.specific.versions:
        if number not in versions:
            yield warning(
                name,
                f"the version policy asks for version {number}, which is not there",
                "Triton would serve the others alone.",
                f"bilateral repository add {name} MODEL.onnx --version {number}",
            )
    for path in directory.iterdir():
        if path.is_dir() and not _VERSION.fullmatch(path.name) and not path.name.startswith("."):
            yield warning(
                name,
                f"directory {path.name} is not a version: its name is not a whole number from 1",
                "Triton ignores it.",
                f"rm -r {path}",
            )
    yield from _check_labels(directory, config)


def _check_labels(directory: Path, config: pb.ModelConfig) -> Iterator[Finding]:
    name = directory.name
    for output in config.output:
        if not output.label_filename:
            continue
        path = directory / output.label_filename
        if not path.is_file():
            yield error(
                name,
                f"the labels of output {output.name}, {path}, are not there",
                NOT_LOADED,
                "Add the model again, or put the file there.",
            )
            continue
        try:
            labels = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as failure:
            problem = f"the labels of output {output.name}, {path}, cannot be read: {failure}"
            yield error(name, problem, NOT_LOADED, f"chmod a+r {path}")
            continue
        classes = output.dims[-1] if output.dims else 0
        if classes > 0 and len(labels) != classes:
            yield error(
                name,
                f"{path.name} has {len(labels)} labels, output {output.name} has {classes} classes",
                "Classes would be called by the wrong names.",
                "Write the labels the model was trained with, one a line.",
            )
            continue
        for number in configs.described_versions(config):
            try:
                metadata = configs.read_metadata(config, number)
            except UserError:  # said of the version itself
                continue
            if metadata is not None and metadata.labels and list(metadata.labels) != labels:
                yield error(
                    name,
                    f"{path.name} has other labels than version {number} was exported with",
                    "Classes would be called by the wrong names.",
                    f"Remove and add the model again: bilateral repository remove {name}",
                )
