"""The synchronous gRPC client. It needs numpy, Pillow and tritonclient, neither torch nor onnx.

with Client("localhost:8001") as client:
    logits = client.infer("digits", {"pixel_values": images})["logits"]
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import TimeoutError
from types import TracebackType
from typing import Any, TypeVar

from bilateral_export.tensors import Array
from bilateral_serving import language
from bilateral_serving.client import streams
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.flows import Flows
from bilateral_serving.client.inputs.files import Source
from bilateral_serving.client.inputs.segmentation import Classes
from bilateral_serving.client.requests import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    ModelInfo,
    Prediction,
)
from bilateral_serving.client.steps import Compute, Flow, Pause, Step, Wait
from bilateral_serving.language import Sampling, Score, Word
from bilateral_serving.values import utf8

Result = TypeVar("Result")


class Client:
    """A connection to one Triton server. One object may be used by several threads.

    Every call has a deadline, which covers all that it does: looking the model up the first time,
    retries, the answer. When it passes the caller gets an error; the call itself is not cancelled,
    which Triton can die of, but runs on until the server answers (see `connection`).

    Only a call that never reached a server is tried again (see `failures.pause_before_retry`).

    Large inputs go through shared memory where the server is on this machine; closing the client
    gives it back. After a fork, parent and child each have a connection and memory of their own.

    Args:
        url: "host:port" of the gRPC service.
        timeout_s: Seconds that a call may take, unless the call says otherwise.
        retries: How often a call is repeated that found no server to connect to.
        shared_memory: Whether large inputs go through shared memory: None, if `url` is a loopback
            address and it works; True, also where the address does not show that the server is on
            this machine, and one line is logged if it does not work; False, never.
        token: What the server asks of who shares memory with it; None: the token of a server that
            this user started on this machine is found (see `access`).

    Raises:
        UserError: From every method, when no server answers, the deadline passes, the model is not
            served, or it does not take what was sent.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        shared_memory: bool | None = None,
        token: str | None = None,
    ) -> None:
        self.url = url
        self._flows = Flows(url, timeout_s, retries, shared_memory, token)
        # A client that is not closed must not cancel its calls by the end of the process either.
        weakref.finalize(self, self._flows.close)

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
        """Whether the server (or one model) is ready; False also if no server answers."""
        return self._run(self._flows.is_ready(model, timeout_s))

    def server_name(self, *, timeout_s: float | None = None) -> str:
        """The name that the server gives itself (tritonserver's option --id)."""
        return self._run(self._flows.server_name(timeout_s))

    def model_metadata(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> ModelInfo:
        """Ask the server what a model takes and gives; version None is the newest it serves."""
        return self._run(self._flows.describe(model, version, self._flows.deadline(timeout_s)))

    def model_config(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Any:
        """The model's configuration as Triton's protobuf message ModelConfig."""
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
    ) -> list[tuple[Prediction, ...]]:
        """The `k` most probable classes of each input, best first.

        The inputs (images, texts, expressions; for a model that compares two documents, one pair
        after the other) are prepared as the model's metadata says and sent in the largest batches
        that the model takes; the deadline holds for each batch.
        """
        return self._run(self._flows.classify(model, inputs, k, version, timeout_s))

    def features(
        self,
        model: str,
        inputs: Sequence[Source],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Array:
        """The features of each input, `[inputs, ...]`, of a model that was exported for them.

        The inputs are prepared and sent as for `classify`.
        """
        return self._run(self._flows.features(model, inputs, version, timeout_s))

    def segment(
        self,
        model: str,
        images: Sequence[Source],
        *,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classes]:
        """The class of every pixel of each image, uint8 `[height, width]`.

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
        """New words after a prompt, each as soon as the server has it.

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
        """The likelihood of each word of a text of any length, and its perplexity."""
        deadline = self._flows.deadline(timeout_s)
        words = self._stream(model, text, language.SCORING, version, deadline)
        return Score(tuple(words))

    def _stream(
        self, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
    ) -> Generator[Word, None, None]:
        utf8("text", text)  # refused here, not when the first word is asked for
        self._run(self._flows.check_stream(model, version, deadline))
        return streams.read(self.url, model, text, options, version, deadline)

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
