"""The logic of both clients without any waiting: every call as a flow of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving import language, values
from bilateral_serving.client import errors, requests, shared_memory
from bilateral_serving.client.connection import Connection, OnEnd, process
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.inputs import segmentation
from bilateral_serving.client.inputs.files import Source
from bilateral_serving.client.inputs.segmentation import Classes
from bilateral_serving.client.requests import ModelInfo, Prediction
from bilateral_serving.client.shared_memory import Region
from bilateral_serving.client.steps import Compute, Flow, Gather, Pause, Wait
from bilateral_serving.credentials import Credentials


class Flows:
    """The calls of one client. See `Client` for what each does and takes."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        retries: int,
        shared_memory: bool | None,
        token: str | None,
        credentials: Credentials | None,
    ) -> None:
        self.url = errors.check_url(url)
        self.timeout_s = timeout_s
        self.retries = retries
        self._known: dict[tuple[str, int | None], ModelInfo] = {}
        self._connect = partial(Connection, url, token, shared_memory, credentials)
        self._connections: dict[tuple[int, int], Connection] = {}  # by process

    def close(self) -> None:
        """Close this process's connection; a forked child leaves its parent's alone."""
        connection = self._connections.get(process())
        if connection:
            connection.close()

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return the deadline of a call that begins now."""
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def is_ready(self, model: str | None, timeout_s: float | None) -> Flow[bool]:
        """Return whether the server or the model is ready."""
        what = "the server" if model is None else requests.named(model, None)
        deadline = self.deadline(timeout_s)
        try:
            if model is None:
                answer = yield from self._call(
                    what, deadline, "ServerReady", pb.ServerReadyRequest()
                )
            else:
                answer = yield from self._call(
                    what, deadline, "ModelReady", pb.ModelReadyRequest(name=model)
                )
        except UserError:
            return False
        return bool(answer.ready)

    def server_name(self, timeout_s: float | None) -> Flow[str]:
        """Return the name that the server gives itself."""
        deadline, request = self.deadline(timeout_s), pb.ServerMetadataRequest()
        answer = yield from self._call("the server", deadline, "ServerMetadata", request)
        return str(answer.name)

    def describe(self, model: str, version: int | None, deadline: Deadline) -> Flow[ModelInfo]:
        """Return what a model takes and gives."""
        what = requests.named(model, version)
        request = pb.ModelMetadataRequest(name=model, version=requests.version_text(version))
        metadata = yield from self._call(what, deadline, "ModelMetadata", request)
        config = yield from self.config(model, version, deadline)
        return requests.model_info(metadata, config, version)

    def config(self, model: str, version: int | None, deadline: Deadline) -> Flow[Any]:
        """Return a model's configuration."""
        what = requests.named(model, version)
        request = pb.ModelConfigRequest(name=model, version=requests.version_text(version))
        return (yield from self._call(what, deadline, "ModelConfig", request)).config

    def check_stream(self, model: str, version: int | None, deadline: Deadline) -> Flow[None]:
        """Refuse a model that is not served as a stream of words."""
        language.check_stream((yield from self.config(model, version, deadline)))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        version: int | None,
        outputs: Sequence[str],
        timeout_s: float | None,
        check_finite: bool = True,
    ) -> Flow[dict[str, Array]]:
        """Run a model on a batch."""
        deadline = self.deadline(timeout_s)
        info = self._known.get((model, version))
        if info is None:
            info = yield from self.describe(model, version, deadline)
            self._known[model, version] = info
        try:
            requests.check_inputs(info, inputs)
            region = yield from self._region(info, inputs, deadline)
            answer = yield from self._send(info, inputs, version, outputs, deadline, region)
        except UserError as error:
            if not isinstance(error, errors.LateError):
                # The model may have changed since it was looked up.
                self._known.pop((model, version), None)
            raise
        arrays = requests.to_arrays(answer)
        if check_finite:
            values.check_finite(requests.named(model, version), arrays)
        return arrays

    def classify(
        self,
        model: str,
        inputs: Sequence[Source],
        k: int,
        version: int | None,
        timeout_s: float | None,
    ) -> Flow[list[tuple[Prediction, ...]]]:
        """Return the most probable classes of each input."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        output_of = requests.classifier_output
        logits = yield from self._answers(info, inputs, output_of, version, timeout_s)
        return requests.predictions(info, logits, k)

    def features(
        self, model: str, inputs: Sequence[Source], version: int | None, timeout_s: float | None
    ) -> Flow[Array]:
        """Return the features of each input, `[inputs, ...]`."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        output_of = requests.features_output
        return (yield from self._answers(info, inputs, output_of, version, timeout_s))

    def _answers(
        self,
        info: ModelInfo,
        inputs: Sequence[Source],
        output_of: Callable[[ModelInfo], str],
        version: int | None,
        timeout_s: float | None,
    ) -> Flow[Array]:
        """Return one output of a model with one input, a row for each of the files."""
        source, target = requests.classifier_input(info), output_of(info)
        batch = yield Compute(partial(requests.input_batch, info, inputs))
        answers = yield Gather(
            [
                self.infer(info.name, piece, version, [target], timeout_s)
                for piece in requests.pieces(info, {source: batch})
            ]
        )
        return np.concatenate([answer[target] for answer in answers])

    def segment(
        self, model: str, images: Sequence[Source], version: int | None, timeout_s: float | None
    ) -> Flow[list[Classes]]:
        """Return the class of every pixel of each image."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        how = requests.segmenter_preprocessing(info)
        source, target = info.inputs[0].name, info.outputs[0].name
        maps = []
        for image in images:
            windows = yield Compute(partial(segmentation.read_and_cut, image, how))
            answers = yield Gather(
                [
                    self.infer(model, piece, version, (), timeout_s)
                    for piece in requests.pieces(info, {source: windows.pixels})
                ]
            )
            classes = np.concatenate([answer[target] for answer in answers])
            maps.append(segmentation.stitch(classes, windows))
        return maps

    def _connection(self) -> Connection:
        """Return the connection of this process; a forked child gets one of its own."""
        key = process()
        connection = self._connections.get(key)
        if connection is None:
            # Two threads may get here at once: the first one's stays, the other's was never used.
            connection = self._connections.setdefault(key, self._connect())
        return connection

    def _call(
        self,
        what: str,
        deadline: Deadline,
        method: str,
        request: Any,
        *,
        on_end: OnEnd | None = None,
    ) -> Flow[Any]:
        """Return one gRPC call: the server's answer.

        A call with `on_end` is not repeated: when it is over, what it used is given back.
        """
        connection = self._connection()
        attempt = 0 if on_end is None else self.retries
        while True:
            call = connection.start(method, request, on_end)
            try:
                yield Wait(call, deadline.left_s)
            finally:
                connection.leave(call)
            if not call.done():
                raise errors.late(self.url, deadline, what)
            error = call.exception()
            if error is None:
                return call.result()
            if not isinstance(error, InferenceServerException):
                raise error
            pause = errors.pause_before_retry(error, attempt, self.retries, deadline)
            if pause is None:
                raise errors.explain(error, self.url, deadline, what) from error
            yield Pause(pause)
            attempt += 1

    def _send(
        self,
        info: ModelInfo,
        inputs: Mapping[str, Array],
        version: int | None,
        outputs: Sequence[str],
        deadline: Deadline,
        region: Region | None,
    ) -> Flow[Any]:
        regions = self._connection().regions
        what = requests.named(info.name, version)
        try:
            request = requests.to_request(info, inputs, version, outputs, deadline, region)
        except BaseException:
            if region:
                regions.give(region)
            raise
        if region is None:
            return (yield from self._call(what, deadline, "ModelInfer", request))
        try:
            return (
                yield from self._call(
                    what,
                    deadline,
                    "ModelInfer",
                    request,
                    on_end=lambda _: regions.give(region),
                )
            )
        except UserError as error:
            if not (errors.lost_region(error) or errors.needs_token(error)):
                raise
        # The server was started anew, or is about to be; the request was not executed.
        regions.drop_free()
        return (yield from self._send(info, inputs, version, outputs, deadline, None))

    def _region(
        self, info: ModelInfo, inputs: Mapping[str, Array], deadline: Deadline
    ) -> Flow[Region | None]:
        """Return shared memory for a request's large tensors; None: they go into the message."""
        _, size = shared_memory.layout(info.inputs, inputs)
        regions = self._connection().regions
        if not size or not regions.possible:
            return None
        region = regions.take(size)
        if region is None:
            yield from self._register(size, deadline)
            region = regions.take(size)
        return region

    def _register(self, size: int, deadline: Deadline) -> Flow[None]:
        """Add a free region, unless there are too many or it does not work."""
        connection = self._connection()
        regions = connection.regions
        try:
            yield from self._tidy(deadline)
            region = regions.make(size)
            if region is None:
                return
            request = pb.SystemSharedMemoryRegisterRequest(
                name=region.name, key=region.key, byte_size=region.size
            )
            yield from self._call(
                f"shared memory with {self.url}",
                deadline,
                "SystemSharedMemoryRegister",
                request,
                on_end=partial(regions.registered, region),
            )
        except OSError as error:
            regions.give_up(str(error))
        except UserError as error:
            if errors.needs_token(error) and connection.find_token():
                yield from self._register(size, deadline)
                return
            reason = errors.refusal(error)
            if reason is None:
                raise
            regions.give_up(reason)

    def _tidy(self, deadline: Deadline) -> Flow[None]:
        """Remove what killed clients left, once."""
        regions = self._connection().regions
        if regions.tidy:
            return
        regions.tidy = True
        try:
            status = yield from self._call(
                "the server",
                deadline,
                "SystemSharedMemoryStatus",
                pb.SystemSharedMemoryStatusRequest(),
            )
        except BaseException:
            regions.tidy = False
            raise
        shared_memory.remove_abandoned_files()
        for name in shared_memory.abandoned(status.regions):
            request = pb.SystemSharedMemoryUnregisterRequest(name=name)
            try:
                yield from self._call(
                    "the server", deadline, "SystemSharedMemoryUnregister", request
                )
            except UserError:  # a request still uses it
                continue
