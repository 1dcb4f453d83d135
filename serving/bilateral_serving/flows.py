"""What both clients do, without waiting for anything: every call as a flow of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving import calls, language, segmentation, shared_memory
from bilateral_serving.calls import ModelInfo, Prediction
from bilateral_serving.deadline import Deadline
from bilateral_serving.failures import check_url, refusal
from bilateral_serving.inputs import Source
from bilateral_serving.segmentation import Classes
from bilateral_serving.shared_memory import Region, Regions
from bilateral_serving.steps import Ask, Compute, Flow, Together

_CLOSING_S = 2.0


class Flows:
    """The calls of one client. See `Client` for what each does and takes."""

    def __init__(self, url: str, timeout_s: float, shared_memory: bool | None) -> None:
        self.url = check_url(url)
        self.timeout_s = timeout_s
        self._known: dict[tuple[str, int | None], ModelInfo] = {}
        self._regions = Regions(url, shared_memory)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The deadline of a call that begins now."""
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def is_ready(self, model: str | None, timeout_s: float | None) -> Flow[bool]:
        """Whether the server or the model is ready."""
        what, deadline = _named(model), self.deadline(timeout_s)
        try:
            if model is None:
                answer = yield Ask(
                    what, deadline, lambda server, left: server.is_server_ready(client_timeout=left)
                )
            else:
                answer = yield Ask(
                    what,
                    deadline,
                    lambda server, left: server.is_model_ready(model, client_timeout=left),
                )
        except UserError:
            return False
        return bool(answer)

    def server_name(self, timeout_s: float | None) -> Flow[str]:
        """The name that the server gives itself."""
        answer = yield Ask(
            "the server",
            self.deadline(timeout_s),
            lambda server, left: server.get_server_metadata(client_timeout=left),
        )
        return str(answer.name)

    def describe(self, model: str, version: int | None, deadline: Deadline) -> Flow[ModelInfo]:
        """What a model takes and gives."""
        metadata = yield Ask(
            calls.named(model, version),
            deadline,
            lambda server, left: server.get_model_metadata(
                model, calls.version_text(version), client_timeout=left
            ),
        )
        config = yield from self.config(model, version, deadline)
        return calls.model_info(metadata, config, version)

    def config(self, model: str, version: int | None, deadline: Deadline) -> Flow[Any]:
        """A model's configuration."""
        answer = yield Ask(
            calls.named(model, version),
            deadline,
            lambda server, left: server.get_model_config(
                model, calls.version_text(version), client_timeout=left
            ),
        )
        return answer.config

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
    ) -> Flow[dict[str, Array]]:
        """Run a model on a batch."""
        deadline = self.deadline(timeout_s)
        info = self._known.get((model, version))
        if info is None:
            info = yield from self.describe(model, version, deadline)
            self._known[model, version] = info
        try:
            calls.check_inputs(info, inputs)
            region = yield from self._region(info, inputs, deadline)
            return (yield from self._send(info, inputs, version, outputs, deadline, region))
        except UserError:
            # The model may have changed since it was looked up.
            self._known.pop((model, version), None)
            raise

    def classify(
        self,
        model: str,
        inputs: Sequence[Source],
        k: int,
        version: int | None,
        timeout_s: float | None,
    ) -> Flow[list[tuple[Prediction, ...]]]:
        """The most probable classes of each input."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        source, target = calls.classifier_input(info), calls.classifier_output(info)
        batch = yield Compute(partial(calls.input_batch, info, inputs))
        answers = yield Together(
            [
                self.infer(model, piece, version, [target], timeout_s)
                for piece in calls.pieces(info, {source: batch})
            ]
        )
        return calls.predictions(info, np.concatenate([answer[target] for answer in answers]), k)

    def segment(
        self, model: str, images: Sequence[Source], version: int | None, timeout_s: float | None
    ) -> Flow[list[Classes]]:
        """The class of every pixel of each image."""
        info = yield from self.describe(model, version, self.deadline(timeout_s))
        how = calls.segmenter_preprocessing(info)
        source, target = info.inputs[0].name, info.outputs[0].name
        maps = []
        for image in images:
            windows = yield Compute(partial(segmentation.read_and_cut, image, how))
            answers = yield Together(
                [
                    self.infer(model, piece, version, (), timeout_s)
                    for piece in calls.pieces(info, {source: windows.pixels})
                ]
            )
            classes = np.concatenate([answer[target] for answer in answers])
            maps.append(segmentation.stitch(classes, windows))
        return maps

    def close(self) -> Flow[None]:
        """Take the shared memory back from the server."""
        for region in self._regions.every():
            yield from self._unregister(region.name, Deadline(_CLOSING_S))
            self._regions.drop(region)

    def _send(
        self,
        info: ModelInfo,
        inputs: Mapping[str, Array],
        version: int | None,
        outputs: Sequence[str],
        deadline: Deadline,
        region: Region | None,
    ) -> Flow[dict[str, Array]]:
        tensors, requested = calls.to_request(info, inputs, outputs, region)
        try:
            result = yield Ask(
                calls.named(info.name, version),
                deadline,
                lambda server, left: server.infer(
                    info.name,
                    tensors,
                    model_version=calls.version_text(version),
                    outputs=requested,
                    timeout=round(left * 1e6),
                    client_timeout=left,
                ),
            )
        except UserError as error:
            said = refusal(error)
            if region and said is not None and "shared memory region" in said:
                # The server was started anew, and refused the request before it was queued.
                for lost in (region, *self._regions.unused()):
                    self._regions.drop(lost)
                return (yield from self._send(info, inputs, version, outputs, deadline, None))
            if region:
                (self._regions.doubt if said is None else self._regions.give)(region)
            raise
        except BaseException:
            if region:
                self._regions.doubt(region)
            raise
        if region:
            self._regions.give(region)
        return calls.to_arrays(result, requested)

    def _region(
        self, info: ModelInfo, inputs: Mapping[str, Array], deadline: Deadline
    ) -> Flow[Region | None]:
        """Shared memory for a request's large tensors; None: they go into the message."""
        _, size = shared_memory.layout(info.inputs, inputs)
        if not size or not self._regions.possible:
            return None
        region = self._regions.take(size)
        if region is None and self._regions.may_grow:
            region = yield from self._register(size, deadline)
        return region

    def _register(self, size: int, deadline: Deadline) -> Flow[Region | None]:
        what = f"shared memory with {self.url}"
        try:
            region = Region(size)
        except OSError as error:
            self._regions.give_up(str(error))
            return None
        try:
            yield from self._tidy(deadline)
            yield Ask(
                what,
                deadline,
                lambda server, left: server.register_system_shared_memory(
                    region.name, region.key, region.size, client_timeout=left
                ),
            )
        except UserError as error:
            region.close()
            reason = refusal(error)
            if reason is None:
                raise
            self._regions.give_up(reason)
            return None
        except BaseException:
            region.close()
            raise
        region.hide()
        self._regions.add(region)
        return region

    def _tidy(self, deadline: Deadline) -> Flow[None]:
        """Unregister what requests left that were given up, and once what killed clients left."""
        for region in self._regions.doubtful():
            if (yield from self._unregister(region.name, deadline)):
                self._regions.drop(region)
        if self._regions.tidy:
            return
        self._regions.tidy = True
        status = yield Ask(
            "the server",
            deadline,
            lambda server, left: server.get_system_shared_memory_status(client_timeout=left),
        )
        for name in shared_memory.abandoned(status.regions):
            yield from self._unregister(name, deadline)

    def _unregister(self, name: str, deadline: Deadline) -> Flow[bool]:
        """Whether the server has let go of a region; not while a request still uses it."""
        try:
            yield Ask(
                "the server",
                deadline,
                lambda server, left: server.unregister_system_shared_memory(
                    name, client_timeout=left
                ),
            )
        except UserError:
            return False
        return True


def _named(model: str | None) -> str:
    return "the server" if model is None else f"model '{model}'"
