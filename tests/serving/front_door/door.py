"""A real tritonserver that listens on sockets only, and a front door before it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import _launch
from bilateral_serving.access import METADATA_KEY
from bilateral_serving.front_door import FrontDoorOptions, Listening
from bilateral_serving.installation import find, find_libpython
from bilateral_serving.process_status import children
from bilateral_serving.server import preflight
from bilateral_serving.server.processes.launch_command import (
    Listen,
    ServerOptions,
    backend_directory,
    command_line,
    environment,
)

LAUNCH = Path(_launch.__file__)
TOKEN = "a token of the tests, which nobody guesses"
MANAGER = ((METADATA_KEY, TOKEN),)


@dataclass
class Door:
    """A front door, and the server behind it.

    Attributes:
        url: Where callers reach gRPC.
        http_url: Where they reach HTTP; None: nowhere.
        process: The front door's process.
        triton: The server's process.
    """

    url: str
    http_url: str | None
    process: subprocess.Popen[bytes]
    triton: subprocess.Popen[bytes]
    command: list[str]
    environment: dict[str, str]
    sockets: Path

    def kill_triton(self) -> None:
        self.triton.kill()
        self.triton.wait()
        with contextlib.suppress(ProcessLookupError):  # its models' processes do not end with it
            os.killpg(self.triton.pid, signal.SIGKILL)

    def model(self, name: str) -> int:
        """The process of a model."""
        (found,) = (
            pid
            for pid, status in children(self.triton.pid).items()
            if f"/{name}/" in " ".join(status.command)
        )
        return found

    def start_triton(self) -> None:
        for left in self.sockets.iterdir():
            left.unlink()
        self.triton = _triton(self.command, self.environment, self.sockets)

    @contextlib.contextmanager
    def stub(self) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
        """A plain gRPC stub on a connection of its own."""
        with grpc.insecure_channel(self.url, options=OWN_CONNECTION) as channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


@contextlib.contextmanager
def front_door(repository: Path, *, http: bool = False, **options: Any) -> Iterator[Door]:
    """Start both, and end both."""
    installation = find()
    entries, _failed = preflight.select_models(repository, ())
    with contextlib.ExitStack() as stack:
        # Not pytest's own: the path of a socket has at most 107 characters.
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="door-")))
        sockets = scratch / "sockets"
        sockets.mkdir(mode=0o700)
        (scratch / "backends").mkdir()
        # Open to whoever gets past the front door, so that it alone is what the tests attack.
        explicit = ("--model-control-mode=explicit", "--load-model=*")
        server = ServerOptions(repository, http_port=1, metrics_port=None, arguments=explicit)
        backends = backend_directory(installation, scratch / "backends")
        listen = Listen(sockets, TOKEN)
        command = command_line(
            server, installation, backends, repository, listen, entries, gpu=False
        )
        memory = f"tests-{uuid.uuid4().hex[:12]}-"
        command = [
            *(sys.executable, "-IS", str(LAUNCH), str(os.getpid())),
            *command,
            f"--backend-config=python,shm-region-prefix-name={memory}",
        ]
        variables = environment(installation, find_libpython(), gpu=False)
        triton = _triton(command, variables, sockets)
        process, listening = started(
            FrontDoorOptions(
                listen="127.0.0.1:0",
                upstream=listen.target(server),
                http_listen="127.0.0.1:0" if http else None,
                http_upstream=str(listen.http_socket) if http else None,
                token=TOKEN,
                parent=os.getpid(),
                **options,
            )
        )
        door = Door(listening.grpc, listening.http, process, triton, command, variables, sockets)
        try:
            yield door
        finally:
            process.terminate()
            process.wait(timeout=60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(door.triton.pid, signal.SIGKILL)
            door.triton.wait()
            for left in Path("/dev/shm").glob(f"{memory}*"):
                left.unlink(missing_ok=True)


def started(options: FrontDoorOptions) -> tuple[subprocess.Popen[bytes], Listening]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bilateral_serving.front_door"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(options.model_dump_json().encode())
    process.stdin.close()
    line = process.stdout.readline()
    assert line, f"ended with {process.wait()}"
    return process, Listening.model_validate(json.loads(line))


def request(model: str, version: str = "", **inputs: np.ndarray) -> pb.ModelInferRequest:
    names = {"float32": "FP32", "int64": "INT64"}
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=names[str(array.dtype)], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def _triton(
    command: list[str], variables: dict[str, str], sockets: Path
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not (sockets / "http").exists():
        assert process.poll() is None, f"tritonserver ended with {process.returncode}"
        assert time.monotonic() < end, "tritonserver did not start within 120 s"
        time.sleep(0.05)
    return process
