"""The command line and the environment of tritonserver."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bilateral_serving.access import HTTP_HEADER
from bilateral_serving.certificates import TlsFiles
from bilateral_serving.config import MODEL_FILES
from bilateral_serving.installation import STUB, Installation
from bilateral_serving.releases import release_of
from bilateral_serving.repository import Entry
from bilateral_serving.repository.plan import launch_arguments
from bilateral_serving.server import hosts

_CLOSED = "shared-memory,model-repository,statistics,trace,logging"
# The names of its sockets; Triton adds ":1", the port, to that of gRPC.
_GRPC, _HTTP, _METRICS = "grpc", "http", "metrics"
# Of glibc 2.35 and later; where the kernel gives huge pages to who asks ("madvise"), malloc does.
_HUGE_PAGES = "glibc.malloc.hugetlb"
# What the front door adds to a request, which the models' code reads as parameters of it.
_FORWARDED = "(bilateral-accepted|traceparent)"


@dataclass(frozen=True)
class ServerOptions:
    """What to serve and where.

    Attributes:
        repository: The model repository.
        models: The models to load; empty: all that have a version.
        tritonserver: The executable; None: look for one.
        host: Address to listen on; "0.0.0.0" and "::" are every one of this machine.
        grpc_port: Port of the gRPC service.
        http_port: Port of the HTTP service; None: off.
        metrics_port: Port of the Prometheus metrics; None: off.
        gpu: Whether the server may use GPUs; None: if there is one.
        direct: Whether callers' connections end in tritonserver and not in the front door. None:
            if this server's version can bear that.
        strict: Whether a model that cannot be served is an error although others can.
        start_timeout_s: Seconds until it must be ready.
        stop_timeout_s: Seconds that requests under way get to finish when it stops.
        tls: The certificate to answer with; None: connections are not encrypted.
        tokens: File of the bearer tokens that callers need; None: they need none.
        insecure: Whether other machines may connect without TLS.
        ready_file: File that is there while `serve` is ready; None: there is none.
        access_log: File that gets one line for each call; None: there is none.
        access_log_to_output: Whether those lines go to this process's standard output instead.
        otlp: Where spans are sent, by OTLP over HTTP; None: none are made.
        arguments: Further arguments for tritonserver.
    """

    repository: Path
    models: tuple[str, ...] = ()
    tritonserver: Path | None = None
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int | None = None
    metrics_port: int | None = 8002
    gpu: bool | None = None
    direct: bool | None = None
    strict: bool = False
    start_timeout_s: float = 300.0
    stop_timeout_s: float = 30.0
    tls: TlsFiles | None = None
    tokens: Path | None = None
    insecure: bool = False
    ready_file: Path | None = None
    access_log: Path | None = None
    access_log_to_output: bool = False
    otlp: str | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listen:
    """Where tritonserver itself listens for gRPC and HTTP.

    Attributes:
        directory: Of its sockets, if a front door is before it; None: on the options' ports.
        token: What its closed services want to see there; a front door has its own guard.
    """

    directory: Path | None
    token: str

    def target(self, options: ServerOptions) -> str:
        """Return its address, as gRPC writes it."""
        if self.directory is None:
            return f"{hosts.bracketed(hosts.reachable(options.host))}:{options.grpc_port}"
        return f"unix:{self.directory}/{_GRPC}:1"

    @property
    def http_socket(self) -> Path | None:
        """The socket of its HTTP service, if a front door is before it."""
        return None if self.directory is None else self.directory / _HTTP

    @property
    def metrics_socket(self) -> Path | None:
        """The socket of its metrics page, if a front door is before it."""
        return None if self.directory is None else self.directory / _METRICS

    def arguments(self, options: ServerOptions) -> list[str]:
        """Return what tritonserver is told of it."""
        numeric = hosts.numeric(options.host)
        http = options.http_port is not None
        arguments = [] if http else ["--allow-http=false"]
        if self.directory is not None:
            arguments += [f"--grpc-address=unix:{self.directory}/{_GRPC}", "--grpc-port=1"]
            arguments.append(f"--grpc-header-forward-pattern={_FORWARDED}")
            if http:
                arguments += [f"--http-address=unix:{self.directory}/{_HTTP}", "--http-port=1"]
                arguments.append(f"--http-header-forward-pattern={_FORWARDED}")
            return arguments
        arguments += [
            f"--grpc-address={hosts.bracketed(numeric)}",
            f"--grpc-port={options.grpc_port}",
            f"--grpc-restricted-protocol={_CLOSED}:{HTTP_HEADER}={self.token}",
        ]
        if http:
            arguments += [
                f"--http-address={hosts.for_http(numeric)}",
                f"--http-port={options.http_port}",
                f"--http-restricted-api={_CLOSED}:{HTTP_HEADER}={self.token}",
            ]
        return arguments


def backend_directory(installation: Installation, scratch: Path) -> Path:
    """Return the server's backend directory; for the wheel, links with this Python's stub."""
    if installation.stub is None:
        return installation.backends
    for backend in installation.backends.iterdir():
        (scratch / backend.name).mkdir()
        for file in backend.iterdir():
            (scratch / backend.name / file.name).symlink_to(file)
    if (scratch / "python").is_dir():
        (scratch / "python" / STUB).symlink_to(installation.stub)
    return scratch


def command_line(
    options: ServerOptions,
    installation: Installation,
    backends: Path,
    models: Path,
    listen: Listen,
    entries: Sequence[Entry],
    gpu: bool,
) -> list[str]:
    """Return how tritonserver is called.

    Args:
        options: What to serve and where.
        installation: The server.
        backends: Its directory of backends.
        models: The directory of the models to load, all of them and no other.
        listen: Where it listens.
        entries: The models.
        gpu: Whether it may use GPUs.
    """
    command = [
        str(installation.binary),
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        # Behind the front door who has the token may load models: the supervisor, for rollouts.
        *(
            ["--model-control-mode=none"]
            if listen.directory is None
            else ["--model-control-mode=explicit", "--load-model=*"]
        ),
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={max(1, round(options.stop_timeout_s))}",
        *listen.arguments(options),
    ]
    if not options.strict:
        command += ["--exit-on-error=false", "--strict-readiness=false"]
    if options.metrics_port is None:
        command.append("--allow-metrics=false")
    elif listen.metrics_socket is not None:
        command += [f"--metrics-address=unix:{listen.metrics_socket}", "--metrics-port=1"]
    else:
        address = hosts.for_http(hosts.numeric(options.host))
        command += [f"--metrics-address={address}", f"--metrics-port={options.metrics_port}"]
    if not gpu:
        command += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    if release_of(installation.version).asks_for_client_memory:
        command.append("--allow-client-shm=true")
    command += launch_arguments(
        version.directory / MODEL_FILES["tensorrt"]
        for entry in entries
        if entry.target == "tensorrt"
        for version in entry.versions
    )
    return [*command, *options.arguments]


def environment(installation: Installation, libpython: Path | None, gpu: bool) -> dict[str, str]:
    """Return the server's environment: this process's, and what the wheel's server needs besides.

    Args:
        installation: The server.
        libpython: The library that the wheel's stub embeds.
        gpu: Whether it may use GPUs.
    """
    variables = dict(os.environ)
    if not gpu:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    # A model's weights fill the processor's table of pages at every request. With huge pages it
    # holds them all, and the code between two requests finds its own entries (serving/README.md).
    tunables = variables.get("GLIBC_TUNABLES", "")
    if _HUGE_PAGES not in tunables:
        variables["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
    if installation.is_wheel:
        libraries = [*installation.libraries, *([libpython.parent] if libpython else [])]
        _prepend(variables, "LD_LIBRARY_PATH", libraries)
        # The stub embeds this Python: it must find the same interpreter and packages.
        _prepend(variables, "PATH", [Path(sys.executable).parent])
        _prepend(variables, "PYTHONPATH", _package_directories("numpy", "onnxruntime"))
    return variables


def observing_environment(
    options: ServerOptions, installation: Installation, listen: Listen
) -> dict[str, str]:
    """Return what the models' code reads of the server that it runs in."""
    version = installation.version
    if version is None and installation.is_wheel:
        version = f"nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}"
    found = {"BILATERAL_FRONT_DOOR": "0" if listen.directory is None else "1"}
    if version:
        found["TRITON_SERVER_VERSION"] = version
    return found | ({"BILATERAL_OTLP": options.otlp} if options.otlp else {})


def _prepend(environment: dict[str, str], variable: str, directories: Sequence[Path]) -> None:
    parts = [*map(str, directories), environment.get(variable, "")]
    environment[variable] = os.pathsep.join(part for part in parts if part)


def _package_directories(*packages: str) -> list[Path]:
    specs = [importlib.util.find_spec(package) for package in packages]
    parents = [Path(spec.origin).parent.parent for spec in specs if spec and spec.origin]
    return list(dict.fromkeys(parents))
