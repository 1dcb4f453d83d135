"""A tritonserver that loads what it is told to, for asking it what it thinks of a model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.serving.server.live_processes import free_ports
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from bilateral_serving import _launch
from bilateral_serving.installation import find, find_libpython
from bilateral_serving.server.processes.launch_command import backend_directory, environment

# Ends with this process; a `preexec_fn` would fork it while it uses gRPC.
_LAUNCH = (sys.executable, "-IS", _launch.__file__)


class BareServer:
    """A server with an empty list of models, started again when a model has killed it."""

    def __init__(self, repository: Path, scratch: Path) -> None:
        installation = find()
        self.prefix = f"{scratch.name}-"
        self._command = [
            str(installation.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backend_directory(installation, scratch)}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            "--allow-http=false",
            "--allow-metrics=false",
            "--grpc-address=127.0.0.1",
            f"--backend-config=python,shm-region-prefix-name={self.prefix}",
        ]
        self._environment = environment(installation, find_libpython(), gpu=False)
        self._log = (scratch / "log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        self.client: InferenceServerClient

    def start(self) -> None:
        self.stop()
        (port,) = free_ports(1)
        self._process = subprocess.Popen(
            [*_LAUNCH, str(os.getpid()), *self._command, f"--grpc-port={port}"],
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.client = InferenceServerClient(f"127.0.0.1:{port}")
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(InferenceServerException):
                if self.client.is_server_live(client_timeout=1):
                    return
            assert self._process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)

    def load(self, name: str, seconds: float = 120) -> str | None:
        """Why the server refuses a model; None if it loads it."""
        for _ in range(5):
            refusal = self._load(name, seconds)
            # What it says where a busy machine does not let a process answer within a second.
            if refusal is None or "is not healthy" not in refusal:
                break
        return refusal

    def _load(self, name: str, seconds: float) -> str | None:
        try:
            self.client.load_model(name, client_timeout=seconds)
        except InferenceServerException as refusal:
            # Some models kill this server, and one without its model.py is waited for for ever.
            if any(code in str(refusal.status()) for code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")):
                self.start()
            return str(refusal.message())
        return None

    def unload(self, name: str) -> None:
        """Give back the processes of a model."""
        self.client.unload_model(name, client_timeout=60)

    def stop(self) -> None:
        if self._process is not None:
            self.client.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def bare_server(repository: Path) -> Iterator[BareServer]:
    with tempfile.TemporaryDirectory(prefix="bare-") as scratch:
        server = BareServer(repository, Path(scratch))
        try:
            server.start()
            yield server
        finally:
            server.stop()
            for region in Path("/dev/shm").glob(f"{server.prefix}*"):
                region.unlink(missing_ok=True)
