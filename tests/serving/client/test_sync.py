"""The clients against a real server."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports, management
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_serving.client import Client, connection
from bilateral_serving.client.aio import AsyncClient
from bilateral_serving.client.answers import Featured, answer_files
from bilateral_serving.client.errors import may_repeat
from bilateral_serving.client.grpc_connection import GrpcConnection
from bilateral_serving.client.requests import DEFAULT_TIMEOUT_S
from bilateral_serving.server import RunningServer
from bilateral_serving.values import check_finite


def images(count: int, seed: int = 0) -> np.ndarray:
    """Whole numbers, so that sums of products are exact in every order."""
    pixels = np.random.default_rng(seed).integers(0, 16, (count, 1, 2, 2))
    return pixels.astype(np.float32)


def png(quadrant: int | None) -> bytes:
    """One bright quadrant, or none."""
    pixels = np.zeros(4, dtype=np.uint8)
    if quadrant is not None:
        pixels[quadrant] = 255
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(2, 2)).save(file, "PNG")
    return file.getvalue()


def test_a_number_too_small_to_show_is_zero_and_costs_no_time(client: Client) -> None:
    """Weights of a Gaussian kernel become subnormal, with which many CPUs compute slowly."""
    small = np.full((2, 8), 1e-40, dtype=np.float32)
    assert small.all()
    answer = client.infer("arithmetic", {"a": small, "b": np.ones_like(small)})
    assert not answer["product"].any()


class TestInfer:
    def test_gives_the_model_s_answer(self, client: Client) -> None:
        pixels = images(3)
        answer = client.infer("quadrants", {"pixel_values": pixels})
        np.testing.assert_array_equal(answer["logits"], 4 * pixels.reshape(3, 4))

    def test_of_an_older_version(self, client: Client) -> None:
        pixels = images(2)
        answer = client.infer("quadrants", {"pixel_values": pixels}, version=1)
        np.testing.assert_array_equal(answer["logits"], 8 * pixels.reshape(2, 4))

    def test_with_several_inputs_and_outputs(self, client: Client) -> None:
        a, b = np.float32([[1, 2, 3]]), np.float32([[4, 5, 6]])
        answer = client.infer("arithmetic", {"b": b, "a": a})
        np.testing.assert_array_equal(answer["sum"], a + b)
        np.testing.assert_array_equal(answer["product"], a * b)

    def test_gives_only_the_outputs_asked_for(self, client: Client) -> None:
        one = np.ones((1, 2), np.float32)
        assert list(client.infer("arithmetic", {"a": one, "b": one}, outputs=["sum"])) == ["sum"]

    def test_takes_arrays_of_any_memory_layout(self, client: Client) -> None:
        pixels = images(4)[::2, :, ::-1, ::-1]
        answer = client.infer("quadrants", {"pixel_values": pixels})
        np.testing.assert_array_equal(answer["logits"], 4 * pixels.reshape(2, 4))

    def test_of_an_output_with_the_batch_as_its_only_axis(self, client: Client) -> None:
        answer = client.infer("largest", {"scores": np.float32([[0, 2, 1], [5, 4, 3]])})
        np.testing.assert_array_equal(answer["index"], [[1], [0]])

    def test_carries_every_element_type(self, client: Client) -> None:
        arrays = {
            spec.name: np.array([[0, 1], [1, 0], [1, 1]], dtype=spec.dtype)
            for spec in client.model_metadata("copies").inputs
        }
        answer = client.infer("copies", arrays)
        assert len(arrays) == 11
        for name, array in arrays.items():
            assert answer[f"{name}_copy"].dtype == array.dtype
            np.testing.assert_array_equal(answer[f"{name}_copy"], array)

    def test_of_a_model_without_batching(self, client: Client) -> None:
        pixels = images(1)
        answer = client.infer("fixed", {"pixel_values": pixels})
        np.testing.assert_array_equal(answer["logits"], 8 * pixels.reshape(1, 4))


class TestDynamicBatching:
    def test_answers_are_those_given_alone(self, client: Client, server: RunningServer) -> None:
        requests = [images(1 + i % 3, seed=i) for i in range(24)]
        alone = [client.infer("batched", {"pixel_values": r})["logits"] for r in requests]
        before = executions(server, "batched")
        with ThreadPoolExecutor(len(requests)) as pool:
            together = list(
                pool.map(lambda r: client.infer("batched", {"pixel_values": r})["logits"], requests)
            )
        after = executions(server, "batched")

        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)
        # It is a test of batches only if there were any.
        assert after - before < len(requests)

    def test_a_failing_request_does_not_fail_its_neighbours(
        self, client: Client, server: RunningServer
    ) -> None:
        good = [np.int64([[i, 9 - i]]) for i in range(7)]
        client.model_metadata("lookup")
        before = executions(server, "lookup")

        def ask(ids: np.ndarray) -> np.ndarray | UserError:
            try:
                return client.infer("lookup", {"ids": ids})["rows"]
            except UserError as error:
                return error

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [*good, np.int64([[3, 99]])]))
        after = executions(server, "lookup")

        assert isinstance(answers[-1], UserError)
        assert "model 'lookup'" in str(answers[-1])
        assert "99" in str(answers[-1])
        for ids, rows in zip(good, answers[:-1], strict=True):
            np.testing.assert_array_equal(rows, ids * 10)
        assert after - before < 8
        assert client.is_ready("lookup")

    def test_requests_of_different_lengths_stay_apart(self, client: Client) -> None:
        def ask(length: int) -> np.ndarray:
            row = np.full((1, length), length, np.float32)
            return client.infer("arithmetic", {"a": row, "b": row})["sum"]

        lengths = [1, 2, 3, 1, 2, 3]
        with ThreadPoolExecutor(6) as pool:
            for length, answer in zip(lengths, pool.map(ask, lengths), strict=True):
                np.testing.assert_array_equal(answer, np.full((1, length), 2 * length))


def executions(server: RunningServer, model: str) -> int:
    with triton.InferenceServerClient(server.url) as raw:
        statistics = raw.get_inference_statistics(model, headers=management(server.url))
    return int(statistics.model_stats[0].execution_count)


def inferences(server: RunningServer, model: str) -> int:
    with triton.InferenceServerClient(server.url) as raw:
        statistics = raw.get_inference_statistics(model, headers=management(server.url))
    return int(statistics.model_stats[0].inference_count)


def wait_for_inferences(server: RunningServer, model: str, wanted: int) -> None:
    """Triton counts a request after its answer, and a call can overtake an earlier one."""
    deadline = time.monotonic() + 60
    while inferences(server, model) < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert inferences(server, model) >= wanted


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the calls that clients make, and not of those that they refuse to make."""
    methods: list[str] = []
    start = connection.Connection.start

    def noted(self: connection.Connection, method: str, *rest: Any) -> connection.Call:
        call = start(self, method, *rest)
        methods.append(method)
        return call

    monkeypatch.setattr(connection.Connection, "start", noted)
    return methods


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is cleared, clients get no answer, though the server has given it."""
    given, make = threading.Event(), GrpcConnection._make
    given.set()

    def later(self: GrpcConnection, *call: Any) -> Any:
        answer = make(self, *call)
        given.wait(240)
        return answer

    monkeypatch.setattr(GrpcConnection, "_make", later)
    yield given
    given.set()


class TestFeatures:
    def test_are_those_of_each_file(self, client: Client) -> None:
        files = [png(quadrant) for quadrant in (3, 0, 2)]
        assert client.features("features", files).argmax(-1).tolist() == [3, 0, 2]

    def test_refuses_a_model_with_classes(self, client: Client) -> None:
        with pytest.raises(UserError, match="returns logits, no features"):
            client.features("quadrants", [png(0)])

    def test_are_an_answer_about_files(self, client: Client, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png(2))
        (answer,) = answer_files(client, "features", [tmp_path / "a.png"])
        assert isinstance(answer, Featured)
        assert answer.classes == [("features 4", 1.0)]
        assert answer.document["features"] == [0.0, 0.0, 1.0, 0.0]


class TestClassify:
    def test_names_the_brightest_quadrant(self, client: Client) -> None:
        files = [png(quadrant) for quadrant in (3, 0, 2, 1, 3)]  # more than one batch of 4
        best = [ranking[0] for ranking in client.classify("quadrants", files, k=2)]
        assert [p.label for p in best] == [models.QUADRANTS[i] for i in (3, 0, 2, 1, 3)]
        expected = np.exp(4) / (np.exp(4) + 3)
        assert best[0].probability == pytest.approx(expected)

    def test_gives_k_classes_best_first(self, client: Client) -> None:
        (ranking,) = client.classify("quadrants", [png(1)], k=9)
        probabilities = [prediction.probability for prediction in ranking]
        assert len(ranking) == 4
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1.0)

    def test_refuses_a_model_that_takes_no_images(self, client: Client) -> None:
        with pytest.raises(UserError, match="'arithmetic' does not say how a file"):
            client.classify("arithmetic", [png(0)])

    def test_refuses_a_model_without_a_head(self, client: Client) -> None:
        with pytest.raises(UserError, match="returns features, which are no classes"):
            client.classify("features", [png(0)])

    def test_refuses_no_images_and_no_classes(self, client: Client) -> None:
        with pytest.raises(UserError, match="no input to classify"):
            client.classify("quadrants", [])
        with pytest.raises(UserError, match="at least 1"):
            client.classify("quadrants", [png(0)], k=0)

    def test_labels_reach_other_clients_too(self, server: RunningServer) -> None:
        """Triton's classification extension reads labels.txt."""
        with triton.InferenceServerClient(server.url) as raw:
            tensor = triton.InferInput("pixel_values", [1, 1, 2, 2], "FP32")
            tensor.set_data_from_numpy(np.float32([[[[0, 0], [1, 0]]]]))
            wanted = triton.InferRequestedOutput("logits", class_count=1)
            answer = raw.infer("quadrants", [tensor], outputs=[wanted]).as_numpy("logits")
        assert answer.ravel()[0].decode().endswith(":2:bottom left")


class TestNotFinite:
    HUGE = np.float32([[1, 1], [np.inf, 1], [3, np.nan]])

    def test_is_an_error_that_says_where(self, client: Client) -> None:
        inputs = {"a": self.HUGE, "b": self.HUGE}
        with pytest.raises(UserError) as caught:
            client.infer("arithmetic", inputs)
        assert caught.value.problem == (
            "model 'arithmetic': output sum holds NaN or infinity in 2 of 3 rows"
        )
        answer = client.infer("arithmetic", inputs, check_finite=False)
        np.testing.assert_array_equal(answer["sum"], self.HUGE + self.HUGE)

    def test_in_asyncio_and_classify_too(self, server: RunningServer, client: Client) -> None:
        async def ask() -> None:
            async with AsyncClient(server.url) as other:
                with pytest.raises(UserError, match="holds NaN or infinity in 2 of 3 rows"):
                    await other.infer("arithmetic", {"a": self.HUGE, "b": self.HUGE})

        asyncio.run(ask())
        with pytest.raises(UserError, match=r"'overflowing': output logits .* in 1 of 2 rows"):
            client.classify("overflowing", [png(None), png(0)])

    def test_every_floating_type(self) -> None:
        for dtype in ("float16", "float32", "float64", ml_dtypes.bfloat16):
            for bad in (np.nan, np.inf, -np.inf):
                array = np.zeros((4, 2, 2)).astype(dtype)
                check_finite("model 'm'", {"y": array, "labels": np.int64([1])})
                array[3, 0, 1] = bad
                with pytest.raises(UserError, match="in 1 of 4 rows"):
                    check_finite("model 'm'", {"y": array})
        with pytest.raises(UserError, match="in 1 of 1 rows"):
            check_finite("model 'm'", {"y": np.array(np.nan)})


class TestDescribe:
    def test_a_model(self, client: Client) -> None:
        info = client.model_metadata("quadrants")
        assert (info.name, info.version, info.versions) == ("quadrants", 2, (1, 2))
        assert str(info.inputs[0]) == "pixel_values float32[batch, 1, 2, 2]"
        assert info.max_batch_size == 4
        assert info.metadata == models.metadata()

    def test_a_model_from_elsewhere(self, client: Client) -> None:
        assert client.model_metadata("arithmetic").metadata is None

    def test_its_configuration(self, client: Client) -> None:
        assert client.model_config("quadrants").parameters["threads"].string_value == "1"

    def test_readiness(self, client: Client) -> None:
        assert client.is_ready()
        assert client.is_ready("quadrants")
        assert not client.is_ready("unknown")


class TestBadInput:
    def test_unknown_model(self, client: Client, server: RunningServer) -> None:
        with pytest.raises(UserError, match=f"model 'none' is not served at {server.url}"):
            client.infer("none", {"x": images(1)})

    def test_unknown_version(self, client: Client) -> None:
        with pytest.raises(UserError, match="model 'quadrants' version 9 is not served"):
            client.infer("quadrants", {"pixel_values": images(1)}, version=9)

    def test_wrong_shape(self, client: Client) -> None:
        with pytest.raises(UserError) as caught:
            client.infer("quadrants", {"pixel_values": np.zeros((1, 3, 2, 2), np.float32)})
        assert caught.value.problem == (
            "input pixel_values of model quadrants has shape [1, 3, 2, 2]"
        )
        assert "pixel_values float32[batch, 1, 2, 2]" in caught.value.fix

    def test_wrong_dtype(self, client: Client) -> None:
        with pytest.raises(UserError, match=r"is float64.*\.astype\('float32'\)"):
            client.infer("quadrants", {"pixel_values": images(1).astype(np.float64)})

    def test_wrong_names(self, client: Client) -> None:
        with pytest.raises(UserError, match="has no input pixels"):
            client.infer("quadrants", {"pixels": images(1)})
        with pytest.raises(UserError, match="was not given b"):
            client.infer("arithmetic", {"a": np.ones((1, 2), np.float32)})
        with pytest.raises(UserError, match="has no output 'scores'"):
            client.infer("quadrants", {"pixel_values": images(1)}, outputs=["scores"])

    def test_empty_batch(self, client: Client) -> None:
        with pytest.raises(UserError, match="shape"):
            client.infer("quadrants", {"pixel_values": images(0)})

    def test_batch_too_large(self, client: Client) -> None:
        with pytest.raises(UserError, match=r"a batch of 5\. Expected at most 4"):
            client.infer("quadrants", {"pixel_values": images(5)})

    def test_server_down(self) -> None:
        (port,) = free_ports(1)
        with Client(f"127.0.0.1:{port}") as nobody:
            began = time.monotonic()
            with pytest.raises(UserError, match=f"no Triton server answers at 127.0.0.1:{port}"):
                nobody.infer("quadrants", {"pixel_values": images(1)})
            assert time.monotonic() - began < DEFAULT_TIMEOUT_S
            assert not nobody.is_ready()

    def test_unknown_host(self) -> None:
        with (
            Client("no-such-host.invalid:8001", timeout_s=120) as nobody,
            pytest.raises(UserError, match=r"no Triton server answers at no-such-host"),
        ):
            nobody.infer("quadrants", {"pixel_values": images(1)})

    def test_something_else_answers(self, server: RunningServer) -> None:
        assert server.metrics_url is not None
        url = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
        with Client(url, timeout_s=5) as confused, pytest.raises(UserError) as caught:
            confused.infer("quadrants", {"pixel_values": images(1)})
        assert url in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["localhost", "http://localhost", "ftp://localhost:8001", ":8001", "host:port", ","]
    )
    def test_wrong_address(self, url: str) -> None:
        with pytest.raises(UserError, match="is not the address of a server"):
            Client(url)

    @pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
    def test_wrong_timeout(self, timeout_s: float, client: Client) -> None:
        with pytest.raises(UserError, match="above 0"):
            client.infer("quadrants", {"pixel_values": images(1)}, timeout_s=timeout_s)

    def test_a_call_may_take_for_ever(self, client: Client) -> None:
        answer = client.infer("quadrants", {"pixel_values": images(1)}, timeout_s=float("inf"))
        assert answer["logits"].shape == (1, 4)

    def test_deadline_passes(self, client: Client, held: threading.Event) -> None:
        client.infer("slow", {"turns": np.int64([[1]])})
        held.clear()
        with pytest.raises(UserError, match=r"model 'slow': no answer from .* within 0\.2 s"):
            client.infer("slow", {"turns": np.int64([[1]])}, timeout_s=0.2)
        assert len(client._flows._connection()._late) == 1  # it has not waited for the answer

    def test_late_calls_are_not_cancelled_but_run_to_their_end(
        self, client: Client, server: RunningServer, sent: list[str]
    ) -> None:
        """Triton 2.51 can die of cancelled calls. With a cancellation it would execute fewer."""
        client.infer("slow", {"turns": np.int64([[1]])})
        before = inferences(server, "slow")
        sent.clear()

        def give_up(_: int) -> None:
            with pytest.raises(UserError, match=r"no answer from .* within 0\.05 s"):
                client.infer("slow", {"turns": np.int64([[1_000]])}, timeout_s=0.05)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(give_up, range(8)))
        client.infer("slow", {"turns": np.int64([[1]])})
        assert sent.count("ModelInfer") > 1
        wait_for_inferences(server, "slow", before + sent.count("ModelInfer"))

    def test_beyond_so_many_late_calls_a_client_sends_nothing_more(
        self,
        server: RunningServer,
        sent: list[str],
        held: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(connection, "MOST_LATE", 2)
        with Client(server.url) as client, caplog.at_level(logging.WARNING):
            client.infer("slow", {"turns": np.int64([[1]])})
            sent.clear()
            held.clear()
            for _ in range(2):
                with pytest.raises(UserError, match="no answer"):
                    client.infer("slow", {"turns": np.int64([[1]])}, timeout_s=1)
            with pytest.raises(UserError, match=f"2 calls to {server.url} that nobody waits for"):
                client.infer("slow", {"turns": np.int64([[1]])})
            threading.Timer(0.3, held.set).start()
            client.close()
            assert held.is_set()
        assert sent == ["ModelInfer"] * 2
        assert not caplog.messages  # closing has waited for both, and cancelled none

    def test_closing_does_not_wait_for_ever(
        self,
        server: RunningServer,
        held: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(connection, "CLOSING_S", 0.05)
        with Client(server.url) as client, caplog.at_level(logging.WARNING):
            client.infer("slow", {"turns": np.int64([[1]])})
            held.clear()
            with pytest.raises(UserError, match="no answer"):
                client.infer("slow", {"turns": np.int64([[1]])}, timeout_s=1)
            client.close()
        assert caplog.messages == [
            f"{server.url}: 1 calls did not end within 0.05 s; they are cancelled"
        ]

    def test_full_queue(self, client: Client) -> None:
        def ask(_: int) -> str:
            try:
                client.infer("limited", {"turns": np.int64([[1_000]])})
            except UserError as error:
                return error.problem
            return "answered"

        with ThreadPoolExecutor(8) as pool:
            outcomes = set(pool.map(ask, range(8)))
        refused = f"model 'limited': the server at {client.url} has too many requests waiting"
        assert outcomes == {"answered", refused}


class TestRetries:
    @staticmethod
    def error(status: str, message: str) -> InferenceServerException:
        return InferenceServerException(message, status=f"StatusCode.{status}")

    def test_only_what_was_not_executed_is_repeated(self) -> None:
        unsent = self.error("UNAVAILABLE", "failed to connect to all addresses; last error: ...")
        full = self.error("UNAVAILABLE", "Exceeds maximum queue size")
        broken = self.error("UNAVAILABLE", "Socket closed")
        late = self.error("DEADLINE_EXCEEDED", "Deadline Exceeded")
        assert may_repeat(unsent, "ModelInfer")
        assert may_repeat(full, "ModelInfer")
        assert not may_repeat(broken, "ModelInfer")
        assert may_repeat(broken, "ModelConfig")
        assert not may_repeat(late, "ModelConfig")

    def test_where_the_caller_allows_it_also_what_may_have_been(self) -> None:
        broken = self.error("UNAVAILABLE", "Socket closed")
        proxied = self.error("UNAVAILABLE", "Received http2 header with status: 502")
        stopped = self.error("CANCELLED", "CANCELLED")
        late = self.error("DEADLINE_EXCEEDED", "Deadline Exceeded")
        refused = self.error("INVALID_ARGUMENT", "unexpected shape")
        assert all(may_repeat(one, "ModelInfer", True) for one in (broken, proxied, stopped))
        assert not may_repeat(late, "ModelInfer", True)
        assert not may_repeat(refused, "ModelInfer", True)
        assert not may_repeat(broken, "SystemSharedMemoryRegister", True)


class TestAsyncClient:
    def test_answers_as_the_other_client(self, server: RunningServer, client: Client) -> None:
        async def ask() -> None:
            async with AsyncClient(server.url) as other:
                pixels = images(2)
                answer = await other.infer("quadrants", {"pixel_values": pixels})
                np.testing.assert_array_equal(answer["logits"], 4 * pixels.reshape(2, 4))
                files = [png(quadrant) for quadrant in (3, 0, 2, 1, 3)]
                assert await other.classify("quadrants", files) == client.classify(
                    "quadrants", files
                )
                assert await other.model_metadata("fixed") == client.model_metadata("fixed")
                assert await other.model_config("fixed") == client.model_config("fixed")
                assert await other.server_name() == client.server_name()
                assert await other.is_ready("quadrants")
                assert not await other.is_ready("unknown")

        asyncio.run(ask())

    def test_runs_calls_side_by_side(self, server: RunningServer) -> None:
        async def ask() -> None:
            async with AsyncClient(server.url) as other:
                batches = [images(2, seed=i) for i in range(16)]
                answers = await asyncio.gather(
                    *(other.infer("batched", {"pixel_values": batch}) for batch in batches)
                )
                for batch, answer in zip(batches, answers, strict=True):
                    np.testing.assert_array_equal(answer["logits"], 8 * batch.reshape(2, 4))

        asyncio.run(ask())

    def test_refuses_the_same(self, server: RunningServer) -> None:
        async def ask() -> None:
            async with AsyncClient(server.url) as other:
                with pytest.raises(UserError, match="model 'none' is not served"):
                    await other.infer("none", {"x": images(1)})
                with pytest.raises(UserError, match=r"no answer from .* within 0\.2 s"):
                    await other.infer("slow", {"turns": np.int64([[4_000]])}, timeout_s=0.2)
            (port,) = free_ports(1)
            async with AsyncClient(f"127.0.0.1:{port}") as nobody:
                assert not await nobody.is_ready()
                with pytest.raises(UserError, match="no Triton server answers"):
                    await nobody.infer("quadrants", {"pixel_values": images(1)})

        asyncio.run(ask())


@pytest.mark.parametrize("module", ["client", "client.aio", "client.inputs.images"])
def test_a_client_imports_neither_torch_nor_onnx(module: str) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {sys.path!r}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "onnx", "onnxruntime", "onnxscript"):
                    raise AssertionError("a client must not import " + name)

        sys.meta_path.insert(0, Refuse())
        import bilateral_serving.{module}
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
