"""The diagnosis of a repository and of the machine that is to serve it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_export.runners.registry import DEFAULT, RUNTIMES, SERVED
from bilateral_serving.config import CONFIG_FILE, runtime_of, wants_gpu
from bilateral_serving.doctor.ensembles import check_ensemble
from bilateral_serving.doctor.findings import (
    NOT_ANSWERED,
    NOT_LOADED,
    Diagnosis,
    Finding,
    Severity,
    error,
    from_refusal,
    info,
    warning,
)
from bilateral_serving.doctor.machine import Machine
from bilateral_serving.doctor.models import CheckedModel, check_model
from bilateral_serving.server import preflight

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
# TensorRT's runtime and CUDA's context take about this much of a GPU besides the plans.
_RUNTIME_BYTES = 512 << 20


def diagnose(
    repository: Path,
    machine: Machine,
    host: str = "127.0.0.1",
    ports: Mapping[str, int | None] | None = None,
    *,
    run: bool = True,
) -> Diagnosis:
    """Look at a repository and at the machine that is to serve it; changes nothing.

    Args:
        repository: The model repository.
        machine: What `read_machine` found.
        host: The address the server is to listen on.
        ports: What it is for -> port, None where off; none are looked at when empty.
        run: Whether to open every model file that is served, and to run its warm-up, each in a
            process of its own.

    Raises:
        UserError: There is no such directory.
    """
    if not repository.is_dir():
        raise UserError(
            f"there is no model repository at {repository}",
            "Make one with `bilateral repository add NAME MODEL.onnx`.",
        )
    findings: list[Finding] = []
    models: list[CheckedModel] = []
    for directory in sorted(path for path in repository.iterdir() if path.is_dir()):
        if directory.name == "lost+found":  # the file system's own, which only root may read
            continue
        if directory.name.startswith("."):
            findings.append(_leftover(directory))
            continue
        if not _is_model(directory):
            findings.append(_stranger(directory))
            continue
        model, found = check_model(directory, machine, run)
        models.append(model)
        findings += found
    configurations = {model.name: model.config for model in models if model.config is not None}
    versions = {model.name: model.versions for model in models}
    for name, config in configurations.items():
        if config.platform == "ensemble":
            findings += check_ensemble(name, config, configurations, versions)
    if not models:
        findings.append(
            warning(
                str(repository),
                "the repository has no model",
                "There is nothing to serve.",
                "bilateral repository add NAME MODEL.onnx",
            )
        )
    findings += _check_gpu(models, machine)
    if not machine.in_container:
        findings += _check_server(models, machine)
        findings += _check_ports(host, ports or {})
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    return Diagnosis(repository=str(repository), facts=machine.facts, findings=tuple(findings))


def _is_model(directory: Path) -> bool:
    """Return whether a directory has a configuration, or a version that may have lost it."""
    try:
        return any(
            path.name == CONFIG_FILE or re.fullmatch(r"[1-9]\d*", path.name)
            for path in directory.iterdir()
        )
    except OSError:  # one that may not be read: to be told of as a model
        return True


def _stranger(directory: Path) -> Finding:
    return info(
        directory.name,
        "is not a model: it has neither a configuration nor a version",
        "`bilateral serve` leaves it alone.",
        f"Move it out of the repository: {directory}",
    )


def _leftover(directory: Path) -> Finding:
    return info(
        directory.name,
        "is left over from something that was interrupted, or is being written now",
        "Triton ignores names that begin with a dot.",
        "The next `bilateral repository add` or `remove` deletes what a killed one left.",
    )


def _check_gpu(models: Sequence[CheckedModel], machine: Machine) -> Iterator[Finding]:
    wanting = [model for model in models if model.config and wants_gpu(model.config)]
    devices = machine.driver.devices if machine.driver else ()
    if wanting and not devices and not machine.in_container:
        reason = "no GPU is visible" if machine.driver else "there is no NVIDIA driver"
        for model in wanting:
            yield error(
                model.name,
                f"is configured for a GPU, and {reason}",
                NOT_LOADED,
                "Serve it on a machine with a GPU, or say which container will:"
                " bilateral doctor --container RELEASE",
            )
    if not devices:
        return
    weights = sum(manifest.plan.bytes for model in wanting for manifest in model.manifests)
    activations = sum(map(_activation_bytes, wanting))
    free = max(device.free_bytes for device in devices)
    if weights and weights + activations + _RUNTIME_BYTES > free:
        yield error(
            "machine",
            f"the plans need at least {weights >> 20} MiB for weights, {activations >> 20} MiB for"
            f" activations and about {_RUNTIME_BYTES >> 20} MiB for TensorRT itself, and the GPU"
            f" has {free >> 20} MiB free",
            "Loading would run out of memory.",
            "Stop what else uses the GPU (nvidia-smi), serve fewer instances, or build plans with a"
            " smaller --max-batch.",
        )


def _activation_bytes(model: CheckedModel) -> int:
    """Return of all instances on one GPU: they share weights, and each has a context of its own."""
    assert model.config is not None
    groups = [g for g in model.config.instance_group if g.kind == pb.ModelInstanceGroup.KIND_GPU]
    instances = sum(max(1, int(group.count)) for group in groups)
    return instances * sum(manifest.activation_bytes or 0 for manifest in model.manifests)


def _check_server(models: Sequence[CheckedModel], machine: Machine) -> Iterator[Finding]:
    server = machine.tritonserver
    if server is None:
        yield error(
            "server",
            "no tritonserver is installed",
            "Nothing can be served here.",
            "pip install 'bilateral-serve[server]', or use NVIDIA's Triton container.",
        )
        return
    backends = {model.config.backend for model in models if model.config is not None}
    for model in models:
        if model.config is None or (
            model.config.platform == "ensemble" and not model.config.backend
        ):
            continue
        backend = model.config.backend
        if not backend or not (server.backends / backend).is_dir():
            yield error(
                model.name,
                f"needs the backend '{backend}', which {server.binary} does not have",
                NOT_LOADED,
                "Serve it in NVIDIA's container (bilateral doctor --container RELEASE), or add it"
                " again with --target python.",
            )
    if "python" in backends:
        yield from _check_python_backend(machine)
        yield from _check_runtimes(models, machine)
    yield from _refused("machine", NOT_ANSWERED, preflight.check_shared_memory)


def _check_python_backend(machine: Machine) -> Iterator[Finding]:
    server = machine.tritonserver
    assert server is not None
    if not server.is_wheel:
        return
    why = "Triton's Python backend would not start, or answer wrongly."
    yield from _refused("server", why, partial(preflight.check_stub, server))
    yield from _refused("machine", why, partial(preflight.check_libpython, machine.libpython))
    if machine.numpy is None:
        yield error("machine", "numpy is not installed", why, "pip install 'numpy<2'")
        return
    yield from _refused("machine", why, partial(preflight.check_numpy, machine.numpy))


def _refused(subject: str, why: str, check: Callable[[], None]) -> Iterator[Finding]:
    try:
        check()
    except UserError as refusal:
        yield from_refusal(subject, refusal, why)


def _check_runtimes(models: Sequence[CheckedModel], machine: Machine) -> Iterator[Finding]:
    """Yield what runs the graphs inside the Python backend, where that is this Python."""
    if machine.tritonserver is None or not machine.tritonserver.is_wheel:
        return
    for model in models:
        if model.config is None or model.config.backend != "python":
            continue
        runtime = runtime_of(model.config)
        if runtime not in SERVED:
            yield error(
                model.name,
                f"runtime '{runtime}' is not one of {', '.join(SERVED)}",
                NOT_LOADED,
                f"Add the model again with --runtime {DEFAULT}.",
            )
            continue
        if machine.runtimes.get(runtime) is None:
            yield error(
                model.name,
                f"needs {runtime}, which is not installed",
                NOT_LOADED,
                f"pip install 'bilateral-serve[{RUNTIMES[runtime].server_extra}]'",
            )


def _check_ports(host: str, ports: Mapping[str, int | None]) -> Iterator[Finding]:
    for refusal in preflight.port_refusals(host, ports):
        yield from_refusal("server", refusal, "The server could not listen.")
