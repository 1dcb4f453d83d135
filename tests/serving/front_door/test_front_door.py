"""What callers can do to each other through a front door: nothing; and how it lives and ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.builders import tiny_models as models
from tests.builders.waiting import wait_until_busy
from tests.serving.front_door.door import (
    OWN_CONNECTION,
    TOKEN,
    Door,
    front_door,
    request,
    started,
)
from tests.serving.front_door.streams_that_are_killed import ENDLESS, has_begun, start_writers
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bilateral_serving import language, repository
from bilateral_serving.config import Settings
from bilateral_serving.front_door import FrontDoorOptions, requests

IMAGE = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
# As many turns as take about 30 ms on one core of 2026, and about a second.
SHORT, LONG = 30, 1000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("behind")
    one = Settings(threads=1)
    repository.add("quadrants", models.quadrants(root / "q.onnx"), root / "models", settings=one)
    alone = Settings(threads=1, max_batch_size=1)
    repository.add("slow", models.slow(root / "s.onnx"), root / "models", settings=alone)
    # It never draws the word that ends a text.
    endless = models.words(root / "w.onnx", likely=(0, 0, 1))
    stream = Settings(threads=1, stream=True)
    repository.add("words", endless, root / "models", settings=stream)
    return root / "models"


@pytest.fixture(scope="module")
def door(served: Path) -> Iterator[Door]:
    with front_door(served) as started_door:
        yield started_door
        assert started_door.triton.poll() is None


@pytest.fixture(scope="module")
def mortal(served: Path) -> Iterator[Door]:
    with front_door(served, hold_s=60) as started_door:
        yield started_door


def turns(count: int, **changes: Any) -> pb.ModelInferRequest:
    message = request("slow", turns=np.array([[count]]))
    for name, value in changes.items():
        message.parameters[name].int64_param = value
    return message


def ask(stub: service_pb2_grpc.GRPCInferenceServiceStub, image: np.ndarray = IMAGE) -> None:
    """Ask for an image's logits, which must be right to the bit."""
    answer = stub.ModelInfer(request("quadrants", pixel_values=image), timeout=60)
    got = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert np.array_equal(got, 8 * image.ravel())


class TestCallersThatLeave:
    def test_late_calls_end_nobody_elses(self, door: Door) -> None:
        def late(seed: int) -> int:
            chance = np.random.default_rng(seed)
            ended = 0
            with door.stub() as stub:
                for _ in range(60):
                    deadline = chance.choice([0.001, 0.01, 0.05])
                    call = stub.ModelInfer.future(turns(SHORT), timeout=deadline)
                    ended += call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return ended

        with ThreadPoolExecutor(16) as threads, door.stub() as stub:
            calls = [threads.submit(late, seed) for seed in range(16)]
            while not all(call.done() for call in calls):
                ask(stub)
        assert sum(call.result() for call in calls) > 100

    def test_nor_do_cancelled_ones(self, door: Door) -> None:
        async def cancel_all() -> int:
            async with grpc.aio.insecure_channel(door.url, options=OWN_CONNECTION) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                cancelled = 0
                for _ in range(20):
                    calls = [stub.ModelInfer(turns(SHORT)) for _ in range(10)]
                    await asyncio.sleep(0.02)
                    cancelled += sum(call.cancel() for call in calls)
                return cancelled

        assert asyncio.run(cancel_all()) > 100
        with door.stub() as stub:
            ask(stub)

    def test_a_late_caller_is_told_in_time(self, door: Door) -> None:
        with door.stub() as stub:
            began = time.monotonic()
            call = stub.ModelInfer.future(turns(4 * LONG), timeout=0.2)
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - began < 10
            # It runs to its end, alone: the next one waits for it and is answered.
            assert stub.ModelInfer(turns(1), timeout=120).outputs

    def test_a_burst_of_calls_cancels_none(self, door: Door) -> None:
        # gRPC's own server cancels at random what goes beyond a thousand.
        with contextlib.ExitStack() as stack:
            channels = [
                stack.enter_context(grpc.insecure_channel(door.url, options=OWN_CONNECTION))
                for _ in range(8)
            ]
            ready = [channel.unary_unary(requests.LIVE) for channel in channels]
            calls = [call.future(b"", timeout=100) for _ in range(500) for call in ready]
            assert {call.code() for call in calls} == {grpc.StatusCode.OK}

    def test_a_flood_of_late_calls_does_not_starve_a_patient_caller(self, served: Path) -> None:
        with front_door(served, requests_per_caller=4) as door:
            stop = threading.Event()

            def flood() -> None:
                with door.stub() as stub:
                    while not stop.is_set():
                        calls = [
                            stub.ModelInfer.future(turns(SHORT), timeout=0.01) for _ in range(200)
                        ]
                        for call in calls:
                            call.exception()

            with ThreadPoolExecutor(1) as threads, door.stub() as stub:
                flooding = threads.submit(flood)
                try:
                    for _ in range(8):
                        # Behind at most four of the other's: none would come through in a queue
                        # for all, which grows by thousands a second.
                        assert stub.ModelInfer(turns(1), timeout=60).outputs
                finally:
                    stop.set()
                flooding.result()


class TestStreams:
    @staticmethod
    def first_word(door: Door) -> str:
        message = language.to_request("words", "", "mine", "word", language.sampling(max_tokens=1))
        with door.stub() as stub:
            answers = list(stub.ModelStreamInfer(iter([message]), timeout=120))
        assert not any(answer.error_message for answer in answers)
        return answers[0].infer_response.raw_output_contents[0][4:].decode()

    def test_of_killed_clients_end_and_end_nobody_elses(self, door: Door) -> None:
        expected = self.first_word(door)
        # Twelve, where the model writes eight at once: none may go on writing.
        for _ in range(3):
            writers = start_writers(door.url, 4)
            assert all(has_begun(writer) for writer in writers)
            for writer in writers:
                writer.kill()
                writer.wait()
        assert self.first_word(door) == expected

    def test_that_are_cancelled_or_late_are_no_other(self, door: Door) -> None:
        for count in range(12):
            name = f"stream {count}"
            message = language.to_request("words", "", name, "word", ENDLESS)
            with door.stub() as stub:
                answers = stub.ModelStreamInfer(iter([message]), timeout=0.3 if count % 2 else None)
                if count % 2:
                    with pytest.raises(grpc.RpcError, match="DEADLINE"):
                        list(answers)
                else:
                    assert next(answers).infer_response.id == name
                    answers.cancel()
        assert self.first_word(door)

    @pytest.mark.parametrize("name", ["1", ""])
    def test_of_the_same_id_are_nobody_elses(self, door: Door, name: str) -> None:
        message = language.to_request("words", "", name, "word", ENDLESS)
        with door.stub() as stub, door.stub() as other:
            staying = stub.ModelStreamInfer(iter([message]), timeout=240)
            next(staying)
            going = other.ModelStreamInfer(iter([message]), timeout=60)
            next(going)
            going.cancel()
            leave = language.to_leave(message)  # of a stranger, by name
            list(other.ModelStreamInfer(iter([leave]), timeout=60))
            # It goes on well beyond what was under way when the others left.
            for _, answer in zip(range(2000), staying, strict=False):
                assert answer.infer_response.id == name
                assert len(answer.infer_response.outputs) == 3
            staying.cancel()
        assert self.first_word(door)

    def test_are_left_by_their_own_message(self, door: Door) -> None:
        message = language.to_request("words", "", "mine", "word", ENDLESS)
        with door.stub() as stub:
            more = threading.Event()

            def both() -> Iterator[pb.ModelInferRequest]:
                yield message
                more.wait(60)
                yield language.to_leave(message)

            answers = stub.ModelStreamInfer(both(), timeout=60)
            next(answers)
            more.set()
            last = list(answers)[-1]
        assert last.infer_response.id == "mine"
        assert last.infer_response.parameters["triton_final_response"].bool_param

    def test_carry_many_requests_in_order(self, door: Door) -> None:
        with door.stub() as stub:
            messages = [request("quadrants", pixel_values=IMAGE + number) for number in range(100)]
            answers = list(stub.ModelStreamInfer(iter(messages), timeout=60))
        got = [a.infer_response.raw_output_contents[0] for a in answers]
        assert got == [(8 * (IMAGE + number)).tobytes() for number in range(100)]

    def test_are_bounded_and_places_come_back(self, served: Path) -> None:
        with front_door(served, streams_per_caller=2) as door, door.stub() as stub:
            ends = [threading.Event() for _ in range(2)]

            def until(end: threading.Event) -> Iterator[pb.ModelInferRequest]:
                yield request("quadrants", pixel_values=IMAGE)
                end.wait(60)

            streams = [stub.ModelStreamInfer(until(end), timeout=60) for end in ends]
            for stream in streams:
                next(stream)
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.ModelStreamInfer(iter([]), timeout=60))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for end, stream in zip(ends, streams, strict=True):
                end.set()
                list(stream)
            message = request("quadrants", pixel_values=IMAGE)
            assert len(list(stub.ModelStreamInfer(iter([message]), timeout=60))) == 1


class TestTritonThatEnds:
    """With a server of their own, which they kill."""

    @pytest.fixture
    def door(self, mortal: Door) -> Door:
        return mortal

    def test_requests_wait_for_the_next_one(self, door: Door) -> None:
        door.kill_triton()
        with ThreadPoolExecutor(8) as threads, door.stub() as stub:
            calls = [threads.submit(ask, stub, IMAGE + number) for number in range(50)]
            door.start_triton()
            for call in calls:
                call.result()

    def test_a_request_under_way_is_sent_again_once(self, door: Door) -> None:
        with door.stub() as stub:
            call = stub.ModelInfer.future(turns(4 * LONG), timeout=120)
            wait_until_busy(door.model("slow"))
            door.kill_triton()
            door.start_triton()
            assert call.result().outputs

    def test_and_not_twice(self, door: Door) -> None:
        with door.stub() as stub:
            call = stub.ModelInfer.future(turns(200 * LONG), timeout=240)
            for _ in range(2):
                assert not call.done()
                wait_until_busy(door.model("slow"))  # it was sent
                door.kill_triton()
                door.start_triton()
            assert call.code() is grpc.StatusCode.UNAVAILABLE

    def test_one_of_a_sequence_not_at_all(self, door: Door) -> None:
        with door.stub() as stub:
            call = stub.ModelInfer.future(turns(40 * LONG, sequence_id=7), timeout=120)
            wait_until_busy(door.model("slow"))
            door.kill_triton()
            door.start_triton()
            assert call.code() is grpc.StatusCode.UNAVAILABLE

    def test_a_stream_ends_with_a_reason(self, door: Door) -> None:
        message = language.to_request("words", "", "x", "word", ENDLESS)
        with door.stub() as stub:
            answers = stub.ModelStreamInfer(iter([message]), timeout=120)
            next(answers)
            door.kill_triton()
            with pytest.raises(grpc.RpcError) as caught:
                list(answers)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        door.start_triton()
        with door.stub() as stub:
            ask(stub)

    def test_health_says_so_at_once(self, door: Door) -> None:
        door.kill_triton()
        try:
            with door.stub() as stub:
                for call, message in (
                    (stub.ServerLive, pb.ServerLiveRequest()),
                    (stub.ServerReady, pb.ServerReadyRequest()),
                    (stub.ModelReady, pb.ModelReadyRequest(name="quadrants")),
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        call(message, timeout=60)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            door.start_triton()

    def test_requests_wait_no_longer_than_they_may(self) -> None:
        options = FrontDoorOptions(
            listen="127.0.0.1:0", upstream="unix:/nowhere", token=TOKEN, hold_s=0.5
        )
        process, listening = started(options)
        with grpc.insecure_channel(listening.grpc, options=OWN_CONNECTION) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(2):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(turns(1), timeout=60)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "tritonserver is away" in str(caught.value.details())
        process.terminate()
        assert process.wait(60) == 0


class TestProcess:
    def test_gives_health_the_answers_of_triton(self, door: Door) -> None:
        service = "/grpc.health.v1.Health/"
        with grpc.insecure_channel(door.url, options=OWN_CONNECTION) as channel:
            assert channel.unary_unary(service + "Check")(b"", timeout=60) == b"\x08\x01"
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                next(channel.unary_stream(service + "Watch")(b"", timeout=60))

    def test_answers_what_is_under_way_when_it_stops(self, served: Path) -> None:
        with front_door(served) as door, door.stub() as stub:
            call = stub.ModelInfer.future(turns(2 * LONG), timeout=120)
            wait_until_busy(door.model("slow"))
            door.process.terminate()
            assert call.result().outputs
            assert door.process.wait(60) == 0

    def test_ends_with_its_parent(self) -> None:
        options = FrontDoorOptions(listen="127.0.0.1:0", upstream="unix:/nowhere", token=TOKEN)
        script = textwrap.dedent(
            """
            import os, subprocess, sys
            options = sys.argv[1].replace('"parent":null', f'"parent":{os.getpid()}')
            process = subprocess.Popen(
                [sys.executable, "-m", "bilateral_serving.front_door"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            process.stdin.write(options.encode())
            process.stdin.close()
            process.stdout.readline()
            print(process.pid, flush=True)
            os.kill(os.getpid(), 9)
            """
        )
        parent = subprocess.run(
            [sys.executable, "-c", script, options.model_dump_json()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        pid, end = int(parent.stdout), time.monotonic() + 60
        while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
            assert time.monotonic() < end
            time.sleep(0.05)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]"])
    def test_listens_where_it_is_told(self, host: str, tmp_path: Path) -> None:
        if "::" in host and not has_ipv6():
            pytest.skip("this machine has no IPv6")
        options = FrontDoorOptions(
            listen=f"{host}:0",
            http_listen=f"{host}:0",
            http_upstream=str(tmp_path / "http"),
            upstream="unix:/nowhere",
            token=TOKEN,
        )
        process, listening = started(options)
        reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        port = listening.grpc.rpartition(":")[2]
        with grpc.insecure_channel(f"{reached}:{port}", options=OWN_CONNECTION) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ServerLive(pb.ServerLiveRequest(), timeout=60)
            assert "failed to connect" in str(caught.value.details())  # to Triton
        assert listening.http is not None
        port = listening.http.rpartition(":")[2]
        connection = http.client.HTTPConnection(f"{reached}:{port}", timeout=60)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 503
        connection.close()
        process.terminate()
        assert process.wait(60) == 0

    @pytest.mark.parametrize("option", ["listen", "http_listen"])
    def test_a_port_that_is_taken_is_one_line(self, door: Door, option: str) -> None:
        taken = {"listen": "127.0.0.1:0", "http_upstream": "/nowhere", option: door.url}
        result = _run(upstream="unix:/nowhere", token=TOKEN, **taken)
        assert result.returncode == 2
        assert result.stderr.decode().count("\n") == 1
        assert door.url.rpartition(":")[2] in result.stderr.decode()

    def test_options_that_cannot_be_are_a_line_each_and_no_token(self) -> None:
        secret = "short secret"
        result = _run(listen="127.0.0.1:0", upstream="unix:/nowhere", token=secret, hold_s=-1)
        assert result.returncode == 2
        assert {line.split()[3] for line in result.stderr.decode().splitlines()} == {
            "token:",
            "hold_s:",
        }
        assert secret not in result.stderr.decode()

    def test_needs_neither_torch_nor_onnx(self) -> None:
        script = (
            "import sys, bilateral_serving.front_door.__main__, "
            "bilateral_serving.front_door.http_proxy; "
            "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
        )
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        assert result.stdout.strip() == b"[]"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _run(**options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bilateral_serving.front_door"],
        input=json.dumps(options).encode(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=60,
        check=False,
    )
