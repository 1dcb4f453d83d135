"""The synchronous gRPC client. It needs numpy, Pillow and tritonclient, neither torch nor onnx.

with Client("localhost:8001") as client:
    logits = client.infer("digits", {"pixel_values": images})["logits"]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as triton
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
from bilateral_serving.language import Sampling, Score, Word
from bilateral_serving.segmentation import Classes

Answer = TypeVar("Answer")


class Client:
    """A connection to one Triton server. One object may be used by several threads.

    Every call has a deadline, which covers all that it does: looking the model up the first time,
    retries, the answer. When it passes, a request that still waits in the server's queue is
    dropped there.

    Only a call that never reached a server is tried again (see `calls.pause_before_retry`).

    Args:
        url: "host:port" of the gRPC service.
        timeout_s: Seconds that a call may take, unless the call says otherwise.
        retries: How often a call is repeated that found no server to connect to.

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
    ) -> None:
        self.url = calls.check_url(url)
        self.timeout_s = timeout_s
        self.retries = retries
        self._server = triton.InferenceServerClient(url)
        self._known: dict[tuple[str, int | None], ModelInfo] = {}

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
        """Close the connection."""
        self._server.close()

    def is_ready(self, model: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Whether the server (or one model) is ready; False also if no server answers."""
        try:
            return bool(
                self._call(
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

    def server_name(self, *, timeout_s: float | None = None) -> str:
        """The name that the server gives itself (tritonserver's option --id)."""
        answer = self._call(
            "the server",
            self._deadline(timeout_s),
            lambda left: self._server.get_server_metadata(client_timeout=left),
        )
        return str(answer.name)

    def model_metadata(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> ModelInfo:
        """Ask the server what a model takes and gives; version None is the newest it serves."""
        return self._describe(model, version, self._deadline(timeout_s))

    def model_config(
        self, model: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Any:
        """The model's configuration as Triton's protobuf message ModelConfig."""
        return self._config(model, version, self._deadline(timeout_s))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Run a model on a batch.

        Args:
            model: Its name.
            inputs: An array per input, of exactly the element type and shape the model takes.
            version: Its version; None: the newest served.
            outputs: The outputs wanted; empty: all.
            timeout_s: Seconds until the deadline; None: the client's own.

        Returns:
            An array per output.
        """
        deadline = self._deadline(timeout_s)
        info = self._known.get((model, version))
        if info is None:
            info = self._known[model, version] = self._describe(model, version, deadline)
        return self._infer(info, inputs, version, outputs, deadline)

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
        info = self.model_metadata(model, version=version, timeout_s=timeout_s)
        source, target = calls.classifier_input(info), calls.classifier_output(info)
        batch = calls.input_batch(info, inputs)
        logits = [
            self.infer(model, piece, version=version, outputs=[target], timeout_s=timeout_s)[target]
            for piece in calls.pieces(info, {source: batch})
        ]
        return calls.predictions(info, np.concatenate(logits), k)

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
        info = self.model_metadata(model, version=version, timeout_s=timeout_s)
        how = calls.segmenter_preprocessing(info)
        source, target = info.inputs[0].name, info.outputs[0].name
        maps = []
        for image in images:
            windows = segmentation.read_and_cut(image, how)
            pieces = [
                self.infer(model, piece, version=version, timeout_s=timeout_s)[target]
                for piece in calls.pieces(info, {source: windows.pixels})
            ]
            maps.append(segmentation.stitch(np.concatenate(pieces), windows))
        return maps

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
    ) -> Iterator[Word]:
        """New words after a prompt, each as soon as the server has it.

        The options are those of `bilateral_export.text.Sampling`; the same seed gives the same
        words. Closing the iterator stops the server's work. The deadline covers the whole stream.
        """
        options = language.sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        return self._stream(model, prompt, options, version, self._deadline(timeout_s))

    def score(
        self, model: str, text: str, *, version: int | None = None, timeout_s: float | None = None
    ) -> Score:
        """The likelihood of each word of a text of any length, and its perplexity."""
        options = language.sampling(max_tokens=0)
        words = self._stream(model, text, options, version, self._deadline(timeout_s))
        return Score(tuple(words))

    def _stream(
        self, model: str, text: str, options: Sampling, version: int | None, deadline: Deadline
    ) -> Iterator[Word]:
        language.check_stream(self._config(model, version, deadline))
        return streams.read(self.url, model, text, options, version, deadline)

    def _infer(
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
            result = self._call(
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

    def _describe(self, model: str, version: int | None, deadline: Deadline) -> ModelInfo:
        metadata = self._call(
            calls.named(model, version),
            deadline,
            lambda left: self._server.get_model_metadata(
                model, calls.version_text(version), client_timeout=left
            ),
        )
        return calls.model_info(metadata, self._config(model, version, deadline), version)

    def _config(self, model: str, version: int | None, deadline: Deadline) -> Any:
        answer = self._call(
            calls.named(model, version),
            deadline,
            lambda left: self._server.get_model_config(
                model, calls.version_text(version), client_timeout=left
            ),
        )
        return answer.config

    def _call(self, what: str, deadline: Deadline, call: Callable[[float], Answer]) -> Answer:
        attempt = 0
        while True:
            try:
                return call(deadline.left_s)
            except InferenceServerException as error:
                pause = calls.pause_before_retry(error, attempt, self.retries, deadline)
                if pause is None:
                    raise calls.explain(error, self.url, deadline, what) from error
            time.sleep(pause)
            attempt += 1

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)
