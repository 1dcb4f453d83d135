"""Run the real tritonserver on a model repository, from start to a clean end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bilateral_export.errors import UserError
from bilateral_serving import preflight
from bilateral_serving.client import Client
from bilateral_serving.command import ServerOptions as ServerOptions
from bilateral_serving.command import backend_directory, command_line, environment
from bilateral_serving.installation import find, find_libpython
from bilateral_serving.log import LogLine, loaded_model, parse, reasons
from bilateral_serving.repository import Entry

_LAUNCH = Path(__file__).with_name("_launch.py")
_POLL_S = 0.05
_KEPT_LINES = 400


@dataclass(frozen=True)
class Progress:
    """How far loading is."""

    loaded: tuple[str, ...]
    total: int
    elapsed_s: float


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready.

    Attributes:
        url: "host:port" of gRPC, as `Client` takes it.
        http_url: "host:port" of HTTP, or None.
        metrics_url: Address of the metrics page, or None.
        pid: Its process number.
        models: The models it serves.
        start_s: Seconds from start to ready.
    """

    url: str
    http_url: str | None
    metrics_url: str | None
    pid: int
    models: tuple[str, ...]
    start_s: float


OnLog = Callable[[LogLine], None]
OnProgress = Callable[[Progress], None]


@contextlib.contextmanager
def running(
    options: ServerOptions,
    *,
    on_log: OnLog | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[RunningServer]:
    """Start a server, yield it when it is ready, and stop it at the end of the block.

    `on_log` is called from another thread, for every line; `on_progress` from this one.

    The server also stops when this process dies, however it dies, and when the thread that called
    this ends (the kernel ties the two together).

    Raises:
        UserError: Something it needs is missing, a port is taken, a model does not load.
    """
    with _started(options, on_log) as server:
        server.wait_until_ready(on_progress, threading.Event())
        yield server.description


def serve(
    options: ServerOptions,
    *,
    on_log: OnLog | None = None,
    on_progress: OnProgress | None = None,
    on_ready: Callable[[RunningServer], None] | None = None,
) -> None:
    """Run a server until Ctrl-C or SIGTERM, then stop it cleanly and return.

    A second signal ends the waiting for requests under way. To be called in the main thread.

    Raises:
        UserError: As `running`, or the server ended by itself.
    """
    with _signals_counted() as signals, _started(options, on_log) as server:
        server.hurry = signals.second
        if not server.wait_until_ready(on_progress, signals.first):
            return
        if on_ready:
            on_ready(server.description)
        while not signals.first.wait(4 * _POLL_S):
            server.check_alive("while serving")


class _Server:
    """One tritonserver process and the thread that reads its log."""

    def __init__(
        self,
        options: ServerOptions,
        entries: Sequence[Entry],
        command: list[str],
        environment: dict[str, str],
        on_log: OnLog | None,
    ) -> None:
        self.hurry = threading.Event()
        self._options = options
        self._models = tuple(entry.name for entry in entries)
        self._id = f"bilateral-{uuid.uuid4().hex[:12]}"
        self._lines: deque[LogLine] = deque(maxlen=_KEPT_LINES)
        self._loaded: dict[str, None] = {}
        self._on_log = on_log
        self._began = time.monotonic()
        self._ready_after = 0.0
        command = [
            *command,
            f"--id={self._id}",
            f"--backend-config=python,shm-region-prefix-name={self._id}-",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(_LAUNCH), str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A session of its own: Ctrl-C reaches this process, which then stops the server.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, name="triton-log", daemon=True)
        self._reader.start()

    @property
    def description(self) -> RunningServer:
        options, host = self._options, _reachable(self._options.host)
        return RunningServer(
            url=f"{host}:{options.grpc_port}",
            http_url=f"{host}:{options.http_port}" if options.http_port else None,
            metrics_url=(
                f"http://{host}:{options.metrics_port}/metrics" if options.metrics_port else None
            ),
            pid=self._process.pid,
            models=self._models,
            start_s=self._ready_after,
        )

    def wait_until_ready(self, on_progress: OnProgress | None, stop: threading.Event) -> bool:
        """Wait until the server answers and is ready; False if `stop` is set before that."""
        with Client(self.description.url, timeout_s=2.0, retries=0) as client:
            while not (self._listens() and client.server_name() == self._id and client.is_ready()):
                self.check_alive("while loading")
                elapsed = time.monotonic() - self._began
                if on_progress:
                    on_progress(Progress(tuple(self._loaded), len(self._models), elapsed))
                if elapsed > self._options.start_timeout_s:
                    waiting = ", ".join(name for name in self._models if name not in self._loaded)
                    raise UserError(
                        f"the server was not ready after {self._options.start_timeout_s:g} s; "
                        f"still loading: {waiting or 'nothing'}",
                        "Serve fewer models, or see in the log (--verbose) what takes so long.",
                    )
                if stop.wait(_POLL_S):
                    return False
        self._ready_after = time.monotonic() - self._began
        if on_progress:
            on_progress(Progress(self._models, len(self._models), self._ready_after))
        return True

    def check_alive(self, when: str) -> None:
        """Raise a UserError with the lines that matter if the process has ended."""
        code = self._process.poll()
        if code is None:
            return
        self._reader.join(timeout=2.0)
        why = reasons(list(self._lines))
        if not why:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            why = [f"it ended {how} and gave no reason"]
        raise UserError(f"tritonserver stopped {when}: {'; '.join(why[:3])}", _advice(why))

    def stop(self) -> None:
        """End the process: politely, then after the timeout for certain."""
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self._wait(self._options.stop_timeout_s + 5.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._reader.join(timeout=2.0)
            for leftover in Path("/dev/shm").glob(f"{self._id}-*"):
                leftover.unlink(missing_ok=True)

    def _wait(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not self.hurry.is_set():
            if self._process.poll() is not None:
                return
            time.sleep(_POLL_S)

    def _listens(self) -> bool:
        """Whether every service accepts connections; they start one after another, gRPC first."""
        # Asked of the sockets: a failed gRPC connection waits a second before the next try.
        options, host = self._options, _reachable(self._options.host).strip("[]")
        for port in (options.grpc_port, options.http_port, options.metrics_port):
            if port is None:
                continue
            try:
                socket.create_connection((host, port), timeout=1.0).close()
            except OSError:
                return False
        return True

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        line: LogLine | None = None
        for text in self._process.stdout:
            line = parse(text, line)
            self._lines.append(line)
            if name := loaded_model(line):
                self._loaded[name] = None
            try:
                if self._on_log:
                    self._on_log(line)
            except Exception:
                # Nobody listens any more. Going on reading keeps the server from blocking.
                self._on_log = None


@dataclass(frozen=True)
class _Signals:
    first: threading.Event
    second: threading.Event


@contextlib.contextmanager
def _signals_counted() -> Iterator[_Signals]:
    """Record SIGINT and SIGTERM as events, so that they interrupt nothing half-way."""
    signals = _Signals(threading.Event(), threading.Event())

    def record(_number: int, _frame: FrameType | None) -> None:
        (signals.second if signals.first.is_set() else signals.first).set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, record) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _started(options: ServerOptions, on_log: OnLog | None) -> Iterator[_Server]:
    installation = find(options.tritonserver)
    entries = preflight.select_models(options.repository, options.models)
    libpython = find_libpython() if installation.is_wheel else None
    gpu = _has_gpu() if options.gpu is None else options.gpu
    preflight.check_backends(installation, entries)
    preflight.check_devices(entries, gpu)
    if any(entry.target == "python" for entry in entries):
        preflight.check_python(installation, libpython)
        preflight.check_shared_memory()
    ports = {"grpc": options.grpc_port, "http": options.http_port, "metrics": options.metrics_port}
    preflight.check_ports(options.host, ports)

    with tempfile.TemporaryDirectory(prefix="bilateral-backends-") as scratch:
        backends = backend_directory(installation, Path(scratch))
        server = _Server(
            options,
            entries,
            command_line(options, installation, backends, entries, gpu),
            environment(installation, libpython, gpu),
            on_log,
        )
        try:
            yield server
        finally:
            server.stop()


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


def _advice(why: Sequence[str]) -> str:
    text = " ".join(why)
    if "No module named" in text:
        return "Install what is missing in the Python that runs the models."
    if "failed to start" in text.lower() or "address already in use" in text.lower():
        return "Stop what uses the port, or choose another."
    return "The server's log says more."
