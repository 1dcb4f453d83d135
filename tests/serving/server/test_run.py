"""Starting and stopping the real server, and what is in the way of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.builders import tiny_models as models
from tests.builders.waiting import PATIENCE_S, wait_until_busy
from tests.serving.server.live_processes import free_ports, left_by, mentioning, wait_until_gone

from bilateral_export.errors import UserError
from bilateral_serving import installation, repository
from bilateral_serving.client import Client
from bilateral_serving.config import Settings
from bilateral_serving.installation import STUB, Installation
from bilateral_serving.process_status import children
from bilateral_serving.server import (
    Progress,
    RunningServer,
    ServerOptions,
    preflight,
    running,
    serve,
)
from bilateral_serving.server.processes.log import LogLine, parse, reasons


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    repository.add("quadrants", models.quadrants(root / "m.onnx"), root / "repository")
    return root / "repository"


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared repository, which the test may change."""
    return shutil.copytree(prepared, tmp_path / "repository")


def grpc_only(root: Path, **changes: object) -> ServerOptions:
    (port,) = free_ports(1)
    options = {"grpc_port": port, "http_port": None, "metrics_port": None, **changes}
    return ServerOptions(root, **options)  # type: ignore[arg-type]


class Serving:
    """`serve` in a process of its own, as `bilateral serve` runs it."""

    SCRIPT = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from bilateral_export.errors import UserError
        from bilateral_serving.server import ServerOptions, serve

        options = ServerOptions(
            Path(sys.argv[1]), grpc_port=int(sys.argv[2]), http_port=None, metrics_port=None
        )
        try:
            serve(
                options,
                on_progress=lambda progress: print("progress", flush=True),
                on_ready=lambda server: print("ready", server.pid, flush=True),
            )
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
        """
    )

    def __init__(self, root: Path) -> None:
        self.root = root
        (self.port,) = free_ports(1)
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(root), str(self.port)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.mark = left_by(self.process.pid)

    def wait_for(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        pytest.fail(f"ended without '{word}': {self.process.communicate()[1]}")

    def finish(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


@pytest.fixture
def serving(root: Path) -> Iterator[Serving]:
    process = Serving(root)
    yield process
    process.process.kill()
    process.process.communicate()
    assert wait_until_gone(process.mark, PATIENCE_S) == []


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Check that a test leaves no process, directory or shared memory of a server behind."""

    def found() -> set[object]:
        places = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm"))
        files = {path for place in places for path in place.glob(f"{left_by(os.getpid())}*")}
        doors = {
            pid
            for pid, status in children(os.getpid()).items()
            if "bilateral_serving.front_door" in status.command
        }
        return {*mentioning(left_by(os.getpid())), *files, *doors}

    before = found()
    yield
    assert found() - before == set()


class TestRunning:
    def test_shows_its_metrics(self, server: RunningServer) -> None:
        assert server.metrics_url is not None
        with urllib.request.urlopen(server.metrics_url, timeout=PATIENCE_S) as page:
            assert b'nv_inference_count{model="quadrants"' in page.read()

    def test_listens_on_this_machine_only_unless_told(self, server: RunningServer) -> None:
        port = int(server.url.rpartition(":")[2])
        # Columns of proc(5): local address and port in hexadecimal, state 0A is "listening".
        rows = [
            row.split()
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for row in Path(table).read_text().splitlines()[1:]
        ]
        addresses = [
            row[1].split(":")[0]
            for row in rows
            if row[3] == "0A" and row[1].endswith(f":{port:04X}")
        ]
        assert addresses
        assert all(address.endswith("0100007F") for address in addresses)

    @pytest.mark.parametrize(
        ("host", "direct"),
        [
            ("::1", False),
            pytest.param("::1", True, marks=pytest.mark.slow),
            pytest.param("::", False, marks=pytest.mark.slow),
            pytest.param("::", True, marks=pytest.mark.slow),
            pytest.param("localhost", False, marks=pytest.mark.slow),
            pytest.param("localhost", True, marks=pytest.mark.slow),
            pytest.param("0.0.0.0", True, marks=pytest.mark.slow),
        ],
    )
    def test_listens_on_any_kind_of_address(self, host: str, direct: bool, root: Path) -> None:
        if ":" in host and not has_ipv6():
            pytest.skip("this machine has no IPv6")
        grpc, http, metrics = free_ports(3)
        options = ServerOptions(
            root,
            host=host,
            grpc_port=grpc,
            http_port=http,
            metrics_port=metrics,
            direct=direct,
            insecure=True,
        )
        with running(options) as server:
            assert server.metrics_url is not None
            caller = triton.InferenceServerClient(server.url)
            assert caller.is_model_ready("quadrants")
            caller.close()
            for url in (server.metrics_url, f"http://{server.http_url}/v2/health/ready"):
                with urllib.request.urlopen(url, timeout=60) as page:
                    assert page.status == 200

    @pytest.mark.usefixtures("nothing_left")
    def test_reports_progress_and_leaves_nothing(self, root: Path) -> None:
        seen: list[Progress] = []
        lines: list[LogLine] = []
        options = grpc_only(root)
        with running(options, on_progress=seen.append, on_log=lines.append) as server:
            with Client(server.url) as client:
                assert client.is_ready("quadrants")
                shared_memory = f"{client.server_name()}-*"
            assert mentioning(left_by(os.getpid()))
            assert list(Path("/dev/shm").glob(shared_memory))
        assert seen[-1].loaded == ("quadrants",)
        assert any(line.text == "successfully loaded 'quadrants'" for line in lines)
        assert [line for line in lines if line.level in ("warning", "error")] == []
        assert list(Path("/dev/shm").glob(shared_memory)) == []

    def test_goes_on_when_nobody_reads_its_log(self, root: Path) -> None:
        def closed(line: LogLine) -> None:
            raise BrokenPipeError

        with running(grpc_only(root), on_log=closed) as server, Client(server.url) as client:
            assert client.is_ready("quadrants")

    def test_serves_only_the_models_named(self, tmp_path: Path, root: Path) -> None:
        repository.add("lookup", models.lookup(tmp_path / "l.onnx"), root)
        with running(grpc_only(root, models=("lookup",))) as server, Client(server.url) as client:
            assert server.models == ("lookup",)
            assert client.is_ready("lookup")
            assert not client.is_ready("quadrants")


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL


class TestStop:
    def test_nobody_delays_it(self, root: Path) -> None:
        """Triton alone waits 30 s for a dead model process or an idle HTTP connection."""
        grpc, http = free_ports(2)
        options = ServerOptions(
            root, grpc_port=grpc, http_port=http, metrics_port=None, stop_timeout_s=60
        )
        with contextlib.ExitStack() as callers:
            with running(options) as server:
                callers.enter_context(socket.create_connection(("127.0.0.1", grpc)))
                idle = callers.enter_context(socket.create_connection(("127.0.0.1", http)))
                idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert idle.recv(100).startswith(b"HTTP/1.1 200")
                (model,) = children(server.pid)
                os.kill(model, signal.SIGKILL)
                began = time.monotonic()
            assert time.monotonic() - began < options.stop_timeout_s / 2


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ends_cleanly_on_a_signal(self, number: signal.Signals, serving: Serving) -> None:
        serving.wait_for("ready")
        serving.process.send_signal(number)
        assert serving.finish() == (0, "")
        assert mentioning(serving.mark) == []

    def test_ends_cleanly_while_loading(self, serving: Serving) -> None:
        serving.wait_for("progress")
        serving.process.send_signal(signal.SIGINT)
        assert serving.finish() == (0, "")
        assert mentioning(serving.mark) == []

    def test_the_server_dies_with_a_killed_parent(self, serving: Serving) -> None:
        serving.wait_for("ready")
        serving.process.kill()
        assert serving.finish()[0] == -signal.SIGKILL
        assert wait_until_gone(serving.mark, PATIENCE_S) == []

    @pytest.mark.usefixtures("nothing_left")
    def test_a_request_under_way_says_that_the_connection_broke(
        self, tmp_path: Path, root: Path
    ) -> None:
        slow = models.slow(tmp_path / "s.onnx")
        repository.add("slow", slow, root, settings=Settings(max_batch_size=1))
        options = grpc_only(root, direct=True)
        with running(options) as server, Client(server.url, timeout_s=PATIENCE_S) as client:
            client.infer("slow", {"turns": np.int64([[1]])})
            (model,) = (
                pid
                for pid, status in children(server.pid).items()
                if "/slow/" in " ".join(status.command)
            )

            def kill() -> None:
                wait_until_busy(model)
                os.kill(server.pid, signal.SIGKILL)

            threading.Thread(target=kill).start()
            with pytest.raises(UserError, match=r"'slow': the connection .* broke before the ans"):
                client.infer("slow", {"turns": np.int64([[60_000]])})

    def test_a_second_signal_does_not_wait_for_requests(self, tmp_path: Path, root: Path) -> None:
        repository.add(
            "slow",
            models.slow(tmp_path / "s.onnx"),
            root,
            settings=Settings(max_batch_size=1),
        )
        serving = Serving(root)
        serving.wait_for("ready")
        with Client(f"127.0.0.1:{serving.port}") as client:
            client.infer("slow", {"turns": np.int64([[1]])})
            with pytest.raises(UserError):
                client.infer("slow", {"turns": np.int64([[200_000]])}, timeout_s=1)
            began = time.monotonic()
            serving.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            serving.process.send_signal(signal.SIGINT)
            assert serving.finish()[0] == 0
            # The request takes minutes.
            assert time.monotonic() - began < ServerOptions(root).stop_timeout_s


class TestBadInput:
    def test_no_repository(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no model repository at"):
            serve(grpc_only(tmp_path / "none"))

    def test_empty_repository(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no model to serve.*bilateral repository add"):
            serve(grpc_only(tmp_path))

    def test_configuration_without_a_version(self, root: Path) -> None:
        repository.remove("quadrants", root, version=1)
        with pytest.raises(UserError, match="no model to serve"):
            serve(grpc_only(root))
        with pytest.raises(UserError, match=r"'quadrants' .* has no version"):
            serve(grpc_only(root, models=("quadrants",)))

    def test_unknown_model(self, root: Path) -> None:
        with pytest.raises(UserError, match=r"no model 'none'.*The models there are: quadrants"):
            serve(grpc_only(root, models=("none",)))

    @pytest.mark.parametrize("purpose", ["grpc", "http", "metrics"])
    def test_port_taken(self, purpose: str, root: Path) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(UserError, match=f"port {port} .* taken.*--{purpose}-port"):
                serve(grpc_only(root, **{f"{purpose}_port": port}))

    def test_port_of_another_server(self, server: RunningServer, root: Path) -> None:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(UserError, match=f"port {port} .* taken"):
            serve(grpc_only(root, grpc_port=port))

    def test_port_taken_where_localhost_may_lead(self, root: Path) -> None:
        with socket.socket(socket.AF_INET6) as holder:
            try:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                holder.bind(("::1", 0))
            except OSError:
                pytest.skip("this machine has no IPv6")
            holder.listen()
            port = holder.getsockname()[1]
            for host in ("127.0.0.1", "localhost", "::", "0.0.0.0"):
                with pytest.raises(UserError, match=f"port {port} on ::1 .* taken|on :: .* taken"):
                    serve(grpc_only(root, host=host, grpc_port=port))

    def test_ports_that_are_the_same_or_none(self, root: Path) -> None:
        (port,) = free_ports(1)
        with pytest.raises(UserError, match="--grpc-port and --http-port are both"):
            serve(grpc_only(root, grpc_port=port, http_port=port))
        with pytest.raises(UserError, match="70000 is not a port"):
            serve(grpc_only(root, http_port=70_000))

    def test_unknown_address(self, root: Path) -> None:
        with pytest.raises(UserError, match=r"192\.0\.2\.1 cannot be used"):
            serve(grpc_only(root, host="192.0.2.1"))
        with pytest.raises(UserError, match=r"'no-such-host\.invalid' is not an address"):
            serve(grpc_only(root, host="no-such-host.invalid"))

    @pytest.mark.usefixtures("nothing_left")
    def test_model_that_does_not_load(self, root: Path) -> None:
        (root / "quadrants/1/model.onnx").write_bytes(b"damaged")
        with pytest.raises(UserError) as caught, running(grpc_only(root)):
            pass
        assert "can serve no model: model 'quadrants': version 1:" in caught.value.problem
        assert "model.onnx is not the file that was added" in caught.value.problem
        assert "Traceback" not in str(caught.value)

    @pytest.mark.usefixtures("nothing_left")
    def test_module_that_is_missing(self, root: Path) -> None:
        (root / "quadrants/1/model.py").write_text("import a_module_that_is_missing\n")
        with (
            pytest.raises(UserError, match=r"No module named 'a_module.*Install"),
            running(grpc_only(root)),
        ):
            pass

    @pytest.mark.usefixtures("nothing_left")
    def test_server_that_is_too_slow(self, root: Path) -> None:
        with pytest.raises(UserError, match=r"not ready after 0\.01 s; still loading: quadrants"):
            serve(grpc_only(root, start_timeout_s=0.01))

    def test_no_such_tritonserver(self, tmp_path: Path, root: Path) -> None:
        with pytest.raises(UserError, match="is not an executable file"):
            serve(grpc_only(root, tritonserver=tmp_path / "tritonserver"))

    def test_backend_that_the_server_lacks(self, tmp_path: Path) -> None:
        root = tmp_path / "repository"
        repository.add("q", models.quadrants(tmp_path / "m.onnx"), root, target="onnxruntime")
        with pytest.raises(UserError, match=r"'q' needs the backend 'onnxruntime'.*container"):
            serve(grpc_only(root))

    def test_gpu_that_is_not_there(self, tmp_path: Path) -> None:
        root = tmp_path / "repository"
        settings = Settings(device="gpu")
        repository.add("q", models.quadrants(tmp_path / "m.onnx"), root, settings=settings)
        with pytest.raises(UserError, match="'q' is configured for a GPU"):
            serve(grpc_only(root, gpu=False))


class TestPreflight:
    @pytest.fixture
    def wheel(self, tmp_path: Path) -> Installation:
        """The layout of the wheel, with empty files."""
        root = tmp_path / "pytriton" / "tritonserver"
        stub = root / "python_backend_stubs" / installation.PYTHON_VERSION / STUB
        for path in (root / "bin" / "tritonserver", stub):
            path.parent.mkdir(parents=True)
            path.touch(mode=0o755)
        return installation.describe(root / "bin" / "tritonserver")

    def test_the_installed_wheel_passes(self) -> None:
        found = installation.find()
        if found.is_wheel:
            preflight.check_python(found, installation.find_libpython())

    def test_libpython_is_missing(self, wheel: Installation, tmp_path: Path) -> None:
        assert wheel.is_wheel
        assert installation.find_libpython([tmp_path]) is None
        with pytest.raises(UserError, match=r"needs libpython.*apt-get install libpython3"):
            preflight.check_python(wheel, None)

    def test_stub_is_missing(self, wheel: Installation) -> None:
        assert wheel.stub is not None
        wheel.stub.unlink()
        with pytest.raises(UserError, match="has no stub for Python"):
            preflight.check_python(wheel, Path("/lib/libpython.so"))

    @pytest.mark.parametrize("version", ["2.0.0", "2.3.1", "3.0"])
    def test_numpy_is_too_new(self, version: str) -> None:
        with pytest.raises(UserError, match=r"empty outputs.*numpy<2"):
            preflight.check_numpy(version)

    def test_shared_memory_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--shm-size"):
            preflight.check_shared_memory(tmp_path / "none")

    def test_the_argument_wins_over_the_path(
        self, wheel: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        other = tmp_path / "path" / "tritonserver"
        other.parent.mkdir()
        other.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(other.parent))
        assert installation.find().binary == other
        assert installation.find(wheel.binary).binary == wheel.binary


class TestLog:
    def test_a_line_loses_its_head(self) -> None:
        line = 'I1123 16:18:24.925650 4990 model_lifecycle.cc:472] "loading: tiny:2"\n'
        assert parse(line, None) == LogLine("info", "loading: tiny:2")

    def test_tables_and_routine_are_for_debugging(self) -> None:
        previous = LogLine("info", "")
        for line in (
            "+---+\n",
            "| Backend |\n",
            "\n",
            'E1123 16:18:24.9 49 server.cc:241] "CudaDriverHelper has not been initialized."',
        ):
            assert parse(line, previous).level == "debug"

    def test_a_traceback_keeps_the_level_before_it(self) -> None:
        assert parse("  File 'x'\n", LogLine("error", "failed")).level == "error"

    def test_reasons_are_the_models_that_failed(self) -> None:
        text = (
            "E1123 16:18:24.9 49 model_lifecycle.cc:642] \"failed to load 'tiny' version 1: "
            'Internal: ValueError: no\\n\\nAt:\\n  model.py(3): initialize\\n"'
        )
        assert reasons([parse(text, None)]) == ["model 'tiny' version 1: ValueError: no"]
