"""What both clients are: connections to one or more servers, with a deadline for every call."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from bilateral_serving.client.call_metadata import Metadata
from bilateral_serving.client.endpoints import Access
from bilateral_serving.client.flows import Flows
from bilateral_serving.client.requests import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, DEFAULT_URL
from bilateral_serving.client.retries import Retries
from bilateral_serving.credentials import Credentials


class BaseClient:
    """A connection to one Triton server, or to several that serve the same.

    Of several addresses each call goes to the least loaded one that answers. One that cannot be
    reached is left out until a real inference by this client succeeds there (see `balance`).

    Every call has a deadline, which covers all that it does: looking the model up the first time,
    retries, the answer. When it passes the caller gets an error; the call itself is not cancelled,
    which Triton can die of, but runs on until the server answers (see `connection`).

    Only a call of which nothing was executed is made again, at another address first (see
    `errors.may_repeat`), within a budget (see `retries`); with `repeat_broken` also one that may
    have been.

    Large inputs go through shared memory where the server is on this machine; closing the client
    gives it back. After a fork, parent and child each have a connection and memory of their own.

    Args:
        url: "host:port" of the gRPC service, or "http://host:port" or "https://host:port" of the
            HTTP service; several in a sequence, or in a string with commas between them.
        timeout_s: Seconds that a call may take, unless the call says otherwise.
        retries: How often a call is repeated at one address.
        repeat_broken: Whether an inference is repeated, too, whose connection broke before the
            answer came, so that no request fails with its server. It may be executed twice, which
            changes nothing: models keep no state.
        shared_memory: Whether large inputs go through shared memory: None, if `url` is a loopback
            address and it works; True, also where the address does not show that the server is on
            this machine, and one line is logged if it does not work; False, never.
        token: What the server asks of who shares memory with it; None: the token of a server that
            this user started on this machine is found (see `access`).
        credentials: TLS and the bearer token; None: what the environment names (see `credentials`).
        metadata: What every call carries as gRPC metadata or HTTP headers, or a function that
            returns it, called for each. With OpenTelemetry, `traceparent` comes by itself.
        channel_options: Options of gRPC's channels, before those set here.

    Raises:
        UserError: From every method, when no server answers, the deadline passes, the model is not
            served, or it does not take what was sent.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        repeat_broken: bool = False,
        shared_memory: bool | None = None,
        token: str | None = None,
        credentials: Credentials | None = None,
        metadata: Metadata | None = None,
        channel_options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        how = Access(shared_memory, token, credentials, metadata, tuple(channel_options))
        self._flows = Flows(url, timeout_s, Retries(retries, repeat_broken), how)
        self.url = self._flows.url
        # A client that is not closed must not cancel its calls by the end of the process either.
        weakref.finalize(self, self._flows.close)
