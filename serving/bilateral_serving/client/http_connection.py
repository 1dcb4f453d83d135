"""A connection to a server over HTTP: KServe's protocol v2 with tensors as binary data."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import urllib3
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from bilateral_serving import http_messages
from bilateral_serving.client.call_metadata import Metadata, Pairs
from bilateral_serving.client.connection import Connection
from bilateral_serving.credentials import Credentials

_CONNECTIONS = 64
_CONNECT_S = 10.0
# gRPC's status for HTTP's; Triton answers 400 for whatever a request has wrong.
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class HttpConnection(Connection):
    """A pool of HTTP connections.

    Its calls are those of gRPC: requests and answers are the same messages, and an error has gRPC's
    status. Large inputs go inside the body, not through shared memory.

    Args:
        url: "http://host:port" or "https://host:port".
        credentials: TLS and the bearer token.
        metadata: What the caller adds to every call, as headers.

    Raises:
        UserError: A file of the credentials cannot be used.
    """

    def __init__(self, url: str, credentials: Credentials, metadata: Metadata | None) -> None:
        super().__init__(url, False, credentials.metadata, metadata)
        scheme, _, address = url.partition("://")
        host, _, port = address.rpartition(":")
        # Nothing ends a call but its answer, and nothing but `flows` repeats one.
        how: dict[str, Any] = {
            "maxsize": _CONNECTIONS,
            "timeout": urllib3.Timeout(connect=_CONNECT_S, read=None),
            "retries": False,
        }
        self._pool = (
            urllib3.HTTPSConnectionPool(
                host.strip("[]"), int(port), ssl_context=credentials.ssl_context(), **how
            )
            if scheme == "https"
            else urllib3.HTTPConnectionPool(host.strip("[]"), int(port), **how)
        )

    def _make(self, method: str, request: Any, metadata: Pairs) -> Any:
        model = f"/v2/models/{quote(getattr(request, 'model_name', '') or _name(request), safe='')}"
        version = getattr(request, "model_version", "") or getattr(request, "version", "")
        one = f"{model}/versions/{version}" if version else model
        if method == "ModelInfer":
            body, headers = http_messages.request(request)
            answer = self._ask("POST", f"{one}/infer", metadata, body, headers)
            _check(answer)
            return http_messages.answer(answer.data, answer.headers)
        if method in ("ServerReady", "ModelReady"):
            server = method == "ServerReady"
            answer = self._ask("GET", "/v2/health/ready" if server else f"{one}/ready", metadata)
            if answer.status in (401, 403):
                _check(answer)
            kind = pb.ServerReadyResponse if server else pb.ModelReadyResponse
            return kind(ready=answer.status == 200)
        paths = {
            "ServerMetadata": ("/v2", pb.ServerMetadataResponse()),
            "ModelMetadata": (one, pb.ModelMetadataResponse()),
            "ModelConfig": (f"{one}/config", model_config_pb2.ModelConfig()),
        }
        if method not in paths:
            raise InferenceServerException(f"{method} is not asked over HTTP", "UNIMPLEMENTED")
        path, message = paths[method]
        answer = self._ask("GET", path, metadata)
        _check(answer)
        try:
            json_format.Parse(answer.data, message, ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise InferenceServerException(str(error), "UNIMPLEMENTED") from error
        return pb.ModelConfigResponse(config=message) if method == "ModelConfig" else message

    def _ask(
        self,
        verb: str,
        path: str,
        metadata: Pairs,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                verb, path, body=body, headers={**dict(metadata), **(headers or {})}, redirect=False
            )
        except SSLError as error:
            why = getattr(error.args[0], "reason", None) or error
            text = f"handshake failed: OPENSSL_internal:{why}"
            raise InferenceServerException(text, "UNAVAILABLE") from None
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise InferenceServerException(f"failed to connect: {error}", "UNAVAILABLE") from None
        except (HTTPError, OSError) as error:
            raise InferenceServerException(f"connection broke: {error}", "UNAVAILABLE") from None

    def _disconnect(self) -> None:
        self._pool.close()


def _name(request: Any) -> str:
    return str(getattr(request, "name", ""))


def _check(answer: urllib3.BaseHTTPResponse) -> None:
    """Refuse an answer that is an error.

    Raises:
        InferenceServerException: It is one, with the server's words.
    """
    if answer.status == 200:
        return
    status = _STATUS.get(answer.status, "UNKNOWN")
    try:
        text = str(json.loads(answer.data)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"HTTP {answer.status} {answer.reason}"
        if answer.status == 404:  # a server that does not know the protocol's paths
            status = "UNIMPLEMENTED"
    raise InferenceServerException(text, status)
