"""A served model as a `Runner`: what comes back over gRPC, compared like any other runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bilateral_export.runners.base import BaseRunner
from bilateral_export.tensors import Array
from bilateral_serving.client import Client, requests
from bilateral_serving.client.requests import DEFAULT_TIMEOUT_S, DEFAULT_URL, ModelInfo


class TritonRunner(BaseRunner[tuple[Client, ModelInfo]]):
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
        super().__init__(f"triton {model}" + (f":{version}" if version else ""), model)
        self._model = model
        self._url = url
        self._version = version
        self._timeout_s = timeout_s

    def _open(self) -> tuple[Client, ModelInfo]:
        """Connect and ask what the model takes.

        Raises:
            UserError: No server answers, or it does not serve the model.
        """
        client = Client(self._url, timeout_s=self._timeout_s)
        try:
            info = client.model_metadata(self._model, version=self._version)
        except BaseException:
            client.close()
            raise
        self.inputs, self.outputs = info.inputs, info.outputs
        return client, info

    def _close(self, loaded: tuple[Client, ModelInfo]) -> None:
        client, _ = loaded
        client.close()

    def _run(
        self, loaded: tuple[Client, ModelInfo], arrays: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run once. NaN and infinity come back too: parity judges them."""
        client, info = loaded
        answers = [
            client.infer(self._model, piece, version=self._version, check_finite=False)
            for piece in requests.pieces(info, arrays)
        ]
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
