"""The supervisor's own connection to tritonserver, beside the callers'.

Nothing sent here is ever cancelled, and so nothing has a deadline: Triton 2.51 dies of calls that
are cancelled. Whoever asks looks after a while whether the answer is there, or waits in a thread of
its own until the server has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bilateral_serving import language
from bilateral_serving.access import METADATA_KEY
from bilateral_serving.probes import zeros
from bilateral_serving.transport import TRITON_CHANNEL

_PATIENCE_S = 10.0

Probe = Callable[[], str | None]
"""Asks a model for an answer and returns what went wrong, or None; waits as long as it takes."""


@dataclass(frozen=True)
class ModelState:
    """What the server says of one version of a model: why it is not ready, or None if it is."""

    name: str
    version: str
    reason: str | None


class NoAnswerError(Exception):
    """The server did not answer: the connection broke, or the time is over."""


class Upstream:
    """A connection to a server that may not be there yet.

    Args:
        target: gRPC's address of it.
        token: What opens its closed services.
    """

    def __init__(self, target: str, token: str) -> None:
        self._channel = grpc.insecure_channel(
            target,
            # Each object has a connection of its own, which ends with the server.
            options=[*TRITON_CHANNEL, ("grpc.use_local_subchannel_pool", 1)],
        )
        self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = ((METADATA_KEY, token),)

    def close(self) -> None:
        """Close the connection; to be called when the server has ended."""
        self._channel.close()

    def ask_name(self) -> Any:
        """Ask for the server's name (`--id`); a future of gRPC."""
        return self._service.ServerMetadata.future(service_pb2.ServerMetadataRequest())

    def model_states(self) -> tuple[ModelState, ...]:
        """Return what the server says of the models in its repository.

        Raises:
            NoAnswerError: It did not answer.
        """
        answer = self._answer("RepositoryIndex", service_pb2.RepositoryIndexRequest())
        return tuple(
            ModelState(model.name, model.version, None if model.state == "READY" else model.reason)
            for model in answer.models
        )

    def probe(self, model: str) -> Probe | None:
        """Return a probe by real inference; None for a model that zeros say nothing about.

        Raises:
            NoAnswerError: The server did not describe it.
        """
        config = self._answer("ModelConfig", service_pb2.ModelConfigRequest(name=model)).config
        if config.HasField("sequence_batching"):
            return None
        if not config.model_transaction_policy.decoupled:
            return lambda: self._infer(zeros(config))
        if {"text", "max_tokens"} <= {tensor.name for tensor in config.input}:
            # A message to leave a stream that there is not: the model answers that it has ended.
            nothing = service_pb2.ModelInferRequest(model_name=model, id="")
            return lambda: self._stream(language.to_leave(nothing))
        return None

    def _answer(self, method: str, request: Any) -> Any:
        call = getattr(self._service, method).future(request, metadata=self._metadata)
        try:
            return call.result(timeout=_PATIENCE_S)
        except (grpc.RpcError, grpc.FutureTimeoutError) as error:
            raise NoAnswerError(method) from error

    def _infer(self, request: service_pb2.ModelInferRequest) -> str | None:
        try:
            self._service.ModelInfer(request)
        except grpc.RpcError as error:
            return str(error.details())
        return None

    def _stream(self, request: service_pb2.ModelInferRequest) -> str | None:
        try:
            for answer in self._service.ModelStreamInfer(iter([request])):
                if answer.error_message:
                    return str(answer.error_message)
        except grpc.RpcError as error:
            return str(error.details())
        return None
