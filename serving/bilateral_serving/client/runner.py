"""A served model as a `Runner`: what comes back over gRPC, compared like any other runtime."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np

from bilateral_export.tensors import Array, TensorSpec
from bilateral_serving.client import Client, requests
from bilateral_serving.client.requests import DEFAULT_TIMEOUT_S, DEFAULT_URL, ModelInfo


class TritonRunner:
    """Runs a model on a Triton server.

    Arrays with more rows than the model's largest batch are sent in several requests.

    Args:
        model: The model's name on the server.
        url: "host:port" of the gRPC service.
        version: Its version; None: the newest served.
        timeout_s: Seconds that one request may take.
    """

    def __init__(
        self,
        model: str,
        url: str = DEFAULT_URL,
        *,
        version: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.name = f"triton {model}" + (f":{version}" if version else "")
        self._model = model
        self._url = url
        self._version = version
        self._timeout_s = timeout_s
        self._client: Client | None = None
        self._info: ModelInfo | None = None

    def __enter__(self) -> TritonRunner:
        """Connect and ask what the model takes.

        Raises:
            UserError: No server answers, or it does not serve the model.
        """
        client = Client(self._url, timeout_s=self._timeout_s)
        try:
            self._info = client.model_metadata(self._model, version=self._version)
        except BaseException:
            client.close()
            raise
        self._client = client
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return self._described().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        return self._described().outputs

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Runner.run`. NaN and infinity come back too: parity judges them."""
        assert self._client is not None, "use the runner as a context manager"
        answers = [
            self._client.infer(self._model, piece, version=self._version, check_finite=False)
            for piece in requests.pieces(self._described(), arrays)
        ]
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _described(self) -> ModelInfo:
        assert self._info is not None, "use the runner as a context manager"
        return self._info
