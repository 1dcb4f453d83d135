"""A model of the repository: its configuration against its files, version by version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.engine.manifest import PlanManifest
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_serving import config as configs
from bilateral_serving import configure
from bilateral_serving.artifact import Artifact, read_onnx
from bilateral_serving.config import CONFIG_FILE, MODEL_FILES, VOCABULARY_FILE, Target
from bilateral_serving.datatypes import dims
from bilateral_serving.doctor.findings import Finding, error, from_refusal, warning
from bilateral_serving.doctor.machine import Machine
from bilateral_serving.doctor.plans import check_plan
from bilateral_serving.plan import artifact_of
from bilateral_serving.version_files import backend_files

_VERSION = re.compile(r"[1-9]\d*")


@dataclass(frozen=True)
class CheckedModel:
    """A model, as far as it could be read.

    Attributes:
        name: Its directory's name.
        config: Its configuration; None if it cannot be read.
        manifests: The manifests of its plans that belong to them.
    """

    name: str
    config: pb.ModelConfig | None
    manifests: tuple[PlanManifest, ...] = ()


def check_model(directory: Path, machine: Machine) -> tuple[CheckedModel, list[Finding]]:
    """Look at one model's directory."""
    name = directory.name
    path = directory / CONFIG_FILE
    why = "Triton would not load the model."
    try:
        text = require_file(path, "configuration").read_text(encoding="utf-8")
        config = configs.parse(text, path)
    except UserError as refusal:
        return CheckedModel(name, None), [from_refusal(name, refusal, why)]
    except (OSError, UnicodeDecodeError) as failure:
        problem = f"{path} cannot be read: {failure}"
        return CheckedModel(name, None), [error(name, problem, why, "Add the model again.")]

    findings = [*_check_config(directory, config)]
    manifests: list[PlanManifest] = []
    for number, version in _served_versions(directory, config).items():
        manifest, found = _check_version(f"{name} version {number}", version, config, machine)
        findings += found
        if manifest is not None:
            manifests.append(manifest)
    return CheckedModel(name, config, tuple(manifests)), findings


def _check_config(directory: Path, config: pb.ModelConfig) -> Iterator[Finding]:
    name = directory.name
    if config.name and config.name != name:
        yield error(
            name,
            f"{CONFIG_FILE} says the model is called '{config.name}'",
            "Triton refuses a model whose name is not its directory's.",
            f'Write name: "{name}" in {directory / CONFIG_FILE}.',
        )
    if config.max_batch_size < 0:
        yield error(
            name,
            f"max_batch_size is {config.max_batch_size}",
            "Triton refuses a negative one.",
            f"Write 0 (requests are no batches) or more in {directory / CONFIG_FILE}.",
        )
    versions = _versions(directory)
    if not versions:
        yield warning(
            name,
            "there is no version of it",
            "Triton would not serve the model.",
            f"bilateral repository add {name} MODEL.onnx",
        )
    wanted = config.version_policy.specific.versions
    for number in wanted:
        if number not in versions:
            yield error(
                name,
                f"the version policy asks for version {number}, which is not there",
                "Triton would not load the model.",
                f"bilateral repository add {name} MODEL.onnx --version {number}",
            )
    for path in directory.iterdir():
        if path.is_dir() and not _VERSION.fullmatch(path.name) and not path.name.startswith("."):
            yield warning(
                name,
                f"directory {path.name} is no version: its name is no whole number from 1",
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
                "Triton would not load the model.",
                "Add the model again, or put the file there.",
            )
            continue
        try:
            labels = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as failure:
            problem = f"the labels of output {output.name}, {path}, cannot be read: {failure}"
            why = "Triton would not load the model."
            yield error(name, problem, why, f"chmod a+r {path}")
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


def _check_version(
    subject: str, version: Path, config: pb.ModelConfig, machine: Machine
) -> tuple[PlanManifest | None, list[Finding]]:
    target = config.backend
    if target not in MODEL_FILES:
        return None, []  # another backend's files are not ours to judge
    path = version / MODEL_FILES[cast(Target, target)]
    why = "Triton would not load the version."
    manifest: PlanManifest | None = None
    findings: list[Finding] = []
    try:
        require_file(path, "model file")
        with path.open("rb") as stream:
            stream.read(1)
        if target == "tensorrt":
            manifest, findings = check_plan(subject, path, machine)
            artifact = artifact_of(path, manifest) if manifest is not None else None
        else:
            artifact = read_onnx(path)
    except UserError as refusal:
        return None, [from_refusal(subject, refusal, why)]
    except OSError as failure:
        return None, [_unreadable(subject, path, failure)]
    if artifact is not None:
        if target == "python":
            findings += _check_backend_files(subject, version, config, artifact)
        findings += _check_description(subject, int(version.name), config, artifact)
        findings += _check_interface(subject, config, artifact)
    return manifest, findings


def _unreadable(subject: str, path: Path, failure: OSError) -> Finding:
    return error(
        subject,
        f"{path} cannot be read: {failure.strerror}",
        "Triton would not load the version.",
        "Check the file and its permissions.",
    )


def _check_backend_files(
    subject: str, version: Path, config: pb.ModelConfig, artifact: Artifact
) -> Iterator[Finding]:
    """What the Python backend runs: `model.py`, and what streams words where that is asked for."""
    wanted = backend_files(artifact)
    if not config.model_transaction_policy.decoupled:
        wanted = {"model.py": wanted["model.py"]}
    elif VOCABULARY_FILE not in wanted:
        yield error(
            subject,
            f"is to stream words, and {artifact.path.name} has no vocabulary",
            "Triton's Python backend would not load the version.",
            "Add a language model with --stream, or this one without.",
        )
    for name, content in wanted.items():
        path = version / name
        if not path.is_file():
            yield error(
                subject,
                f"{name}, which it runs with, is not there",
                "Triton's Python backend would not load the version.",
                "Add the model again.",
            )
            continue
        try:
            same = path.read_bytes() == content
        except OSError as failure:
            yield _unreadable(subject, path, failure)
            continue
        if same:
            continue
        if name == VOCABULARY_FILE:
            yield error(
                subject,
                f"{name} is not the vocabulary of {artifact.path.name}",
                "Ids would be read as the wrong words.",
                "Add the model again.",
            )
        else:
            yield warning(
                subject,
                f"its {name} is not that of the installed bilateral-serve",
                "It was added by another version, or changed by hand.",
                "Add the model again.",
            )


def _check_description(
    subject: str, number: int, config: pb.ModelConfig, artifact: Artifact
) -> Iterator[Finding]:
    """What clients are told of a version, against what its file says of itself."""
    if artifact.metadata is None:
        return
    try:
        told = configs.read_metadata(config, number)
    except UserError as refusal:
        yield from_refusal(subject, refusal, "A client could not read it.")
        return
    if told == configs.served(artifact.metadata):
        return
    problem = "does not describe this version" if told is None else "describes another model"
    yield error(
        subject,
        f"{CONFIG_FILE} {problem}: the file is {artifact.metadata.name}",
        "Clients would prepare inputs and name classes for something else, or not at all.",
        "Add the model again.",
    )


def _check_interface(subject: str, config: pb.ModelConfig, artifact: Artifact) -> Iterator[Finding]:
    """Names, types and shapes; each difference by itself."""
    decoupled = config.model_transaction_policy.decoupled
    if config.max_batch_size and not artifact.has_free_batch:
        yield error(
            subject,
            f"max_batch_size is {config.max_batch_size}, but the batch of the file is fixed",
            "Triton would not load the version.",
            "Export it with a dynamic batch, or set max_batch_size to 0.",
        )
        return
    try:
        configs.check_batch(config, artifact)
    except UserError as refusal:
        yield from_refusal(subject, refusal, "TensorRT refuses shapes outside its profiles.")
    for kind, said, given in zip(
        ("input", "output"),
        configs.interface(config),
        configs.interface(configure.stream_interface())
        if decoupled
        else (artifact.inputs, artifact.outputs),
        strict=True,
    ):
        here = {spec.name: spec for spec in given}
        for spec in said:
            if spec.name not in here:
                yield error(
                    subject,
                    f"{CONFIG_FILE} has an {kind} '{spec.name}', the file has"
                    f" {', '.join(here) or 'none'}",
                    "Triton would not load the version.",
                    f"Rename it in {CONFIG_FILE}, or add the model again.",
                )
                continue
            real = here.pop(spec.name)
            if spec.dtype != real.dtype:
                yield _differs(subject, kind, spec.name, spec.dtype, real.dtype)
            if dims(spec) != dims(real):
                yield _differs(subject, kind, spec.name, list(dims(spec)), list(dims(real)))
        for name in here:
            yield error(
                subject,
                f"the file has an {kind} '{name}' that {CONFIG_FILE} leaves out",
                "Requests would lack it." if kind == "input" else "Clients could not ask for it.",
                "Add the model again.",
            )


def _differs(subject: str, kind: str, name: str, said: object, real: object) -> Finding:
    return error(
        subject,
        f"{CONFIG_FILE} says {kind} '{name}' is {said}, in the file it is {real}",
        "Triton would not load the version, or refuse every request.",
        f"Correct {CONFIG_FILE}, or add the model again.",
    )


def _versions(directory: Path) -> dict[int, Path]:
    found = {
        int(path.name): path
        for path in directory.iterdir()
        if path.is_dir() and _VERSION.fullmatch(path.name)
    }
    return dict(sorted(found.items()))


def _served_versions(directory: Path, config: pb.ModelConfig) -> dict[int, Path]:
    """The versions that Triton would load under the configuration's policy."""
    versions = _versions(directory)
    policy = config.version_policy
    if policy.HasField("all"):
        return versions
    if policy.HasField("specific"):
        wanted = set(policy.specific.versions)
        return {number: path for number, path in versions.items() if number in wanted}
    latest = max(1, policy.latest.num_versions)
    return dict(list(versions.items())[-latest:])
