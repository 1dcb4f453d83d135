"""One version of a model: its files against the configuration, and against what was added."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact, OnnxArtifact
from bilateral_export.engine.plan.manifest import PlanManifest
from bilateral_export.errors import UserError
from bilateral_export.files import require_file, sha256
from bilateral_export.metadata import METADATA_KEY
from bilateral_export.tensors import TensorSpec
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE, MODEL_FILES, VOCABULARY_FILE, Target
from bilateral_serving.doctor.findings import (
    NOT_ANSWERED,
    NOT_LOADED,
    Finding,
    error,
    from_refusal,
    info,
    warning,
)
from bilateral_serving.doctor.machine import Machine
from bilateral_serving.doctor.plans import check_plan
from bilateral_serving.repository import config_builder
from bilateral_serving.repository.dry_run import dry_run
from bilateral_serving.repository.model_file import read_served
from bilateral_serving.repository.plan import artifact_of
from bilateral_serving.repository.provenance import PROVENANCE_KEY, read_provenance
from bilateral_serving.repository.version_files import backend_files


def check_version(
    subject: str, version: Path, config: pb.ModelConfig, machine: Machine, run: bool
) -> tuple[PlanManifest | None, list[Finding]]:
    """Look at one version.

    Args:
        subject: The model and the version, for the findings.
        version: The version's directory.
        config: The model's configuration.
        machine: What is to serve it.
        run: Whether to open the file and run its warm-up.

    Returns:
        The manifest of its plan, if it is one and the manifest belongs to it; and the findings.
    """
    target = config.backend
    if target not in MODEL_FILES:
        return None, []  # another backend's files are not ours to judge
    path = version / MODEL_FILES[cast(Target, target)]
    if _is_foreign(version, path, config):
        return None, []
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
            artifact = read_served(path)
        changed = [*_check_hashes(subject, version, config)]
    except UserError as refusal:
        return None, [from_refusal(subject, refusal, NOT_LOADED)]
    except OSError as failure:
        return None, [_unreadable(subject, path, failure)]
    if artifact is not None:
        if target == "python":
            findings += _check_backend_files(subject, version, config, artifact)
        findings += _check_opset(subject, artifact, machine) if target == "onnxruntime" else []
        findings += _check_description(subject, int(version.name), config, artifact)
        findings += _check_interface(subject, config, artifact)
        intact = not any(finding.severity == "error" for finding in changed)
        if target != "tensorrt" and intact and run:
            findings += _run(subject, version, config, machine)
    return manifest, [*changed, *findings]


def _is_foreign(version: Path, path: Path, config: pb.ModelConfig) -> bool:
    """Return whether a Python model is someone's own code, which needs no model file of ours."""
    number = int(version.name)
    ours = {f"{METADATA_KEY}/{number}", f"{PROVENANCE_KEY}/{number}"} & set(config.parameters)
    code = version / (config.default_model_filename or "model.py")
    return config.backend == "python" and not path.exists() and not ours and code.is_file()


def _check_hashes(subject: str, version: Path, config: pb.ModelConfig) -> Iterator[Finding]:
    provenance = read_provenance(config, int(version.name))
    if provenance is None:
        yield info(
            subject,
            f"{CONFIG_FILE} does not say the hashes of its files",
            "Whether they are those that were added cannot be checked.",
            "Add the model again.",
        )
        return
    for name, expected in provenance.files.items():
        if (version / name).is_file() and sha256(version / name) == expected:
            continue
        # Only the Python backend looks; another serves whatever is there.
        yield error(
            subject,
            f"{name} is not the file that was added: its SHA-256 is another",
            NOT_LOADED if config.backend == "python" else "Answers would be another model's.",
            "Add the model again.",
        )


def _run(
    subject: str, version: Path, config: pb.ModelConfig, machine: Machine
) -> Iterator[Finding]:
    tried = dry_run(version, config)
    # A container has another ONNX Runtime.
    judge = warning if machine.in_container else error
    fix = "Add the model again, from the file that `bilateral export` wrote."
    if tried.refused:
        yield judge(subject, f"does not run: {tried.refused}", NOT_LOADED, fix)
    elif tried.failed:
        yield judge(subject, f"does not run: {tried.failed}", NOT_ANSWERED, fix)
    elif tried.skipped:
        yield info(subject, f"was not run: {tried.skipped}", "Whether it loads is not known.")


def _check_opset(subject: str, artifact: Artifact, machine: Machine) -> Iterator[Finding]:
    """Yield whether the release's ONNX Runtime, which is not the one here, loads the file."""
    release = machine.release
    if release is None or not isinstance(artifact, OnnxArtifact) or artifact.opset <= release.opset:
        return
    yield error(
        subject,
        f"{artifact.path.name} has opset {artifact.opset}, and the ONNX Runtime"
        f" {release.onnxruntime} of Triton {release.name} is known to load {release.opset} at most",
        NOT_LOADED,
        f"Export it again: bilateral export CHECKPOINT OUT.onnx --for-triton {release.name}",
    )


def _unreadable(subject: str, path: Path, failure: OSError) -> Finding:
    return error(
        subject,
        f"{path} cannot be read: {failure.strerror}",
        NOT_LOADED,
        "Check the file and its permissions.",
    )


def _check_backend_files(
    subject: str, version: Path, config: pb.ModelConfig, artifact: Artifact
) -> Iterator[Finding]:
    """Yield faults of what the Python backend runs: `model.py`, and the files that stream words."""
    wanted = backend_files(artifact)
    if config.default_model_filename:
        wanted[config.default_model_filename] = wanted.pop("model.py")
    main = config.default_model_filename or "model.py"
    if not config.model_transaction_policy.decoupled:
        wanted = {main: wanted[main]}
    elif VOCABULARY_FILE not in wanted:
        yield error(
            subject,
            f"is to stream words, and {artifact.path.name} has no vocabulary",
            NOT_LOADED,
            "Add a language model with --stream, or this one without.",
        )
    for name, content in wanted.items():
        path = version / name
        if not path.is_file():
            yield error(
                subject,
                f"{name}, which it runs with, is not there",
                NOT_LOADED,
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
    """Yield what clients are told of a version, against what its file says of itself."""
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
    """Yield every difference in names, types and shapes."""
    decoupled = config.model_transaction_policy.decoupled
    if config.HasField("sequence_batching"):
        yield error(
            subject,
            "has sequence batching, and the model keeps nothing between requests",
            NOT_ANSWERED,
            f"Write dynamic_batching {{ }} instead in {CONFIG_FILE}.",
        )
    if config.max_batch_size and not artifact.has_free_batch:
        yield error(
            subject,
            f"max_batch_size is {config.max_batch_size}, but the batch of the file is fixed",
            NOT_ANSWERED,
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
        configs.interface(config_builder.stream_interface())
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
                    NOT_ANSWERED,
                    f"Rename it in {CONFIG_FILE}, or add the model again.",
                )
                continue
            real = here.pop(spec.name)
            if spec.dtype != real.dtype:
                yield _differs(subject, kind, spec.name, spec.dtype, real.dtype)
            if not _fits(spec, real):
                yield _differs(subject, kind, spec.name, list(spec.sizes), list(real.sizes))
        for name in here:
            made = error if kind == "input" else warning
            yield made(
                subject,
                f"the file has an {kind} '{name}' that {CONFIG_FILE} leaves out",
                NOT_ANSWERED if kind == "input" else "Clients could not ask for it.",
                "Add the model again.",
            )


def _fits(said: TensorSpec, real: TensorSpec) -> bool:
    """Return whether every size is the same, or is left open by the file or the configuration."""
    return len(said.shape) == len(real.shape) and all(
        one == other or isinstance(one, str) or isinstance(other, str)
        for one, other in zip(said.shape, real.shape, strict=True)
    )


def _differs(subject: str, kind: str, name: str, said: object, real: object) -> Finding:
    return error(
        subject,
        f"{CONFIG_FILE} says {kind} '{name}' is {said}, in the file it is {real}",
        NOT_ANSWERED if kind == "input" else "Clients are told something else than they get.",
        f"Correct {CONFIG_FILE}, or add the model again.",
    )
