"""What must hold before a server starts. Each check says what to do when it does not."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.installation import PYTHON_VERSION, Installation
from bilateral_serving.repository import Entry, list_entries

# Triton's Python backend passes tensors through shared memory; a container gets 64 MiB by default.
_LEAST_SHARED_MEMORY = 16 << 20


def select_models(repository: Path, names: Sequence[str]) -> tuple[Entry, ...]:
    """The models to serve: those named, or all that have a version.

    Raises:
        UserError: The repository has none, or not those.
    """
    entries = {entry.name: entry for entry in list_entries(repository)}
    ready = [entry for entry in entries.values() if entry.versions]
    for name in names:
        if name not in entries:
            raise UserError(
                f"no model '{name}' in {repository}",
                f"The models there are: {', '.join(entries) or 'none'}.",
            )
        if not entries[name].versions:
            raise UserError(
                f"model '{name}' in {repository} has no version",
                f"Add one with `bilateral repository add {name} MODEL.onnx`.",
            )
    if not ready:
        raise UserError(
            f"the model repository {repository} has no model to serve",
            "Add one with `bilateral repository add NAME MODEL.onnx`.",
        )
    return tuple(entry for entry in ready if not names or entry.name in names)


def check_backends(installation: Installation, entries: Sequence[Entry]) -> None:
    """Check that the server has the backend of every model.

    Raises:
        UserError: A backend is missing.
    """
    for entry in entries:
        if not (installation.backends / entry.target).is_dir():
            raise UserError(
                f"model '{entry.name}' needs the backend '{entry.target}', which "
                f"{installation.binary} does not have",
                "Serve it in NVIDIA's Triton container, or add it again with --target python.",
            )


def check_devices(entries: Sequence[Entry], gpu: bool) -> None:
    """Check that a model that asks for a GPU gets one.

    Raises:
        UserError: There is none, or GPUs are off.
    """
    for entry in entries:
        if entry.device == "gpu" and not gpu:
            raise UserError(
                f"model '{entry.name}' is configured for a GPU, and there is none to use",
                "Serve it on a machine with a GPU, or add it again with --device cpu.",
            )


def check_python(installation: Installation, libpython: Path | None) -> None:
    """Check what the Python backend needs: its stub, libpython, numpy and onnxruntime.

    Args:
        installation: The server.
        libpython: What `find_libpython` found; used with the wheel only.

    Raises:
        UserError: One of them is missing or of a version that does not work.
    """
    if not installation.is_wheel:
        _check_system_python()
        return
    if installation.stub is None or not installation.stub.is_file():
        raise UserError(
            f"the tritonserver at {installation.binary} has no stub for Python {PYTHON_VERSION}",
            "Use Python 3.10, 3.11 or 3.12, or update nvidia-pytriton.",
        )
    if libpython is None:
        raise UserError(
            f"Triton's Python backend needs libpython{PYTHON_VERSION}.so.1.0, which is not here",
            f"Install it (Debian, Ubuntu: `apt-get install libpython{PYTHON_VERSION}`), or use a "
            "Python built with --enable-shared.",
        )
    check_numpy(importlib.metadata.version("numpy"))
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "onnxruntime is not installed, and target python runs models with it",
            "Install it with `pip install 'bilateral-serve[server]'`.",
        )


def check_numpy(version: str) -> None:
    """Check that numpy is older than 2: with the wheel's backend a newer one gives empty outputs.

    Raises:
        UserError: It is not.
    """
    if int(version.split(".")[0]) >= 2:
        raise UserError(
            f"numpy {version} is installed, with which this tritonserver returns empty outputs",
            "Install an older one with `pip install 'numpy<2'`.",
        )


def check_shared_memory(directory: Path = Path("/dev/shm")) -> None:
    """Check that there is room for the tensors that go to the Python backend and back.

    Raises:
        UserError: There is little or none.
    """
    free = shutil.disk_usage(directory).free if directory.is_dir() else 0
    if free < _LEAST_SHARED_MEMORY:
        raise UserError(
            f"{directory} has {free >> 20} MiB free, and Triton passes tensors through it",
            "Free some, or start the container with --shm-size=1g.",
        )


def check_ports(host: str, ports: Mapping[str, int | None]) -> None:
    """Check that every port is free to listen on, before Triton loads models and then finds out.

    Args:
        host: The address to listen on.
        ports: What it is for -> port, or None where it is off.

    Raises:
        UserError: Two are the same, one is not a port number, is taken, or is not allowed.
    """
    for refusal in port_refusals(host, ports):
        raise refusal


def port_refusals(host: str, ports: Mapping[str, int | None]) -> Iterator[UserError]:
    """Every reason why these ports cannot be listened on; see `check_ports`."""
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError):
        yield UserError(f"'{host}' is not an address here", "Use --host 127.0.0.1.")
        return
    used: dict[int, str] = {}
    for purpose, port in ports.items():
        if port is None:
            continue
        option = f"--{purpose}-port"
        if not 1 <= port <= 65535:
            yield UserError(f"{option} {port} is not a port", "Use a number from 1 to 65535.")
        elif port in used:
            yield UserError(
                f"--{used[port]}-port and {option} are both {port}", "Give them different ports."
            )
        elif reason := _why_not(host, port):
            yield UserError(
                f"port {port} on {host} cannot be used: {reason}",
                f"Stop what listens there, or choose another with {option}.",
            )
        used.setdefault(port, purpose)


def _why_not(host: str, port: int) -> str | None:
    """Why a port cannot be listened on; None if it can."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        # As servers do: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return "taken" if error.errno == errno.EADDRINUSE else str(error.strerror).lower()
    return None


def _check_system_python() -> None:
    python = shutil.which("python3")
    probe = [python, "-c", "import numpy, onnxruntime"] if python else ["false"]
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["there is no python3"])[-1]
        raise UserError(
            f"Triton's Python backend cannot run the model: {last}",
            "Install it in this machine's Python: `python3 -m pip install numpy onnxruntime`.",
        )
