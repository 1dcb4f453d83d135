"""Latency and throughput of a model on a Triton server over gRPC."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio

from bilateral_benchmarks.load.answers import Expected, first_answer
from bilateral_benchmarks.load.generator import Send
from bilateral_benchmarks.load.report import Report, summarise
from bilateral_benchmarks.load.request import is_shared, offsets_of, registered, serialise
from bilateral_benchmarks.load.run import OnProgress, run_load
from bilateral_benchmarks.load.schedule import Load, Plan
from bilateral_benchmarks.report.context import Context
from bilateral_export.tensors import Array
from bilateral_serving.access import call_metadata
from bilateral_serving.client import Client
from bilateral_serving.credentials import open_channel

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_CHANNEL = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
DEFAULT_TIMEOUT_S = 60.0


def bench_served(
    url: str,
    model: str,
    arrays: Mapping[str, Array],
    *,
    duration_s: float = 9.0,
    warmup_s: float = 2.0,
    concurrency: int = 1,
    max_duration_s: float | None = None,
    load: Load | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    shared_memory: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Measure the response time and throughput of a served model.

    The request is serialised once and sent again and again; its answer counts as complete when its
    bytes are here. What serialising and parsing cost is in the breakdown. Inputs in shared memory
    are written there anew for each request. Every answer is compared with the first, which must be
    as the model declares (`bilateral_benchmarks.load.answers`); one that differs has failed.

    Args:
        url: "host:port" of the server's gRPC service.
        model: The model's name.
        arrays: One request: an array per input, by name, the batch along the first axis.
        duration_s: Length of the measurement.
        warmup_s: Least length of the warm-up before it.
        concurrency: Callers of a closed loop, each sending when its last answer has come.
        max_duration_s: Measure up to so long where the windows do not agree.
        load: Another load than a closed loop of one process; then `concurrency` is ignored.
        timeout_s: Deadline of one request. One that misses it is an error.
        shared_memory: Whether large inputs go through shared memory. None: as `Client` does it, if
            the server is on this machine.
        on_progress: Called about ten times a second.

    Raises:
        UserError: No server answers, the model is unknown, does not take the arrays or does not
            answer as it declares, or every request failed.
    """
    expected = try_out(url, model, arrays, timeout_s)
    shared = is_shared(url, arrays, shared_memory)
    target = GrpcTarget(
        url,
        b"" if shared else serialise(model, arrays),
        timeout_s,
        expected=expected,
        shared=SharedInputs(model, arrays) if shared else None,
    )
    load = load or Load(concurrency=concurrency)
    plan = Plan.lasting(duration_s, warmup_s, max_duration_s)
    context = Context.now()
    outcome = run_load(target, load, plan, on_progress)
    subject = f"{model} at {url}" + (", inputs in shared memory" if shared else "")
    return summarise("served", subject, arrays, load, plan, outcome, context)


def try_out(url: str, model: str, arrays: Mapping[str, Array], timeout_s: float) -> Expected:
    """Send one request; what every other answer to it must be like.

    Raises:
        UserError: The server is not there, does not know the model, refuses the request, or does
            not answer as the model declares.
    """
    with Client(url, timeout_s=timeout_s) as client:
        info = client.model_metadata(model)
        outputs = client.infer(model, arrays)
    return first_answer(model, info.inputs, arrays, info.outputs, outputs)


@dataclass(frozen=True)
class SharedInputs:
    """A request whose large inputs lie in shared memory, which each generating process has anew."""

    model: str
    arrays: Mapping[str, Array]


@dataclass
class GrpcTarget:
    """A served model and one request for it.

    Attributes:
        url: "host:port" of the gRPC service.
        request: A serialised ModelInferRequest, where `shared` does not say otherwise.
        timeout_s: Deadline of one request.
        expected: What the answers are compared with; None: they are not looked at.
        shared: What to send by way of shared memory instead.
    """

    url: str
    request: bytes
    timeout_s: float = DEFAULT_TIMEOUT_S
    expected: Expected | None = None
    shared: SharedInputs | None = None
    _closing: contextlib.AsyncExitStack = field(
        default_factory=contextlib.AsyncExitStack, repr=False
    )

    async def __aenter__(self) -> Send:
        """Open a channel; what it returns sends the request once."""
        channel = open_channel(self.url, _CHANNEL, module=grpc.aio)
        self._closing.push_async_callback(channel.close)
        await channel.channel_ready()
        infer = channel.unary_unary(_INFER)
        request, timeout_s, shared = self.request, self.timeout_s, self.shared
        if shared:
            offsets, size = offsets_of(shared.arrays)
            region = self._closing.enter_context(registered(self.url, size))
            request = serialise(shared.model, shared.arrays, region)
            large = [(offset, shared.arrays[name]) for name, offset in offsets.items()]

        expected, right, metadata = self.expected, b"", call_metadata(self.url)

        async def send() -> tuple[float, str | None]:
            nonlocal right
            try:
                if shared:
                    for offset, array in large:
                        region.write(offset, array)
                answer = await infer(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return time.monotonic(), f"{error.code().name}: {error.details()}"
            done = time.monotonic()
            # The same bytes, which is the rule, need no second look.
            if expected is None or answer == right:
                return done, None
            if (problem := expected.problem(answer)) is None:
                right = answer
            return done, problem

        return send

    async def __aexit__(self, *error: object) -> None:
        """Close the channel and give the memory back."""
        await self._closing.aclose()
