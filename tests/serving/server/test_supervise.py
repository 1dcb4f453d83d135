"""What dies or wedges while a server is supervised, and what its callers notice."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports, left_by, wait_until_gone
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.installation import Installation
from bilateral_serving.process_status import children
from bilateral_serving.server import ServerOptions, running
from bilateral_serving.server.health import SILENT_S

# Far above what anything here takes, for a machine that is busy with other things.
_PATIENCE_S = 60.0


class Supervised:
    """`serve` in a process of its own, as `bilateral serve` runs it."""

    SCRIPT = textwrap.dedent(
        """
        import signal, sys
        from pathlib import Path, PosixPath
        from bilateral_export.errors import UserError
        from bilateral_serving.server import ServerOptions, serve, signals_counted

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is in force outside of `serve`
        with signals_counted() as signals:
            print("begins", flush=True)
            port, more = int(sys.argv[2]), eval(sys.argv[3])
            more = {"metrics_port": None, **more}
            options = ServerOptions(Path(sys.argv[1]), grpc_port=port, **more)
            try:
                serve(
                    options,
                    signals=signals,
                    on_ready=lambda server: print("ready", *server.models, flush=True),
                    on_event=lambda text: print("event", text, flush=True),
                )
            except UserError as error:
                sys.exit(str(error))
        """
    )

    def __init__(
        self,
        root: Path,
        environment: dict[str, str] | None = None,
        *,
        under: Sequence[str] = (),
        port: int | None = None,
        **options: object,
    ) -> None:
        port = port or free_ports(1)[0]
        self.url = f"127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [*under, sys.executable, "-c", self.SCRIPT, str(root), str(port), repr(options)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.mark = left_by(self.process.pid)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, word: str) -> str:
        """The rest of the next line that begins with a word."""
        end = time.monotonic() + _PATIENCE_S
        while (line := self._lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
            first, _, rest = line.rstrip().partition(" ")
            if first == word:
                return rest
        pytest.fail(f"ended without '{word}': {self.process.communicate()[1]}")

    def after(self, number: signal.Signals, pid: int) -> str:
        """What it says once it has recovered from a signal to one of its processes."""
        began = time.monotonic()
        os.kill(pid, number)
        event = self.wait_for("event")
        print(f"{time.monotonic() - began:.1f} s after {number.name}: {event}")
        return event

    def lines_so_far(self) -> list[str | None]:
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return found

    def server(self) -> int:
        """tritonserver's process."""
        return self._child(lambda command: command[0].endswith("tritonserver"))

    def door(self) -> int:
        return self._child(lambda command: "bilateral_serving.front_door" in command)

    def model(self, name: str) -> int:
        """The process of a model."""
        (found,) = (
            pid
            for pid, status in children(self.server()).items()
            if f"/models/{name}/" in " ".join(status.command)
        )
        return found

    def end(self, *pauses_s: float) -> None:
        """Interrupt it, again after each pause, and check that it ends cleanly."""
        for pause_s in (0.0, *pauses_s):
            time.sleep(pause_s)
            self.process.send_signal(signal.SIGINT)
        errors = self.process.communicate(timeout=_PATIENCE_S)[1]
        assert (self.process.returncode, "Traceback" in errors) == (0, False), errors
        assert wait_until_gone(self.mark, _PATIENCE_S) == []

    def _child(self, matches: Callable[[tuple[str, ...]], bool]) -> int:
        (found,) = (
            pid
            for pid, status in children(self.process.pid).items()
            if status.command and matches(status.command)
        )
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class Caller(threading.Thread):
    """Asks a model all the time, by plain gRPC, and checks every answer."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.answers = 0
        self.problems: list[str] = []
        self._url, self._over = url, threading.Event()

    def run(self) -> None:
        random = np.random.default_rng(0)
        with triton.InferenceServerClient(self._url) as raw:
            while not self._over.is_set():
                value = random.random((1, 1, 2, 2), dtype=np.float32)
                tensor = triton.InferInput("pixel_values", [1, 1, 2, 2], "FP32")
                tensor.set_data_from_numpy(value)
                try:
                    answer = raw.infer("quadrants", [tensor]).as_numpy("logits")
                except InferenceServerException as error:
                    self.problems.append(str(error))
                    continue
                if not np.array_equal(answer.ravel(), 8 * value.ravel()):
                    self.problems.append(f"{value} -> {answer}")
                self.answers += 1

    def finish(self) -> None:
        """Wait for one more answer, and stop; the second time do nothing."""
        if not self.is_alive():
            return
        end, answers = time.monotonic() + _PATIENCE_S, self.answers
        while self.answers == answers and time.monotonic() < end:
            time.sleep(0.02)
        self._over.set()
        self.join(_PATIENCE_S)
        assert self.answers > answers


def repository_at(root: Path, files: Path) -> Path:
    one = Settings(threads=1, warmup=False)
    repository.add("quadrants", models.quadrants(files / "q.onnx"), root, settings=one)
    repository.add("lookup", models.lookup(files / "l.onnx"), root, settings=one)
    alone = Settings(max_batch_size=1, threads=1, warmup=False)
    repository.add("slow", models.slow(files / "s.onnx"), root, settings=alone)
    return root


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """One server for all faults; each test leaves it as it was."""
    files = tmp_path_factory.mktemp("supervised")
    server = Supervised(repository_at(files / "repository", files))
    server.wait_for("ready")
    yield server
    server.end()


@pytest.fixture
def caller(supervised: Supervised) -> Iterator[Caller]:
    caller = Caller(supervised.url)
    caller.start()
    yield caller
    caller.finish()


class TestFaults:
    def test_a_model_process_that_is_killed(self, supervised: Supervised, caller: Caller) -> None:
        assert "model 'quadrants'" in supervised.after(
            signal.SIGKILL, supervised.model("quadrants")
        )
        caller.finish()
        # What had reached the dead process may say so; nothing else is lost, and nothing is wrong.
        assert [text for text in caller.problems if "is not healthy" not in text] == []

    def test_another_model_loses_nothing(self, supervised: Supervised, caller: Caller) -> None:
        assert "the process of model 'lookup'" in supervised.after(
            signal.SIGKILL, supervised.model("lookup")
        )
        caller.finish()
        assert caller.problems == []

    def test_a_model_process_that_hangs(self, supervised: Supervised, caller: Caller) -> None:
        assert "model 'lookup' is" in supervised.after(
            signal.SIGSTOP, supervised.model("lookup")
        )  # wedged, or not healthy
        caller.finish()
        assert caller.problems == []

    def test_a_server_that_is_killed(self, supervised: Supervised, caller: Caller) -> None:
        assert "tritonserver stopped while serving: it ended by SIGKILL" in supervised.after(
            signal.SIGKILL, supervised.server()
        )
        caller.finish()
        assert caller.problems == []

    @pytest.mark.slow  # after so many restarts in a row it pauses for seconds
    def test_a_server_that_hangs(self, supervised: Supervised, caller: Caller) -> None:
        assert "is wedged" in supervised.after(signal.SIGSTOP, supervised.server())
        caller.finish()
        assert caller.problems == []

    def test_a_front_door_that_is_killed(self, supervised: Supervised, caller: Caller) -> None:
        assert "The front door was started again" in supervised.after(
            signal.SIGKILL, supervised.door()
        )
        caller.finish()  # its connection broke; the next one serves
        assert [text for text in caller.problems if "UNAVAILABLE" not in text] == []

    def test_a_busy_model_is_not_taken_for_one_that_hangs(self, supervised: Supervised) -> None:
        supervised.lines_so_far()
        turns, took = 500, 0.0
        with triton.InferenceServerClient(supervised.url) as raw:
            while took < 2 * SILENT_S:
                turns = round(turns * min(40.0, 3 * SILENT_S / took)) if took else turns
                tensor = triton.InferInput("turns", [1, 1], "INT64")
                tensor.set_data_from_numpy(np.int64([[turns]]))
                began = time.monotonic()
                raw.infer("slow", [tensor])
                took = time.monotonic() - began
        assert supervised.lines_so_far() == []


def test_paths_and_proxies_that_triton_and_grpc_trip_over(tmp_path: Path) -> None:
    """Spaces end a path for the Python backend, which also wants ASCII; gRPC obeys http_proxy."""
    odd = tmp_path / "mes modèles"
    odd.mkdir()
    nobody = "http://127.0.0.1:9"
    server = Supervised(
        repository_at(odd / "repository", odd),
        {"TMPDIR": str(odd), "http_proxy": nobody, "https_proxy": nobody, "grpc_proxy": nobody},
    )
    try:
        assert server.wait_for("ready") == "lookup quadrants slow"
        caller = Caller(server.url)
        caller.start()
        caller.finish()
        assert caller.problems == []
    finally:
        server.end()
    assert list(odd.glob("bilateral-serve-*")) == []


@pytest.fixture(scope="module")
def bad_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is served, and others that cannot be, each for another reason."""
    files = tmp_path_factory.mktemp("bad")
    root = files / "repository"
    for name in ("good", "damaged", "crashes", "misconfigured"):
        repository.add(name, models.quadrants(files / f"{name}.onnx"), root)
    for name in ("unwarm", "unwarmed"):  # two at once can end tritonserver 2.51
        repository.add(name, models.quadrants(files / f"{name}.onnx"), root)
        model = root / name / "1/model.py"
        model.write_text(model.read_text().replace("self._feed(request)", "{}[request]"))
    (root / "damaged/1/model.onnx").write_bytes(b"damaged")
    (root / "crashes/1/model.py").write_text("import os\nos.abort()\n")
    (root / "misconfigured/config.pbtxt").write_text("name: 7")
    return root


class TestBadModels:
    def test_the_others_are_served(self, bad_models: Path) -> None:
        (port,) = free_ports(1)
        options = ServerOptions(bad_models, grpc_port=port, metrics_port=None)
        with running(options) as server:
            assert server.models == ("good",)
            bad = {"damaged", "crashes", "misconfigured", "unwarm", "unwarmed"}
            assert set(server.failed) == bad
            assert "model.onnx is not the file that was added" in server.failed["damaged"]
            assert (
                "version 1: Stub process 'crashes_0_0' is not healthy" in server.failed["crashes"]
            )
            caller = triton.InferenceServerClient(server.url)
            assert caller.is_server_ready()
            assert [caller.is_model_ready(name) for name in ("good", "damaged")] == [True, False]
            caller.close()

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("damaged", marks=pytest.mark.slow),
            pytest.param("crashes", marks=pytest.mark.slow),
            "misconfigured",
        ],
    )
    def test_strict_does_not_serve_the_others(self, name: str, bad_models: Path) -> None:
        (port,) = free_ports(1)
        options = ServerOptions(
            bad_models, models=("good", name), grpc_port=port, metrics_port=None, strict=True
        )
        with pytest.raises(UserError, match=name), running(options):
            pass


def test_a_process_that_dies_before_triton_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton alone waits 300 s for it, and then says nothing of why."""
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\necho 'no room for a Python here' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(Installation, "stub", stub)
    root = repository_at(tmp_path / "repository", tmp_path)
    (port,) = free_ports(1)
    began = time.monotonic()
    options = ServerOptions(root, models=("lookup",), grpc_port=port, metrics_port=None)
    with (
        pytest.raises(UserError, match=r"'lookup': its process died while .* no room for a Python"),
        running(options),
    ):
        pass
    assert time.monotonic() - began < _PATIENCE_S


def test_is_left_alone_by_signals_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    repository.add("quadrants", models.quadrants(tmp_path / "q.onnx"), root)
    random = np.random.default_rng(20)
    for moment in random.uniform(0.0, 3.0, 3):
        server = Supervised(root)
        server.wait_for("begins")
        time.sleep(moment)
        server.end(random.uniform(0.0, 0.5))


@pytest.mark.slow  # the pauses between restarts double
def test_a_model_that_keeps_dying_is_left_out(tmp_path: Path) -> None:
    server = Supervised(repository_at(tmp_path / "repository", tmp_path))
    server.wait_for("ready")
    for _ in range(4):
        os.kill(server.model("lookup"), signal.SIGKILL)
        server.wait_for("event")
    os.kill(server.model("lookup"), signal.SIGKILL)
    assert "'lookup' is not served any more" in server.wait_for("event")
    server.wait_for("event")
    with triton.InferenceServerClient(server.url) as raw:
        assert raw.is_model_ready("quadrants")
        assert not raw.is_model_ready("lookup")
    server.end()
