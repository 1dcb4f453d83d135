"""The service behind one address: tritonserver and its front door, started and ended together.

tritonserver can be started again while the front door stays: it holds the port and the callers'
connections, and new requests wait there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilateral_export.errors import UserError
from bilateral_serving.access import published_token
from bilateral_serving.front_door.options import FrontDoorOptions
from bilateral_serving.server import hosts, preflight
from bilateral_serving.server.health import Fault, Health
from bilateral_serving.server.loading import CrashedError, Loading, OnProgress, Progress
from bilateral_serving.server.preflight import Checked
from bilateral_serving.server.processes.front_door import SILENT_S, DoorProcess
from bilateral_serving.server.processes.launch_command import (
    Listen,
    ServerOptions,
    backend_directory,
    command_line,
    environment,
    observing_environment,
)
from bilateral_serving.server.processes.scratch import link_model, scratch_directory
from bilateral_serving.server.processes.tritonserver import OnLog, TritonProcess
from bilateral_serving.server.rollouts.carry_out import Rollouts
from bilateral_serving.server.upstream import NoAnswerError, Upstream

_POLL_S = 0.05
_GONE = "its files are gone, or cannot be read"


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready.

    Attributes:
        url: "host:port" of gRPC, as `Client` takes it.
        http_url: "host:port" of HTTP, or None.
        metrics_url: Address of the metrics page, or None.
        pid: tritonserver's process number; another one after it was started again.
        door_pid: The front door's process number; None without one.
        models: The models it serves.
        failed: The models that it cannot serve, and why.
        start_s: Seconds from start to ready.
    """

    url: str
    http_url: str | None
    metrics_url: str | None
    pid: int
    door_pid: int | None
    models: tuple[str, ...]
    failed: dict[str, str] = field(compare=False)
    start_s: float


@contextlib.contextmanager
def opened(
    options: ServerOptions,
    on_log: OnLog | None,
    hurry: threading.Event | None = None,
    hold_s: float = 10.0,
) -> Iterator[Service]:
    """Check what a server needs, make what it runs in, and end it at the end of the block.

    Args:
        options: What to serve and where.
        on_log: Called for each line of its log, from another thread.
        hurry: Ends the waiting for requests under way, if set.
        hold_s: Seconds that requests wait for tritonserver: the front door takes a moment to
            connect to it, and `serve` starts it again.

    Raises:
        UserError: Something is missing, or a port is taken.
    """
    checked = preflight.check(options)
    with scratch_directory() as scratch, published_token(options.grpc_port) as token:
        listen = Listen(None if checked.direct else scratch, token)
        service = Service(options, checked, scratch, listen, on_log, hold_s)
        try:
            yield service
        finally:
            service.stop(hurry or threading.Event())


class Service:
    """A server that can be started again; see `opened`."""

    def __init__(
        self,
        options: ServerOptions,
        checked: Checked,
        scratch: Path,
        listen: Listen,
        on_log: OnLog | None,
        hold_s: float,
    ) -> None:
        self.options = options
        self._scratch, self._listen = scratch, listen
        self._on_log, self._hold_s = on_log, hold_s
        self._left_out = dict(checked.failed)
        self._unloaded: dict[str, str] = {}  # what the last start could not load
        self._in_python = checked.in_python
        models, backends = scratch / "models", scratch / "backends"
        models.mkdir()
        backends.mkdir()
        for entry in checked.entries:
            link_model(entry.directory, models)
        self.rollouts = Rollouts(options.repository, models, scratch / "rollouts")
        self._command = command_line(
            options,
            checked.installation,
            backend_directory(checked.installation, backends),
            models,
            listen,
            checked.entries,
            checked.gpu,
        )
        self._environment = environment(checked.installation, checked.libpython, checked.gpu)
        self._environment |= observing_environment(options, checked.installation, listen)
        self._starts = 0
        # Triton 2.51 can die when several models fail to warm up at once.
        self._one_by_one = False
        self._began = self._ready_after = 0.0
        self._triton: TritonProcess | None = None
        self._upstream: Upstream | None = None
        self._health: Health | None = None
        self._models: tuple[str, ...] = ()
        self._door: DoorProcess | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are served, or are to be."""
        return tuple(sorted(path.name for path in (self._scratch / "models").iterdir()))

    @property
    def failed(self) -> dict[str, str]:
        """The models that are not served, and why; after another start it may be others."""
        return {**self._left_out, **self._unloaded}

    @property
    def description(self) -> RunningServer:
        """What there is to know of the server that runs."""
        assert self._triton is not None
        options, host = self.options, hosts.bracketed(hosts.reachable(self.options.host))
        return RunningServer(
            url=f"{host}:{options.grpc_port}",
            http_url=f"{host}:{options.http_port}" if options.http_port else None,
            metrics_url=(
                f"http://{host}:{options.metrics_port}/metrics" if options.metrics_port else None
            ),
            pid=self._triton.pid,
            door_pid=self._door.pid if self._door else None,
            models=self._models,
            failed=self.failed,
            start_s=self._ready_after,
        )

    def start(self, on_progress: OnProgress | None, stop: threading.Event) -> bool:
        """Start tritonserver and wait until it serves; False if `stop` is set before that.

        A model whose process dies while it loads is left out, unless `strict` is asked for.

        Raises:
            UserError: The server or the front door ended, took too long, or can serve no model.
        """
        self._began = time.monotonic()
        if self._listen.directory is not None and self._door is None:
            self._door = self._open_door()
        while not stop.is_set():
            self._launch()
            try:
                if not self._wait_until_ready(on_progress, stop):
                    return False
            except CrashedError as crashed:
                self.kill_triton()
                if crashed.model is None:
                    self._one_by_one = True
                else:
                    self.leave_out(crashed.model, crashed.reason)
                continue
            self._ready_after = time.monotonic() - self._began
            if on_progress:
                on_progress(Progress(self._models, len(self._models), self._ready_after))
            return True
        return False

    def watch(self) -> None:
        """Begin to watch the models that are ready."""
        assert self._triton is not None
        assert self._upstream is not None
        if self._health is not None:
            self._health.close()
            self._health = None
        try:
            probes = {name: self._upstream.probe(name) for name in self._models}
        except NoAnswerError:
            return
        self._health = Health(
            self._triton.pid,
            {
                pid: model
                for pid, model in self._triton.model_processes().items()
                if pid not in self._retired
            },
            {name: probe for name, probe in probes.items() if probe is not None},
        )

    def fault(self) -> Fault | None:
        """Return what is wrong with tritonserver or its watched models; None if nothing is."""
        assert self._triton is not None
        if why := self._triton.how_it_ended():
            return Fault(f"tritonserver stopped while serving: {'; '.join(why[:3])}")
        if self._health is None:
            return Fault("tritonserver did not describe its models")
        return self._health.fault()

    def door_fault(self) -> str | None:
        """Return why the front door must be started again; None if it runs, or there is none."""
        if self._door is None:
            return None
        if (ended := self._door.how_it_ended()) is not None:
            return ended
        return f"it did nothing for {SILENT_S:g} s" if self._door.is_wedged() else None

    def mend_door(self) -> None:
        """Start the front door again.

        Raises:
            UserError: It cannot be started.
        """
        assert self._door is not None
        self._door.kill()
        self._door = self._open_door()
        self._door.wait_until_listening(self.options.start_timeout_s)

    def is_direct(self) -> bool:
        """Return whether callers connect to tritonserver itself."""
        return self._listen.directory is None

    def ready_versions(self, model: str) -> tuple[int, ...]:
        """Return the versions of a model that answer; none if tritonserver does not."""
        assert self._upstream is not None
        try:
            states = self._upstream.model_states()
        except NoAnswerError:
            return ()
        return tuple(
            int(state.version) for state in states if state.name == model and not state.reason
        )

    def processes_of(self, model: str) -> tuple[int, ...]:
        """Return the processes of a model in Python."""
        assert self._triton is not None
        found = self._triton.model_processes()
        return tuple(pid for pid, name in found.items() if name == model)

    def settle(
        self,
        call: Callable[[Upstream], Any],
        stop: threading.Event,
        reloads: str | None = None,
    ) -> None:
        """Make a call of the supervisor's own to tritonserver and wait for its end.

        Health is not watched any more after it: call `watch`.

        Args:
            call: Makes it, and returns a future of gRPC.
            stop: Ends the waiting.
            reloads: The model whose processes of now end because of it, sooner or later.

        Raises:
            UserError: It failed, the server ended or is to end, or it takes longer than a start
                may; tritonserver is ended then.
        """
        assert self._triton is not None
        assert self._upstream is not None
        if self._health is not None:
            self._health.close()
            self._health = None
        if reloads is not None:
            self._retired.update(self.processes_of(reloads))
        end = time.monotonic() + self.options.start_timeout_s
        try:
            answer = call(self._upstream)
        except NoAnswerError as error:
            raise UserError("tritonserver does not answer", "The server's log says why.") from error
        while not answer.done():
            if why := self._triton.how_it_ended():
                raise UserError(f"tritonserver ended: {'; '.join(why[:3])}", "It starts again.")
            if time.monotonic() > end:
                self.kill_triton()
                raise UserError(
                    f"it took longer than {self.options.start_timeout_s:g} s",
                    "Give it longer with --start-timeout.",
                )
            if stop.wait(_POLL_S):
                raise UserError("the server is being stopped", "Start it, and try again.")
        if (failure := answer.exception()) is not None:
            raise UserError(self._plain(failure.details() or str(failure)), "The log says more.")

    def leave_out(self, model: str, reason: str) -> None:
        """Serve a model no more.

        Raises:
            UserError: It was the last one, or every model has to be served (`strict`).
        """
        for link in (self._scratch / "models" / model).iterdir():
            link.unlink()
        (self._scratch / "models" / model).rmdir()
        self._left_out[model] = reason = self._plain(reason)
        if self.options.strict or not self.models:
            raise UserError(f"tritonserver cannot serve model '{model}': {reason}", _advice(reason))

    def kill_triton(self) -> None:
        """End tritonserver at once."""
        self._end_triton(lambda triton: triton.kill())

    def stop(self, hurry: threading.Event) -> None:
        """End everything; requests under way get the time that the options give them."""
        try:
            if self._door is not None:
                self._door.stop(self.options.stop_timeout_s, hurry)
        finally:
            self._end_triton(lambda triton: triton.stop(self.options.stop_timeout_s, hurry))

    def _end_triton(self, end: Callable[[TritonProcess], None]) -> None:
        if self._health is not None:
            self._health.close()
        if self._triton is not None:
            end(self._triton)
        if self._upstream is not None:
            self._upstream.close()

    def _launch(self) -> None:
        self._starts += 1
        self._id = f"{self._scratch.name}-{self._starts}"
        # Triton 2.51 does not start where one that was killed has left its socket.
        for left in (self._listen.http_socket, self._listen.metrics_socket):
            if left is not None:
                left.unlink(missing_ok=True)
        self._triton = TritonProcess(
            [
                *self._command,
                f"--id={self._id}",
                *(["--model-load-thread-count=1"] if self._one_by_one else []),
                f"--backend-config=python,shm-region-prefix-name={self._id}-",
            ],
            self._environment,
            f"{self._id}-",
            self._on_log,
        )
        self._retired: set[int] = set()  # processes of models that were loaded anew since
        self._upstream = Upstream(self._listen.target(self.options), self._listen.token)
        self._health = None

    def _wait_until_ready(self, on_progress: OnProgress | None, stop: threading.Event) -> bool:
        triton, upstream = self._triton, self._upstream
        assert triton is not None
        assert upstream is not None
        loading = Loading(triton, self._in_python)
        name = upstream.ask_name()
        while not (name.done() and name.exception() is None and self._listens()):
            if why := triton.how_it_ended():
                if triton.was_killed and not self.options.strict and len(self.models) > 1:
                    culprit = loading.under_way() if self._one_by_one else None
                    if culprit is not None or not self._one_by_one:
                        raise CrashedError(culprit, f"tritonserver dies of it: {why[0]}")
                raise UserError(
                    f"tritonserver stopped while loading: {self._plain('; '.join(why[:3]))}",
                    _advice("; ".join(why)),
                )
            loading.check()
            if name.done():
                name = upstream.ask_name()
            elapsed, total = time.monotonic() - self._began, len(self.models)
            if on_progress:
                on_progress(Progress(triton.loaded, total, elapsed))
            if elapsed > self.options.start_timeout_s:
                waiting = ", ".join(name for name in self.models if name not in triton.loaded)
                raise UserError(
                    f"the server was not ready after {self.options.start_timeout_s:g} s; "
                    f"still loading: {waiting or 'nothing'}",
                    "Give it longer with --start-timeout, or serve fewer models.",
                )
            if stop.wait(_POLL_S):
                return False
        if name.result().name != self._id:
            raise UserError(
                f"another server answers at {self._listen.target(self.options)}",
                "Stop it, or choose another port with --grpc-port.",
            )
        if self._door is not None:
            self._door.wait_until_listening(self.options.start_timeout_s)
        try:
            self._take_stock(triton, upstream)
        except NoAnswerError as error:
            raise UserError("tritonserver stopped answering when it had just started") from error
        return True

    def _take_stock(self, triton: TritonProcess, upstream: Upstream) -> None:
        """Find out which models are ready."""
        states = upstream.model_states()
        ready = {state.name for state in states if state.reason is None}
        self._models = tuple(name for name in self.models if name in ready)
        reasons = dict.fromkeys({*self.models} - {state.name for state in states}, _GONE)
        reasons |= {
            state.name: state.reason or "it is not ready"
            for state in states
            if state.reason is not None
        }
        self._unloaded = {
            name: self._plain(triton.failed.get(name, reason))
            for name, reason in sorted(reasons.items())
        }
        if not self._models:
            why = "; ".join(f"model '{name}': {reason}" for name, reason in self.failed.items())
            raise UserError(f"tritonserver can serve no model: {why}", _advice(why))

    def _plain(self, reason: str) -> str:
        """Return a reason without its traceback, with the repository's path for the links'."""
        text = reason.removeprefix("Internal: ").partition("\n\nAt:")[0]
        return text.replace(str(self._scratch / "models"), str(self.options.repository))

    def _listens(self) -> bool:
        """Return whether Triton's other services accept connections; they start after gRPC."""
        host = hosts.reachable(hosts.numeric(self.options.host))
        places: list[tuple[socket.AddressFamily, str | tuple[str, int]]] = []
        ports = [self.options.metrics_port]
        if self.options.metrics_port is not None and (at := self._listen.metrics_socket):
            places.append((socket.AF_UNIX, str(at)))
            ports = []
        if self.options.http_port is not None:
            if (path := self._listen.http_socket) is not None:
                places.append((socket.AF_UNIX, str(path)))
            else:
                ports.append(self.options.http_port)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        places += [(family, (host, port)) for port in ports if port is not None]
        for family, address in places:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(address) != 0:
                    return False
        return True

    def _open_door(self) -> DoorProcess:
        to_output = self.options.access_log_to_output
        return DoorProcess(self._door_options(), self._scratch, to_output)

    def _door_options(self) -> FrontDoorOptions:
        options = self.options
        host = hosts.bracketed(options.host)
        http, metrics = options.http_port is not None, options.metrics_port is not None
        return FrontDoorOptions.model_validate(
            {
                "listen": f"{host}:{options.grpc_port}",
                "upstream": self._listen.target(options),
                "http_listen": f"{host}:{options.http_port}" if http else None,
                "http_hosts": (options.host, socket.gethostname()),
                "http_upstream": str(self._listen.http_socket) if http else None,
                "token": self._listen.token,
                "tls": options.tls and options.tls.absolute(),
                "tokens": options.tokens and options.tokens.absolute(),
                "metrics_listen": f"{host}:{options.metrics_port}" if metrics else None,
                "metrics_upstream": str(self._listen.metrics_socket) if metrics else None,
                "access_log": options.access_log and options.access_log.absolute(),
                "otlp": options.otlp,
                "repository": options.repository.absolute(),
                "rollouts": self._scratch / "rollouts",
                "parent": os.getpid(),
                "hold_s": self._hold_s,
                "drain_s": options.stop_timeout_s,
            }
        )


def _advice(why: str) -> str:
    if "No module named" in why:
        return "Install what is missing in the Python that runs the models."
    if "failed to start" in why.lower() or "address already in use" in why.lower():
        return "Stop what uses the port, or choose another."
    return "The server's log says more."
