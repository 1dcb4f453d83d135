"""Preflight checks of a server; each error says how to fix what it found."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import ipaddress
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving.installation import (
    PYTHON_VERSION,
    Installation,
    find,
    find_libpython,
    has_gpu,
)
from bilateral_serving.releases import release_of
from bilateral_serving.repository import Entry, list_names, show
from bilateral_serving.repository.containment import check_contained
from bilateral_serving.server import hosts
from bilateral_serving.server.processes.launch_command import ServerOptions
from bilateral_serving.tokens import read_tokens

# Triton's Python backend passes tensors through shared memory; a container gets 64 MiB by default.
_LEAST_SHARED_MEMORY = 16 << 20


@dataclass(frozen=True)
class Checked:
    """What a server runs with, once all that it needs is there.

    Attributes:
        installation: The tritonserver.
        gpu: Whether it may use GPUs.
        direct: Whether callers' connections end in tritonserver and not in the front door.
        libpython: What the wheel's Python backend loads.
        entries: The models that can be tried.
        failed: Those that cannot, and why.
    """

    installation: Installation
    gpu: bool
    direct: bool
    libpython: Path | None
    entries: tuple[Entry, ...]
    failed: dict[str, str]

    @property
    def in_python(self) -> tuple[str, ...]:
        """The models that the Python backend runs."""
        return tuple(entry.name for entry in self.entries if entry.target == "python")


def check(options: ServerOptions) -> Checked:
    """Check all that a server needs, and return what was found.

    Raises:
        UserError: Something is missing, a port is taken, no model can be tried, or one cannot and
            `strict` is asked for.
    """
    installation = find(options.tritonserver)
    gpu = has_gpu() if options.gpu is None else options.gpu
    direct = False if options.tls or options.tokens else options.direct
    entries, failed = _servable(options, installation, gpu)
    found = Checked(
        installation,
        gpu,
        release_of(installation.version).bears_cancellation if direct is None else direct,
        find_libpython() if installation.is_wheel else None,
        entries,
        failed,
    )
    if found.in_python:
        check_python(installation, found.libpython, any(entry.raw for entry in entries))
        check_shared_memory()
    check_observing(options, found.direct)
    ports = {"grpc": options.grpc_port, "http": options.http_port, "metrics": options.metrics_port}
    check_ports(options.host, ports)
    check_callers(options)
    return found


def check_callers(options: ServerOptions) -> None:
    """Check who may call: other machines only over TLS, unless it is said twice.

    Raises:
        UserError: They could without, the files of certificates or tokens do not do, or the front
            door, which answers over TLS and asks for tokens, is left out.
    """
    found = map(ipaddress.ip_address, hosts.addresses(options.host))
    is_own = all(address.is_loopback for address in found)
    if not is_own and options.tls is None and not options.insecure:
        raise UserError(
            f"other machines can reach {options.host}, and connections would not be encrypted",
            "Give a certificate (--tls-cert, --tls-key) or --tls-dev DIRECTORY; or say --insecure,"
            " where a proxy or a network of your own protects it.",
        )
    if options.direct and (options.tls or options.tokens):
        raise UserError(
            "TLS and tokens are the front door's, and --direct leaves it out", "Leave --direct out."
        )
    if options.tls is not None:
        options.tls.context()
    if options.tokens is not None:
        read_tokens(options.tokens)


def check_observing(options: ServerOptions, direct: bool) -> None:
    """Check that calls can be logged and traced as asked.

    Raises:
        UserError: Only the front door could, or the packages are missing.
    """
    asked = {
        "--access-log": options.access_log or options.access_log_to_output,
        "--otlp": options.otlp,
    }
    if direct and (names := [name for name, value in asked.items() if value]):
        raise UserError(
            f"{names[0]} is the front door's, and with --direct there is none",
            "Leave out --direct, or give --front-door.",
        )
    if options.access_log is not None and not options.access_log.absolute().parent.is_dir():
        raise UserError(
            f"the directory of the access log {options.access_log} does not exist",
            "Make it, or name a file elsewhere with --access-log.",
        )
    if options.otlp and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
        raise UserError(
            "OpenTelemetry is not installed",
            "Install it with `pip install 'bilateral-serve[otel]'`, or leave out --otlp.",
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _servable(
    options: ServerOptions, installation: Installation, gpu: bool
) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Return the models that can be tried, and why the others cannot."""
    found, refused = select_models(options.repository, options.models)
    entries = []
    for entry in found:
        try:
            check_entry(entry, installation, gpu)
            entries.append(entry)
        except UserError as error:
            refused[entry.name] = error
    if refused and (options.strict or not entries):
        raise next(iter(refused.values()))
    return tuple(entries), {name: str(error) for name, error in refused.items()}


def select_models(
    repository: Path, names: Sequence[str]
) -> tuple[tuple[Entry, ...], dict[str, UserError]]:
    """Return the models to serve: those named, or all that have a version.

    Returns:
        The models, and those of the others that cannot be read: name -> why.

    Raises:
        UserError: The repository has none, or not those.
    """
    entries: dict[str, Entry] = {}
    refused: dict[str, UserError] = {}
    for name in list_names(repository):
        if names and name not in names:
            continue
        try:
            entries[name] = show(name, repository)
        except UserError as error:
            refused[name] = error
    for name in names:
        if name in refused:
            continue
        if name not in entries:
            raise UserError(
                f"no model '{name}' in {repository}",
                f"The models there are: {', '.join(list_names(repository)) or 'none'}.",
            )
        if not entries[name].versions:
            raise UserError(
                f"model '{name}' in {repository} has no version",
                f"Add one with `bilateral repository add {name} MODEL.onnx`.",
            )
    ready = tuple(entry for entry in entries.values() if entry.versions)
    if not ready and not refused:
        raise UserError(
            f"the model repository {repository} has no model to serve",
            "Add one with `bilateral repository add NAME MODEL.onnx`.",
        )
    return ready, refused


def check_entry(entry: Entry, installation: Installation, gpu: bool) -> None:
    """Check that the server has what a model needs, and that its files are the repository's own.

    Raises:
        UserError: Its backend or a GPU is missing, its name does not do, or a file lies elsewhere.
    """
    check_contained(entry.directory)
    if not (installation.backends / entry.target).is_dir():
        raise UserError(
            f"model '{entry.name}' needs the backend '{entry.target}', which "
            f"{installation.binary} does not have",
            "Serve it in NVIDIA's Triton container, or add it again with --target python.",
        )
    if entry.device == "gpu" and not gpu:
        raise UserError(
            f"model '{entry.name}' is configured for a GPU, and there is none to use",
            "Serve it on a machine with a GPU, or add it again with --device cpu.",
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", entry.name):
        raise UserError(
            f"the name of model '{entry.name}' is one that Triton's Python backend cannot take",
            "Rename its directory, with letters, digits, '_', '-' and '.' only.",
        )


def check_python(installation: Installation, libpython: Path | None, raw: bool = False) -> None:
    """Check what the Python backend needs: its stub, libpython, numpy and onnxruntime.

    Args:
        installation: The server.
        libpython: What `find_libpython` found; used with the wheel only.
        raw: Whether a model takes files, for which it needs this package too.

    Raises:
        UserError: One of them is missing or of a version that does not work.
    """
    if not installation.is_wheel:
        _check_system_python(raw)
        return
    check_stub(installation)
    check_libpython(libpython)
    check_numpy(importlib.metadata.version("numpy"))
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "onnxruntime is not installed, and target python runs models with it",
            "Install it with `pip install 'bilateral-serve[server]'`.",
        )


def check_stub(installation: Installation) -> None:
    """Check that the wheel's Python backend can start this Python.

    Raises:
        UserError: It cannot.
    """
    if installation.stub is None or not installation.stub.is_file():
        raise UserError(
            f"the tritonserver at {installation.binary} has no stub for Python {PYTHON_VERSION}",
            "Use Python 3.10, 3.11 or 3.12, or update nvidia-pytriton.",
        )


def check_libpython(libpython: Path | None) -> None:
    """Check that there is the library that the wheel's Python backend loads.

    Raises:
        UserError: There is none.
    """
    if libpython is None:
        raise UserError(
            f"Triton's Python backend needs libpython{PYTHON_VERSION}.so.1.0, which is not here",
            f"Install it (Debian, Ubuntu: `apt-get install libpython{PYTHON_VERSION}`), or use a "
            "Python built with --enable-shared.",
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
    """Yield every reason why these ports cannot be listened on; see `check_ports`."""
    try:
        own, conflicting = hosts.addresses(host), hosts.conflicting(host)
    except OSError:
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
        else:
            yield from _refusals(own, conflicting, port, option)
        used.setdefault(port, purpose)


def _refusals(
    own: Sequence[str], conflicting: Sequence[str], port: int, option: str
) -> Iterator[UserError]:
    """Yield the first reason why a port cannot be listened on at these addresses, if any."""
    for address in conflicting:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As servers do: a port whose last connections are only closing is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            if not taken and address not in own:
                continue  # such as ::1 where there is no IPv6
            yield UserError(
                f"port {port} on {address} cannot be used: "
                f"{'taken' if taken else str(error.strerror).lower()}",
                f"Stop what listens there, or choose another with {option}.",
            )
            return


def _check_system_python(raw: bool) -> None:
    python = shutil.which("python3")
    packages = "numpy, onnxruntime" + (", bilateral_serving.client.inputs.files" if raw else "")
    probe = [python, "-c", f"import {packages}"] if python else ["false"]
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["there is no python3"])[-1]
        raise UserError(
            f"Triton's Python backend cannot run the model: {last}",
            "Install it in this machine's Python: `python3 -m pip install numpy onnxruntime"
            f"{' bilateral-serve' if raw else ''}`.",
        )
