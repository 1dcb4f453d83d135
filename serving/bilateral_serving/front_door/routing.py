"""Routes: which version answers a request that names none.

The supervisor writes them to a file, whole or not at all, and the front door looks at that file
before every request. What began before a change ends where it began; Triton keeps a version that it
unloads until its last request is answered.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonclient.grpc import service_pb2 as pb

from bilateral_export.files import stamp
from bilateral_serving.front_door import requests

logger = logging.getLogger(__name__)

ROUTES_FILE, COMPARISONS_FILE = "routes.json", "comparisons.json"
# What names a model and, after it, a version: these messages have `name` and `version` as their
# first two fields, a ModelInferRequest `model_name` and `model_version`.
ROUTED = (requests.DESCRIPTION | {requests.INFER, requests.MODEL_READY}) - {
    requests.SERVER_METADATA
}
_VERSION_TAG = b"\x12"
_PATH = re.compile(r"/v2/models/([\w.-]+)((?:/(?:infer|generate|ready|config))?)", re.ASCII)
_POLL_S = 0.02


class Route(BaseModel):
    """Where the requests of one model go.

    Attributes:
        active: The version that answers.
        candidate: The version that is tried beside it; None: there is none.
        share: Share of the requests that the candidate answers.
        copied: Share of the requests that the candidate gets a copy of (a shadow).
        away: Whether neither is loaded for the moment: requests wait.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    active: int
    candidate: int | None = None
    share: float = Field(default=0.0, ge=0, le=1)
    copied: float = Field(default=0.0, ge=0, le=1)
    away: bool = False


class Routes(BaseModel):
    """The routes of the models that have any; the others are Triton's own choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, Route] = {}


@dataclass(frozen=True)
class Choice:
    """Where one request goes.

    Attributes:
        route: The route that it is by; None: Triton's choice.
        version: The version that answers it; None: Triton's choice.
        other: The version that gets a copy; None: none does.
    """

    route: Route | None = None
    version: int | None = None
    other: int | None = None


class Router:
    """Chooses versions by a file of `Routes`.

    Shares are exact: of a share of 5 % every twentieth request.

    Args:
        directory: Where `ROUTES_FILE` is; None: nowhere, and nothing is chosen.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / ROUTES_FILE
        self._seen: tuple[int, int, int] | None = None
        self._routes: dict[str, Route] = {}
        self._owed: dict[str, float] = {}

    def route(self, model: str) -> Route | None:
        """Return a model's route as it is now."""
        if self._path is None:
            return None
        seen = stamp(self._path)
        if seen is None:
            return None
        if seen != self._seen:
            self._seen = seen
            try:
                self._routes = Routes.model_validate_json(self._path.read_bytes()).models
            except (OSError, ValidationError) as error:
                logger.warning("the routes cannot be read and stay as they were: %s", error)
        return self._routes.get(model)

    def has_routes(self) -> bool:
        """Return whether any model has a route."""
        self.route("")
        return bool(self._routes)

    def active(self, model: str) -> int | None:
        """Return the active version of a model; None if it has no route."""
        route = self.route(model)
        return None if route is None else route.active

    def choose(self, model: str, whole: bool = False) -> Choice:
        """Return where the next request of a model goes that names no version.

        Args:
            model: The model.
            whole: Whether the active version is to have it, as it has all that belongs to a
                sequence and what describes the model.
        """
        route = self.route(model)
        if route is None:
            return Choice()
        if route.candidate is None or whole:
            return Choice(route, route.active)
        owed = self._owed.get(model, 0.0) + (route.share or route.copied)
        # A little is added: twenty times 0.05 is less than 1 in floating point.
        due = owed + 1e-9 >= 1.0
        self._owed[model] = owed - 1.0 if due else owed
        if route.share:
            return (
                Choice(route, route.candidate, route.active) if due else Choice(route, route.active)
            )
        return Choice(route, route.active, route.candidate if due else None)

    async def wait_until_there(self, model: str, end: float) -> None:
        """Return when a model is not away, or at `end`, by the clock `time.monotonic`."""
        while (route := self.route(model)) is not None and route.away and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)


def named(method: str, message: bytes) -> tuple[str, bool]:
    """Return the model of a message, and whether it names a version.

    Args:
        method: One of `ROUTED`.
        message: It; of an inference request its `envelope`.

    Raises:
        ValueError: It is not a message of this method.
    """
    kind = pb.ModelInferRequest if method == requests.INFER else pb.ModelReadyRequest
    try:
        parsed = kind.FromString(message)
    except Exception as error:  # protobuf's DecodeError, by implementation
        raise ValueError(f"not a {kind.DESCRIPTOR.name}") from error
    if isinstance(parsed, pb.ModelInferRequest):
        return parsed.model_name, bool(parsed.model_version)
    return parsed.name, bool(parsed.version)


def with_version(message: bytes, version: int | None) -> bytes:
    """Return a message of `ROUTED` that names a version: of a field twice, the last one counts."""
    if version is None:
        return message
    text = str(version).encode()
    return message + _VERSION_TAG + bytes([len(text)]) + text


def path_model(path: str) -> str | None:
    """Return the model of an HTTP path that names one and no version; None for any other."""
    match = _PATH.fullmatch(path)
    return match[1] if match else None


def path_with_version(path: str, version: int | None) -> str:
    """Return the path of one version of a model; `path` is one that has a `path_model`."""
    match = _PATH.fullmatch(path)
    if version is None or match is None:
        return path
    return f"/v2/models/{match[1]}/versions/{version}{match[2]}"


def is_unloaded(text: str) -> bool:
    """Return whether an error of Triton says that the version is not loaded: nothing has run."""
    return "Request for unknown model" in text
