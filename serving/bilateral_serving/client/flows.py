"""The logic of both clients without any waiting: every call as a flow of steps."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_export.tensors import Array
from bilateral_serving import language, probes, raw, values
from bilateral_serving.client import errors, requests, shared_memory
from bilateral_serving.client.balance import Outcome
from bilateral_serving.client.connection import Connection, OnEnd, process
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.endpoints import Access, Endpoints, StreamPlace
from bilateral_serving.client.inputs import segmentation
from bilateral_serving.client.inputs.files import Source
from bilateral_serving.client.inputs.segmentation import Classes
from bilateral_serving.client.requests import ModelInfo, Prediction
from bilateral_serving.client.retries import Retries
from bilateral_serving.client.shared_memory import Region
from bilateral_serving.client.steps import Compute, Flow, Gather, Pause, Wait


class Flows:
    """The calls of one client. See `Client` for what each does and takes."""

    def __init__(
        self, url: str | Sequence[str], timeout_s: float, retries: Retries, access: Access
    ) -> None:
        self._urls = errors.check_urls(url)
        self.url = ",".join(self._urls)
        self.timeout_s = timeout_s
        self.retries = retries
        self._access = access
        self._known: dict[tuple[str, int | None], ModelInfo] = {}
        self._endpoints: dict[tuple[int, int], Endpoints] = {}  # by process
        # What an address that was left out is asked: an inference, once the client knows a model.
        self._probe: tuple[str, Any] = ("ServerReady", pb.ServerReadyRequest())

    def close(self) -> None:
        """Close this process's connections; a forked child leaves its parent's alone."""
        endpoints = self._endpoints.get(process())
        if endpoints:
            endpoints.close()

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
        if len(self._urls) > 1 and (probe := probes.smallest_request(config)) is not None:
            self._probe = ("ModelInfer", probe)
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
        info = info.taking(inputs)
        try:
            requests.check_inputs(info, inputs)
            at = self._here().balancer.choose()
            region = yield from self._region(info, inputs, deadline, at)
            answer = yield from self._send(info, inputs, version, outputs, deadline, region, at)
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
        size: requests.Size | None = None,
    ) -> Flow[list[tuple[Prediction, ...]]]:
        """Return the most probable classes of each input."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        info = yield Compute(partial(requests.at_size, info, size, inputs))
        output_of = requests.classifier_output
        logits = yield from self._answers(info, inputs, output_of, version, timeout_s)
        return requests.predictions(info, logits, k)

    def features(
        self,
        model: str,
        inputs: Sequence[Source],
        version: int | None,
        timeout_s: float | None,
        size: requests.Size | None = None,
    ) -> Flow[Array]:
        """Return the features of each input, `[inputs, ...]`."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        info = yield Compute(partial(requests.at_size, info, size, inputs))
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
        prepare = partial(requests.input_batch, info, inputs)
        if info.raw:
            arrays = yield Compute(partial(requests.file_batch, info, inputs))
        else:
            arrays = {source: (yield Compute(prepare))}
        try:
            answers = yield Gather(
                [
                    self.infer(info.name, piece, version, [target], timeout_s)
                    for piece in requests.pieces(info, arrays)
                ]
            )
        except UserError:
            if info.raw:  # prepared here too, a file that is at fault is named
                yield Compute(prepare)
            raise
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
            if info.raw:
                maps.append((yield from self._mask(info, image, how, version, timeout_s)))
                continue
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

    def _mask(
        self,
        info: ModelInfo,
        image: Source,
        how: SegmentationPreprocessing,
        version: int | None,
        timeout_s: float | None,
    ) -> Flow[Classes]:
        """Return the class of every pixel of an image that the server prepares."""
        file = yield Compute(partial(requests.file_batch, info, [image]))
        try:
            answer = yield from self.infer(info.name, file, version, [raw.MASK], timeout_s)
        except UserError:  # prepared here too, a file that is at fault is named
            yield Compute(partial(segmentation.read_and_cut, image, how))
            raise
        classes: Classes = yield Compute(
            lambda: np.asarray(Image.open(io.BytesIO(answer[raw.MASK].item())))
        )
        return classes

    def stream(self) -> StreamPlace:
        """Return the address for a stream of words that begins now.

        Raises:
            UserError: It is one of HTTP.
        """
        endpoints = self._here()
        index = endpoints.balancer.choose()
        if "://" in self._urls[index]:
            raise UserError(
                f"{self._urls[index]} does not stream words",
                "Give the address of the server's gRPC service.",
            )
        return StreamPlace(self._urls[index], self._access, endpoints.balancer, index)

    def _here(self) -> Endpoints:
        """Return the endpoints of this process; a forked child gets connections of its own."""
        key = process()
        endpoints = self._endpoints.get(key)
        if endpoints is None:
            # Two threads may get here at once: the first one's stays, the other's was never used.
            endpoints = self._endpoints.setdefault(key, Endpoints(self._urls, self._access))
        return endpoints

    def _connection(self, index: int = 0) -> Connection:
        """Return this process's connection to an address."""
        return self._here().connection(index)

    def _call(
        self,
        what: str,
        deadline: Deadline,
        method: str,
        request: Any,
        *,
        at: int | None = None,
        on_end: OnEnd | None = None,
    ) -> Flow[Any]:
        """Return the server's answer to one call.

        A call with `on_end` is not repeated: when it is over, what it used is given back.

        Args:
            what: What is asked, in an error.
            deadline: When the answer must be there.
            method: The call of Triton's gRPC service.
            request: Its message.
            at: The address, for an inference at first only; None: chosen here.
            on_end: Called once at the end of the call.
        """
        endpoints = self._here()
        balancer, attempt, tried = endpoints.balancer, 0, set[int]()
        bound = at is not None and method != "ModelInfer"
        may_repeat = on_end is None and not (bound and len(self._urls) > 1)
        while True:
            index = balancer.choose(tried) if at is None else at
            endpoints.probe(*self._probe)
            call = endpoints.start(index, method, request, on_end)
            try:
                yield Wait(call, deadline.left_s)
            finally:
                endpoints.connection(index).leave(call)
            if not call.done():
                balancer.learn(index, Outcome.SILENT)
                raise errors.late(self._urls[index], deadline, what)
            error = call.exception()
            balancer.learn(index, errors.outcome(error))
            if error is None:
                self.retries.answered()
                return call.result()
            if not isinstance(error, InferenceServerException):
                raise error
            tried.add(index)
            pause = None
            if may_repeat and errors.may_repeat(error, method, self.retries.broken):
                pause = self._pause(error, balancer.has_other(tried), attempt, deadline)
            if pause is None:
                raise errors.explain(error, self._urls[index], deadline, what) from error
            if pause:
                yield Pause(pause)
                attempt += 1
                tried.clear()
            if not bound:
                at = None
            if method == "ModelInfer":  # what is left of the time is what it may wait in a queue
                requests.set_timeout(request, deadline)

    def _pause(
        self,
        error: InferenceServerException,
        elsewhere: bool,
        attempt: int,
        deadline: Deadline,
    ) -> float | None:
        """Return seconds until a call that failed is made again; None: it is not.

        Elsewhere it is made at once, each address once. That costs nothing of the budget if no
        server was reached: the address is ejected, and the next calls do not find it. A server
        that turns requests away is not asked again.
        """
        if elsewhere:
            return 0.0 if errors.unsent(error) or self.retries.spend() else None
        return None if errors.is_turned_away(error) else self.retries.pause(attempt, deadline)

    def _send(
        self,
        info: ModelInfo,
        inputs: Mapping[str, Array],
        version: int | None,
        outputs: Sequence[str],
        deadline: Deadline,
        region: Region | None,
        at: int | None,
    ) -> Flow[Any]:
        what = requests.named(info.name, version)
        if region is None:
            request = requests.to_request(info, inputs, version, outputs, deadline)
            return (yield from self._call(what, deadline, "ModelInfer", request, at=at))
        assert at is not None
        regions = self._connection(at).regions
        try:
            request = requests.to_request(info, inputs, version, outputs, deadline, region)
        except BaseException:
            regions.give(region)
            raise
        try:
            return (
                yield from self._call(
                    what,
                    deadline,
                    "ModelInfer",
                    request,
                    at=at,
                    on_end=lambda _: regions.give(region),
                )
            )
        except UserError as error:
            broke = self.retries.broken and errors.lost_answer(error)
            if not (broke or errors.lost_region(error) or errors.needs_token(error)):
                raise
        # The server was started anew, or is about to be.
        regions.drop_free()
        return (yield from self._send(info, inputs, version, outputs, deadline, None, None))

    def _region(
        self, info: ModelInfo, inputs: Mapping[str, Array], deadline: Deadline, at: int
    ) -> Flow[Region | None]:
        """Return shared memory for a request's large tensors; None: they go into the message."""
        regions = self._connection(at).regions
        if not regions.possible:
            return None
        _, size = shared_memory.layout(info.inputs, inputs)
        if not size:
            return None
        region = regions.take(size)
        if region is None:
            yield from self._register(size, deadline, at)
            region = regions.take(size)
        return region

    def _register(self, size: int, deadline: Deadline, at: int) -> Flow[None]:
        """Add a free region, unless there are too many or it does not work."""
        connection = self._connection(at)
        regions = connection.regions
        try:
            yield from self._tidy(deadline, at)
            region = regions.make(size)
            if region is None:
                return
            request = pb.SystemSharedMemoryRegisterRequest(
                name=region.name, key=region.key, byte_size=region.size
            )
            yield from self._call(
                f"shared memory with {self._urls[at]}",
                deadline,
                "SystemSharedMemoryRegister",
                request,
                at=at,
                on_end=partial(regions.registered, region),
            )
        except OSError as error:
            regions.give_up(str(error))
        except UserError as error:
            if errors.needs_token(error) and connection.find_token():
                yield from self._register(size, deadline, at)
                return
            reason = errors.refusal(error)
            if reason is not None:
                regions.give_up(reason)
            elif len(self._urls) == 1 or isinstance(error, errors.LateError):
                raise

    def _tidy(self, deadline: Deadline, at: int) -> Flow[None]:
        """Remove what killed clients left, once."""
        regions = self._connection(at).regions
        if regions.tidy:
            return
        regions.tidy = True
        try:
            status = yield from self._call(
                "the server",
                deadline,
                "SystemSharedMemoryStatus",
                pb.SystemSharedMemoryStatusRequest(),
                at=at,
            )
        except BaseException:
            regions.tidy = False
            raise
        shared_memory.remove_abandoned_files()
        for name in shared_memory.abandoned(status.regions):
            request = pb.SystemSharedMemoryUnregisterRequest(name=name)
            try:
                yield from self._call(
                    "the server", deadline, "SystemSharedMemoryUnregister", request, at=at
                )
            except UserError:  # a request still uses it
                continue
