"""Measure a model on a Triton server over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from bilateral_benchmarks.generator import Send
from bilateral_benchmarks.load import Load, Plan
from bilateral_benchmarks.report import Context, Report, summarise
from bilateral_benchmarks.run import OnProgress, run_load
from bilateral_export.tensors import Array
from bilateral_serving.client import Client

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_CHANNEL = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


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
    timeout_s: float = 60.0,
    on_progress: OnProgress | None = None,
) -> Report:
    """Measure the response time and throughput of a served model.

    The request is serialised once and sent again and again; its answer counts as complete when its
    bytes are here. What serialising and parsing cost is in the breakdown.

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
        on_progress: Called about ten times a second.

    Raises:
        UserError: No server answers, the model is unknown or does not take the arrays, or every
            request failed.
    """
    target = GrpcTarget(url, model_request(url, model, arrays, timeout_s), timeout_s)
    load = load or Load(concurrency=concurrency)
    plan = Plan.lasting(duration_s, warmup_s, max_duration_s)
    context = Context.now()
    outcome = run_load(target, load, plan, on_progress)
    return summarise("served", f"{model} at {url}", arrays, load, plan, outcome, context)


def model_request(url: str, model: str, arrays: Mapping[str, Array], timeout_s: float) -> bytes:
    """One serialised ModelInfer request, tried out once.

    Raises:
        UserError: The server is not there, does not know the model, or refuses the request.
    """
    with Client(url, timeout_s=timeout_s) as client:
        client.infer(model, arrays)
    return serialise(model, arrays)


def serialise(model: str, arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a ModelInferRequest, tensors inline."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return bytes(request.SerializeToString())


@dataclass
class GrpcTarget:
    """A served model and one request for it.

    Attributes:
        url: "host:port" of the gRPC service.
        request: A serialised ModelInferRequest.
        timeout_s: Deadline of one request.
    """

    url: str
    request: bytes
    timeout_s: float = 60.0
    _channel: grpc.aio.Channel | None = field(default=None, repr=False)

    async def __aenter__(self) -> Send:
        """Open a channel; what it returns sends the request once."""
        self._channel = grpc.aio.insecure_channel(self.url, options=_CHANNEL)
        await self._channel.channel_ready()
        infer = self._channel.unary_unary(_INFER)
        request, timeout_s = self.request, self.timeout_s

        async def send() -> str | None:
            try:
                await infer(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            return None

        return send

    async def __aexit__(self, *error: object) -> None:
        """Close the channel."""
        assert self._channel is not None
        await self._channel.close()
