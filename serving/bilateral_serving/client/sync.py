"""The synchronous client, which needs numpy, Pillow and tritonclient alone.

with Client("localhost:8001") as client:
    logits = client.infer("digits", {"pixel_values": images})["logits"]
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import TimeoutError
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
from bilateral_serving.values import utf8

Result = TypeVar("Result")


class Client(BaseClient):
    """Connections to Triton servers, which several threads may share; see `BaseClient`."""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for calls that still run (5 s at most), give shared memory back, and disconnect."""
        self._flows.close()

    def is_ready(self, model: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Return whether the server (or one model) is ready; False also if no server answers."""
        return self._run(self._flows.is_ready(model, timeout_s))

    def server_name(self, *, timeout_s: float | None = None) -> str:
        """Return the name that the server gives itself (tritonserver's option --id)."""
        return self._run(self._flows.server_name(timeout_s))

    def model_metadata(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> ModelInfo:
        """Ask the server what a model takes and gives; version None is the newest it serves."""
        return self._run(self._flows.describe(model, version, self._flows.deadline(timeout_s)))

    def model_config(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Any:
        """Return the model's configuration as Triton's protobuf message ModelConfig."""
        return self._run(self._flows.config(model, version, self._flows.deadline(timeout_s)))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        check_finite: bool = True,
    ) -> dict[str, Array]:
        """Run a model on a batch.

        Args:
            model: Its name.
            inputs: An array per input, of exactly the element type and shape the model takes.
            version: Its version; None: the newest served.
            outputs: The outputs wanted; empty: all.
            timeout_s: Seconds until the deadline; None: the client's own.
            check_finite: Whether an answer that holds NaN or infinity is an error. Not for a model
                whose answers may, and for a comparison that judges them itself.

        Returns:
            An array per output.
        """
        return self._run(
            self._flows.infer(model, inputs, version, outputs, timeout_s, check_finite)
        )

    def classify(
        self,
        model: str,
        inputs: Sequence[Source],
        k: int = 5,
        *,
        version: int | None = None,
        timeout_s: float | None = None,
        size: Size | None = None,
    ) -> list[tuple[Prediction, ...]]:
        """Return the `k` most probable classes of each input, best first.

        The inputs (images, texts, expressions; for a model that compares two documents, one pair
        after the other) are prepared as the model's metadata says and sent in the largest batches
        that the model takes; the deadline holds for each batch.

        A model of several sizes gets images of its own size unless another `size` is asked for: the
        side of a square, height and width, or "aspect" for one image whose aspect ratio is kept. It
        is prepared here, also where the server could.
        """
        return self._run(self._flows.classify(model, inputs, k, version, timeout_s, size))

    def features(
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
        return self._run(self._flows.features(model, inputs, version, timeout_s, size))

    def segment(
        self,
        model: str,
        images: Sequence[Source],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classes]:
        """Return the class of every pixel of each image, uint8 `[height, width]`.

        Images larger than the model's window are cut into overlapping windows, which are sent in
        the largest batches that the model takes; the deadline holds for each batch.
        """
        return self._run(self._flows.segment(model, images, version, timeout_s))

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Generator[Word, None, None]:
        """Yield new words after a prompt, each as soon as the server has it.

        The options are those of `bilateral_export.text.Sampling`; the same seed gives the same
        words. Closing the iterator stops the server's work. The deadline covers the whole stream;
        a stream that is left, or late, is waited for until the model has ended it (5 s at most).
        """
        options = language.sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        return self._stream(model, prompt, options, version, self._flows.deadline(timeout_s))

    def score(
        self, model: str, text: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Score:
        """Return the likelihood of each word of a text of any length, and its perplexity."""
        deadline = self._flows.deadline(timeout_s)
        words = self._stream(model, text, language.SCORING, version, deadline)
        return Score(tuple(words))

    def _stream(
        self, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
    ) -> Generator[Word, None, None]:
        utf8("text", text)  # refused here, not when the first word is asked for
        self._run(self._flows.check_stream(model, version, deadline))
        place = self._flows.stream()
        return streams.read(place, model, text, options, version, deadline)

    def _run(self, flow: Flow[Result]) -> Result:
        """Take a flow's steps one after the other."""
        try:
            step = next(flow)
            while True:
                try:
                    result = self._take(step)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            returned: Result = end.value
            return returned

    def _take(self, step: Step) -> Any:
        match step:
            case Wait():
                with contextlib.suppress(TimeoutError):
                    step.call.exception(step.seconds)
                return None
            case Pause():
                return time.sleep(step.seconds)
            case Compute():
                return step.work()
        return [self._run(flow) for flow in step.flows]
