"""Measurements of a real tritonserver, and the lowered files that it serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from tests.builders.exported import exported as shared_export
from tests.serving.server.kept_server import KeptServer, kept
from tests.serving.server.live_processes import free_ports, management

from bilateral_benchmarks.experiments.breakdown import measure_breakdown
from bilateral_benchmarks.experiments.overhead import measure_overhead
from bilateral_benchmarks.experiments.scenarios import run_scenario
from bilateral_benchmarks.experiments.served import bench_served
from bilateral_benchmarks.load.inputs import made_up
from bilateral_benchmarks.load.schedule import Load
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.lowering.lower import lower, read_lowering
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.client.shared_memory import abandoned
from bilateral_serving.config import Settings
from bilateral_serving.server import RunningServer, ServerOptions

# What it measures is wrong while something else keeps the cores busy.
pytestmark = pytest.mark.timing

CHECKPOINT = Path("export/checkpoints/digits_bilateral.safetensors")
SETTINGS = {
    "onnxruntime": Settings(threads=1),
    "openvino": Settings(threads=1, runtime="openvino"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def shared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptServer]:
    exported = Path(shutil.copy(shared_export("digits_bilateral", tmp_path_factory), folder))
    for name, settings in SETTINGS.items():
        repository.add(name, exported, folder / "models", settings=settings)
    repository.add("as_exported", exported, folder / "models", lower=False)
    repository.add("large", exported, folder / "models", settings=Settings(max_batch_size=512))
    options = ServerOptions(
        folder / "models", grpc_port=free_ports(1)[0], http_port=None, metrics_port=None
    )
    with kept(options) as found:
        yield found


@pytest.fixture
def server(shared: KeptServer) -> RunningServer:
    return shared.ready()


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    return made_up(TorchRunner(load_checkpoint(CHECKPOINT)).inputs)


def test_the_repository_serves_the_lowered_file_and_says_so(
    server: RunningServer, folder: Path
) -> None:
    forms = {}
    for name in (*SETTINGS, "as_exported"):
        model = onnx.load(folder / "models" / name / "1" / "model.onnx")
        lowering = read_lowering(model)
        forms[name] = lowering.runtime if lowering else None
        with Client(server.url) as client:
            parameters = client.model_config(name).parameters
        assert ("lowering/1" in parameters) == (name != "as_exported")
    assert forms == {
        "onnxruntime": "onnxruntime-cpu",
        "openvino": "openvino",
        "as_exported": None,
    }


def test_every_runtime_answers_like_the_trained_model(server: RunningServer) -> None:
    checkpoint = load_checkpoint(CHECKPOINT)
    with TorchRunner(checkpoint) as torch_runner, Client(server.url, timeout_s=30) as client:
        batch = made_up(torch_runner.inputs, 4)
        expected = torch_runner.run(batch)["logits"]
        for name in (*SETTINGS, "as_exported"):
            found = client.infer(name, batch)["logits"]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_closed_and_open_loop_reports(server: RunningServer, arrays: dict[str, Array]) -> None:
    closed = bench_served(
        server.url, "onnxruntime", arrays, duration_s=1.5, warmup_s=0.4, concurrency=2
    )
    assert closed.errors == 0
    assert closed.kind == "served"
    assert closed.p50_ms is not None
    assert closed.lateness is None
    assert closed.throughput == pytest.approx(closed.requests / closed.duration_s, rel=0.1)
    opened = bench_served(
        server.url, "onnxruntime", arrays, duration_s=1.5, warmup_s=0.4, load=Load(rate=50)
    )
    assert opened.lateness is not None
    assert opened.service.mean_ms <= opened.response.mean_ms


def test_the_breakdown_has_every_step_and_explains_most(
    server: RunningServer, arrays: dict[str, Array]
) -> None:
    found = measure_breakdown(server.url, "onnxruntime", arrays, duration_s=2.0)
    parts = {part.name: part.mean_ms for part in found.parts}
    assert parts["server: compute infer"] > 0
    assert parts["network and gRPC"] > 0
    # The model takes longer than its input's copy, and next to nothing lies between the steps.
    assert parts["server: compute infer"] > parts["server: compute input"]
    assert parts["server: between the steps"] < 0.5 * parts["server: compute infer"]
    assert all(value >= 0 for value in parts.values())
    # Within 5 % on a quiet machine; here others may run between the two kinds of requests.
    assert abs(found.unexplained) < 0.5
    total = sum(parts.values()) + found.unexplained * found.measured_ms
    assert total == pytest.approx(found.measured_ms)


def test_a_breakdown_notices_other_users(server: RunningServer, arrays: dict[str, Array]) -> None:
    import threading

    over = threading.Event()

    def other() -> None:
        with Client(server.url) as client:
            while not over.wait(0.05):
                client.infer("onnxruntime", arrays)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with pytest.raises(UserError, match="nobody else uses"):
            measure_breakdown(server.url, "onnxruntime", arrays, duration_s=1.0)
    finally:
        over.set()
        thread.join()


def test_overhead_compares_each_way_with_the_model_in_process(
    server: RunningServer, arrays: dict[str, Array], folder: Path
) -> None:
    lowered = lower(folder / "digits.onnx", "onnxruntime-cpu", folder / "lowered.onnx").path
    with OnnxRuntimeRunner(lowered) as runner:
        found = measure_overhead(
            server.url,
            "digits",
            {name: name for name in SETTINGS},
            runner,
            arrays,
            rounds=1,
            seconds=1.5,
        )
    assert [way.name for way in found.ways] == list(SETTINGS)
    assert all(way.throughput > 0 for way in found.ways)
    for way in found.ways:  # of one round
        assert way.overhead_ms == pytest.approx(way.p50_ms - found.in_process_p50_ms)
        assert way.share == pytest.approx(way.throughput / found.in_process_throughput)


def test_a_scenario_by_name(server: RunningServer, arrays: dict[str, Array]) -> None:
    result = run_scenario(
        "Offline", server.url, "onnxruntime", arrays, duration_s=0.9, warmup_s=0.2
    )
    assert result.metric == "samples/s"
    assert result.report is not None
    assert result.report.batch == 8
    assert result.value == result.report.items_per_s


def test_an_unknown_model_and_a_server_that_is_not_there(
    server: RunningServer, arrays: dict[str, Array]
) -> None:
    with pytest.raises(UserError, match="is not served"):
        bench_served(server.url, "nobody", arrays, duration_s=0.3, warmup_s=0.1)
    with pytest.raises(UserError, match="no Triton server answers"):
        bench_served("127.0.0.1:1", "digits", arrays, duration_s=0.3, warmup_s=0.1)


def test_large_inputs_are_measured_in_shared_memory_and_in_the_message(
    server: RunningServer, arrays: dict[str, Array]
) -> None:
    many = {name: np.repeat(array, 512, axis=0) for name, array in arrays.items()}
    two = Load(concurrency=2, processes=2)
    shared = bench_served(server.url, "large", many, duration_s=0.6, warmup_s=0.2, load=two)
    inline = bench_served(
        server.url, "large", many, duration_s=0.6, warmup_s=0.2, shared_memory=False
    )
    assert shared.errors == inline.errors == 0
    assert shared.subject.endswith(", inputs in shared memory")
    assert not inline.subject.endswith("shared memory")
    # Other tests' clients may be at it: what counts is what nobody owns.
    assert abandoned(region.name for region in Path("/dev/shm").glob("bilateral-client*")) == []
    with triton.InferenceServerClient(server.url) as raw:
        assert not raw.get_system_shared_memory_status(headers=management(server.url)).regions
