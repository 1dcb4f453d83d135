"""The asyncio gRPC client, with the interface of `bilateral_serving.client.Client`.

    async with AsyncClient("localhost:8001") as client:
        outputs = await client.infer("digits", {"pixel_values": images})

Cancelling the task that waits for a call cancels the call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving import calls, language, segmentation, streams
from bilateral_serving.calls import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Deadline,
    ModelInfo,
    Prediction,
)
from bilateral_serving.inputs import Source
from bilateral_serving.language import Score, Word
from bilateral_serving.segmentation import Classes

Answer = TypeVar("Answer")


class AsyncClient:
    """A connection to one Triton server, for one event loop. See `Client` for every argument."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        self.url = calls.check_url(url)
        self.timeout_s = timeout_s
        self.retries = retries
        self._server = triton.InferenceServerClient(url)
        self._known: dict[tuple[str, int | None], ModelInfo] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._server.close()

    async def is_ready(self, model: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Whether the server (or one model) is ready; False also if no server answers."""
        try:
            return bool(
                await self._call(
                    "the server" if model is None else f"model '{model}'",
                    self._deadline(timeout_s),
                    lambda left: (
                        self._server.is_server_ready(client_timeout=left)
                        if model is None
                        else self._server.is_model_ready(model, client_timeout=left)
                    ),
                )
            )
        except UserError:
            return False

    async def server_name(self, *, timeout_s: float | None = None) -> str:
        """The name that the server gives itself (tritonserver's option --id)."""
        answer = await self._call(
            "the server",
            self._deadline(timeout_s),
            lambda left: self._server.get_server_metadata(client_timeout=left),
        )
        return str(answer.name)

    async def model_metadata(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> ModelInfo:
        """Ask the server what a model takes and gives; version None is the newest it serves."""
        return await self._describe(model, version, self._deadline(timeout_s))

    async def model_config(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Any:
        """The model's configuration as Triton's protobuf message ModelConfig."""
        return await self._config(model, version, self._deadline(timeout_s))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Run a model on a batch; arguments and result as `Client.infer`."""
        deadline = self._deadline(timeout_s)
        info = self._known.get((model, version))
        if info is None:
            info = self._known[model, version] = await self._describe(model, version, deadline)
        return await self._infer(info, inputs, version, outputs, deadline)

    async def classify(
        self,
        model: str,
        inputs: Sequence[Source],
        k: int = 5,
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> list[tuple[Prediction, ...]]:
        """The `k` most probable classes of each input, best first; as `Client.classify`."""
        info = await self.model_metadata(model, version=version, timeout_s=timeout_s)
        source, target = calls.classifier_input(info), calls.classifier_output(info)
        # Decoding is work for the processor: the event loop goes on meanwhile.
        batch = await asyncio.to_thread(calls.input_batch, info, inputs)
        answers = await asyncio.gather(
            *(
                self.infer(model, piece, version=version, outputs=[target], timeout_s=timeout_s)
                for piece in calls.pieces(info, {source: batch})
            )
        )
        return calls.predictions(info, np.concatenate([answer[target] for answer in answers]), k)

    async def segment(
        self,
        model: str,
        images: Sequence[Source],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classes]:
        """The class of every pixel of each image; as `Client.segment`."""
        info = await self.model_metadata(model, version=version, timeout_s=timeout_s)
        how = calls.segmenter_preprocessing(info)
        source, target = info.inputs[0].name, info.outputs[0].name
        maps = []
        for image in images:
            windows = await asyncio.to_thread(segmentation.read_and_cut, image, how)
            answers = await asyncio.gather(
                *(
                    self.infer(model, piece, version=version, timeout_s=timeout_s)
                    for piece in calls.pieces(info, {source: windows.pixels})
                )
            )
            classes = np.concatenate([answer[target] for answer in answers])
            maps.append(segmentation.stitch(classes, windows))
        return maps

    async def generate(
        self,
        model: str,
        prompt: str,
        *,
        version: int | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Word]:
        """New words after a prompt, as they come; the options are those of `Client.generate`."""
        deadline = self._deadline(timeout_s)
        sampling = language.sampling(**options)
        language.check_stream(await self._config(model, version, deadline))
        stream = streams.read_async(self.url, model, prompt, sampling, version, deadline)
        async with contextlib.aclosing(stream) as words:  # closed with this generator, not later
            async for word in words:
                yield word

    async def score(
        self, model: str, text: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Score:
        """The likelihood of each word of a text; as `Client.score`."""
        words = self.generate(model, text, version=version, timeout_s=timeout_s, max_tokens=0)
        return Score(tuple([word async for word in words]))

    async def _infer(
        self,
        info: ModelInfo,
        inputs: Mapping[str, Array],
        version: int | None,
        outputs: Sequence[str],
        deadline: Deadline,
    ) -> dict[str, Array]:
        try:
            calls.check_inputs(info, inputs)
            tensors, requested = calls.to_request(info, inputs, outputs)
            result = await self._call(
                calls.named(info.name, version),
                deadline,
                lambda left: self._server.infer(
                    info.name,
                    tensors,
                    model_version=calls.version_text(version),
                    outputs=requested,
                    timeout=round(left * 1e6),
                    client_timeout=left,
                ),
            )
        except UserError:
            # The model may have changed since it was looked up.
            self._known.pop((info.name, version), None)
            raise
        return calls.to_arrays(result, requested)

    async def _describe(self, model: str, version: int | None, deadline: Deadline) -> ModelInfo:
        metadata = await self._call(
            calls.named(model, version),
            deadline,
            lambda left: self._server.get_model_metadata(
                model, calls.version_text(version), client_timeout=left
            ),
        )
        config = await self._config(model, version, deadline)
        return calls.model_info(metadata, config, version)

    async def _config(self, model: str, version: int | None, deadline: Deadline) -> Any:
        answer = await self._call(
            calls.named(model, version),
            deadline,
            lambda left: self._server.get_model_config(
                model, calls.version_text(version), client_timeout=left
            ),
        )
        return answer.config

    async def _call(
        self, what: str, deadline: Deadline, call: Callable[[float], Awaitable[Answer]]
    ) -> Answer:
        attempt = 0
        while True:
            try:
                return await call(deadline.left_s)
            except InferenceServerException as error:
                pause = calls.pause_before_retry(error, attempt, self.retries, deadline)
                if pause is None:
                    raise calls.explain(error, self.url, deadline, what) from error
            await asyncio.sleep(pause)
            attempt += 1

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)
