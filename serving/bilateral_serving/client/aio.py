"""The asyncio client, with the interface of `bilateral_serving.client.Client`.

    async with AsyncClient("localhost:8001") as client:
        outputs = await client.infer("digits", {"pixel_values": images})

Cancelling the task that waits for a call ends the waiting at once; the call itself runs on until
the server answers. A stream is left (streams.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from bilateral_export.tensors import Array
from bilateral_serving import language
from bilateral_serving.client import streams
from bilateral_serving.client.base import BaseClient
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.inputs.files import Source
from bilateral_serving.client.inputs.segmentation import Classes
from bilateral_serving.client.requests import (
    ModelInfo,
    Prediction,
    Size,
)
from bilateral_serving.client.steps import Compute, Flow, Pause, Step, Wait
from bilateral_serving.language import Sampling, Score, Word

Result = TypeVar("Result")


class AsyncClient(BaseClient):
    """Connections to Triton servers, for one event loop; see `BaseClient`."""

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
        """Wait for calls that still run (5 s at most), give shared memory back, and disconnect."""
        await asyncio.to_thread(self._flows.close)

    async def is_ready(self, model: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Return whether the server (or one model) is ready; False also if no server answers."""
        return await self._run(self._flows.is_ready(model, timeout_s))

    async def server_name(self, *, timeout_s: float | None = None) -> str:
        """Return the name that the server gives itself (tritonserver's option --id)."""
        return await self._run(self._flows.server_name(timeout_s))

    async def model_metadata(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> ModelInfo:
        """Ask the server what a model takes and gives; version None is the newest it serves."""
        deadline = self._flows.deadline(timeout_s)
        return await self._run(self._flows.describe(model, version, deadline))

    async def model_config(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Any:
        """Return the model's configuration as Triton's protobuf message ModelConfig."""
        deadline = self._flows.deadline(timeout_s)
        return await self._run(self._flows.config(model, version, deadline))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        check_finite: bool = True,
    ) -> dict[str, Array]:
        """Run a model on a batch; arguments and result as `Client.infer`."""
        return await self._run(
            self._flows.infer(model, inputs, version, outputs, timeout_s, check_finite)
        )

    async def classify(
        self,
        model: str,
        inputs: Sequence[Source],
        k: int = 5,
        *,
        version: int | None = None,
        timeout_s: float | None = None,
        size: Size | None = None,
    ) -> list[tuple[Prediction, ...]]:
        """Return the `k` most probable classes of each input, best first; as `Client.classify`."""
        return await self._run(self._flows.classify(model, inputs, k, version, timeout_s, size))

    async def features(
        self,
        model: str,
        inputs: Sequence[Source],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
        size: Size | None = None,
    ) -> Array:
        """Return the features of each input, `[inputs, ...]`; prepared and sent as for `classify`.

        The model was exported without its head (`bilateral export --output`).
        """
        return await self._run(self._flows.features(model, inputs, version, timeout_s, size))

    async def segment(
        self,
        model: str,
        images: Sequence[Source],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classes]:
        """Return the class of every pixel of each image; as `Client.segment`."""
        return await self._run(self._flows.segment(model, images, version, timeout_s))

    async def generate(
        self,
        model: str,
        prompt: str,
        *,
        version: int | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> AsyncGenerator[Word, None]:
        """Yield new words after a prompt, as they come; the options are `Client.generate`'s."""
        deadline = self._flows.deadline(timeout_s)
        stream = self._stream(model, prompt, language.sampling(**options), version, deadline)
        async with contextlib.aclosing(stream) as words:  # closed with this generator, not later
            async for word in words:
                yield word

    async def score(
        self, model: str, text: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Score:
        """Return the likelihood of each word of a text; as `Client.score`."""
        deadline = self._flows.deadline(timeout_s)
        words = self._stream(model, text, language.SCORING, version, deadline)
        return Score(tuple([word async for word in words]))

    async def _stream(
        self, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
    ) -> AsyncGenerator[Word, None]:
        await self._run(self._flows.check_stream(model, version, deadline))
        place = self._flows.stream()
        stream = streams.read_async(place, model, text, options, version, deadline)
        async with contextlib.aclosing(stream) as words:
            async for word in words:
                yield word

    async def _run(self, flow: Flow[Result]) -> Result:
        """Await a flow's steps."""
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._take(step)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            returned: Result = end.value
            return returned

    async def _take(self, step: Step) -> Any:
        match step:
            case Wait():
                return await _wait(step)
            case Pause():
                return await asyncio.sleep(step.seconds)
            case Compute():
                return await asyncio.to_thread(step.work)
        return await asyncio.gather(*(self._run(flow) for flow in step.flows))


async def _wait(step: Wait) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def tell(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(over.set)

    step.call.add_done_callback(tell)
    # A timer, not asyncio.wait_for, which can swallow a cancellation (before Python 3.12).
    late = loop.call_later(step.seconds, over.set)
    try:
        await over.wait()
    finally:
        late.cancel()
