"""Adding a model file to the repository: read, lowered, configured, tried, and moved into place."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.artifact import Artifact, OnnxArtifact
from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors, require_file
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE, LABELS_FILE, Settings, Target
from bilateral_serving.releases import RELEASES, release
from bilateral_serving.repository import config_builder, lowering
from bilateral_serving.repository import plan as plans
from bilateral_serving.repository.dry_run import dry_run
from bilateral_serving.repository.entries import Entry, existing_config, show
from bilateral_serving.repository.lock import writing
from bilateral_serving.repository.model_file import read_served, remarks
from bilateral_serving.repository.provenance import Provenance, set_provenance
from bilateral_serving.repository.version_files import (
    Progress,
    fill_version,
    put_version,
    replace_text,
)

if TYPE_CHECKING:  # a server without the export's packages adds files too
    from bilateral_export.parity.report.document import ParityReport


def add(
    name: str,
    model: Path,
    repository: Path,
    *,
    target: Target = "python",
    version: int | None = None,
    settings: Settings | None = None,
    interface: Path | None = None,
    lower: bool = True,
    for_triton: str | None = None,
    parity: ParityReport | None = None,
    on_progress: Progress | None = None,
) -> Entry:
    """Add a model file as a version of `name`.

    On a CPU the file that is served is not the exported one but its lowering for the runtime
    (bilateral_export.lowering), which is checked against it; what was done is in the
    configuration's parameter `lowering/<version>` and in the file's own metadata.

    Args:
        name: Letters, digits, '_', '-' and '.'.
        model: The ONNX file; for target tensorrt the plan.
        repository: The repository's directory; made if it is not there.
        target: The backend that runs it: "python" anywhere, the others in NVIDIA's container.
        version: Its number. None: one more than the highest there.
        settings: How to serve it. None: as the model is served already, or the defaults.
        interface: For target tensorrt, the ONNX file that the plan was built from, which says what
            the inputs and outputs are. None: the manifest that `bilateral build` left beside the
            plan, else the file of the plan's name that ends in .onnx.
        lower: Whether to serve the lowered form, where there is one. OpenVINO reads no other.
        for_triton: For target onnxruntime, the Triton release that is to load the file ("24.10").
            None: a file that an older release of `RELEASES` does not load gets a remark.
        parity: The report of parity on the file, which must have passed. None: nothing is noted,
            and a rollout asks for it.
        on_progress: Called while files are copied.

    Raises:
        UserError: The file is missing or not a model; the name, version or settings do not do; the
            model disagrees with the versions that are there, failed parity, or does not run as it
            would be served; the disk is full. The repository is then as it was before.
    """
    check_name(name)
    if interface is not None and target != "tensorrt":
        raise UserError(
            f"target {target} was given an interface", "Leave it out: an ONNX file says its own."
        )
    artifact = _read(model, target, interface)
    loads = _check_release(artifact, target, for_triton)
    if parity is not None:
        parity.require_about(str(model), artifact.judged_as)
        parity.require_passed()
    directory = repository / name
    # Refused now rather than after the lowering, which can take long.
    config, _ = _configure(name, artifact, target, settings, version, directory)
    runtime = lowering.runtime_of(config) if lower else None
    with (
        lowering.lowered(artifact, runtime) as lowered,
        writing(repository) as staging,
        disk_errors(directory),
    ):
        config, number = _configure(name, artifact, target, settings, version, directory)
        if lower and lowering.runtime_of(config) != runtime:
            raise UserError(
                f"'{name}' was given another runtime while this file was lowered for {runtime}",
                "Add the file again.",
            )
        lowering.note(config, number, lowered.done)
        staged = staging / name / str(number)
        files = fill_version(staged, lowered.artifact, target, on_progress)
        provenance = Provenance(
            source_sha256=artifact.sha256,
            files=files,
            precision=artifact.precision,
            parity=parity.verdict if parity else "",
        )
        set_provenance(config, number, provenance)
        untried = _try(artifact, staged, config)
        _put(staged, directory, config, artifact, staging)
    said = (*remarks(artifact), lowered.note, untried, loads)
    return dataclasses.replace(show(name, repository), remarks=tuple(filter(None, said)))


def _check_release(artifact: Artifact, target: Target, name: str | None) -> str:
    """Return which releases load the file, if not all do; "" for a target of another runtime.

    Raises:
        UserError: The release is not known, or does not load the file.
    """
    wanted = None if name is None else release(name)
    if target != "onnxruntime" or not isinstance(artifact, OnnxArtifact):
        if name is not None:
            raise UserError(
                f"target {target} was given a Triton release",
                "Leave --for-triton out: only target onnxruntime depends on it.",
            )
        return ""
    loading = [release.name for release in RELEASES if artifact.opset <= release.opset]
    since = f"from {loading[0]} on" if loading else "none that is known here"
    if wanted is not None and wanted.name not in loading:
        raise UserError(
            f"{artifact.path} has opset {artifact.opset}, and Triton {name} loads {wanted.opset} at"
            " most",
            f"Export it with --for-triton {name}.",
        )
    if wanted is None and len(loading) < len(RELEASES):
        return f"opset {artifact.opset} is loaded by these Triton releases: {since}"
    return ""


def check_name(name: str) -> None:
    """Refuse a name that no model of the repository may have.

    Raises:
        UserError: It is one.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"'{name}' cannot name a model",
            "Use letters, digits, '_', '-' and '.', and begin with a letter or digit.",
        )


def _read(model: Path, target: Target, interface: Path | None) -> Artifact:
    if target != "tensorrt":
        if plans.has_manifest(model):
            raise UserError(f"{model} is a plan", "Add it with --target tensorrt.")
        return read_served(model)
    require_file(model, "engine")
    if model.suffix == ".onnx":
        raise UserError(
            f"target tensorrt serves an engine, but {model} is an ONNX model",
            "Build its engine first.",
        )
    if interface is None and plans.has_manifest(model):
        return plans.read_plan(model)
    described = read_served(interface or model.with_suffix(".onnx"))
    return Artifact(model, described.inputs, described.outputs, described.metadata)


def _configure(
    name: str,
    artifact: Artifact,
    target: Target,
    settings: Settings | None,
    version: int | None,
    directory: Path,
) -> tuple[pb.ModelConfig, int]:
    """Return the configuration with this file as one more version, and the version's number."""
    existing = existing_config(directory)
    versions = configs.version_directories(directory) if existing is not None else {}
    if existing is not None:  # what a killed command said of a version that never came
        configs.keep_versions(existing, versions)
    number = max(versions, default=0) + 1 if version is None else version
    while version is None and (directory / str(number)).exists():
        number += 1  # another command has added it since, or it is a file
    if not 1 <= number <= configs.LARGEST_VERSION:
        raise UserError(f"version is {number}", f"It must be from 1 to {configs.LARGEST_VERSION}.")
    # One that was chosen here may be taken by now: this is called again when nobody else writes.
    if version is not None and (directory / str(number)).exists():
        raise UserError(
            f"{directory / str(number)} exists already",
            "Leave the version out to add the next one, or remove that one first.",
        )
    config = _config(name, artifact, target, settings, existing, directory)
    wanted = config.version_policy.specific.versions
    if wanted and not {number, *versions}.intersection(wanted):
        raise UserError(
            f"the versions to serve, {', '.join(map(str, wanted))}, are not there; this one is"
            f" {number}",
            "Name a version that is there with --versions, or say 'latest'.",
        )
    configs.check_batch(config, artifact)
    configs.check_precision(config, artifact)
    configs.set_metadata(config, number, artifact.metadata)
    text = configs.write(config)
    configs.check_interface(configs.parse(text, directory / CONFIG_FILE), artifact)
    return config, number


def _try(artifact: Artifact, staged: Path, config: pb.ModelConfig) -> str:
    """Open a filled version as the server will; returns why it was not tried, if it was not."""
    if config.backend == "tensorrt":
        return ""
    tried = dry_run(staged, config, largest_batch=2)
    if why := tried.refused or tried.failed:
        raise UserError(
            f"{artifact.path} cannot be served by {config.backend}: {why}",
            "Give the file as `bilateral export` wrote it; one that only takes single items needs"
            " --max-batch-size 1.",
        )
    return tried.skipped and f"it was not opened before it was added: {tried.skipped}"


def _put(
    staged: Path, directory: Path, config: pb.ModelConfig, artifact: Artifact, staging: Path
) -> None:
    """Move a filled version to its place, with its configuration and labels: all or nothing."""
    labels = artifact.metadata.labels if artifact.metadata else ()
    text = "".join(f"{label}\n" for label in labels)
    if not directory.exists():
        if labels:
            (staged.parent / LABELS_FILE).write_text(text, encoding="utf-8")
        (staged.parent / CONFIG_FILE).write_text(configs.write(config), encoding="utf-8")
        staged.parent.rename(directory)
        return
    path = directory / LABELS_FILE
    if labels and not (path.is_file() and path.read_text(encoding="utf-8") == text):
        # Other versions have the same labels, or none.
        replace_text(path, text, staging)
    put_version(staged, directory, config, staging)


def _config(
    name: str,
    artifact: Artifact,
    target: Target,
    settings: Settings | None,
    existing: pb.ModelConfig | None,
    directory: Path,
) -> pb.ModelConfig:
    if existing is None:
        return config_builder.build(name, artifact, target, settings or Settings())
    if configs.version_directories(directory):
        _check_agreement(existing, artifact, target)
    if settings is None:
        return existing
    config = config_builder.build(name, artifact, target, settings)
    configs.copy_versions(existing, config)
    kept = lowering.notes(config)
    if kept and lowering.runtime_of(existing) != lowering.runtime_of(config):
        raise UserError(
            f"versions of '{name}' were lowered ({', '.join(kept)}), and not for these settings",
            "Versions share one runtime and device; add it under another name.",
        )
    return config


def _check_agreement(existing: pb.ModelConfig, artifact: Artifact, target: Target) -> None:
    """Versions share one configuration and one labels.txt, so they must agree in what it says."""
    if existing.backend != target:
        raise UserError(
            f"model '{existing.name}' is served by target {existing.backend}, not {target}",
            "Add it under another name.",
        )
    configs.check_interface(existing, artifact)
    new = artifact.metadata and configs.served(artifact.metadata)
    for number in configs.described_versions(existing):
        known = configs.read_metadata(existing, number)
        for what in ("labels", "preprocessing"):
            if new is None or getattr(known, what) != getattr(new, what):
                raise UserError(
                    f"{artifact.path} has other {what} than the versions of '{existing.name}'",
                    "Versions of one model must agree; add it under another name.",
                )
