"""Front door options, and the message that says where it listens."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from bilateral_serving.certificates import TlsFiles


class FrontDoorOptions(BaseModel):
    """Where a front door listens, what is behind it, and its limits.

    Attributes:
        listen: Address of the callers' gRPC service, "host:port"; port 0: any free one.
        upstream: gRPC's address of Triton, such as "unix:/directory/grpc:1".
        http_listen: Address of the callers' HTTP service; None: there is none.
        http_upstream: Path of the socket of Triton's HTTP service.
        http_hosts: Names under which HTTP callers know this machine, besides its addresses.
        token: What a caller that manages the server must show (`access.METADATA_KEY`).
        tls: The certificate to answer with; None: connections are not encrypted.
        tokens: File of the bearer tokens that callers need (`bilateral_serving.tokens`); None:
            they need none.
        parent: Process whose end ends the front door; None: nobody's does.
        hold_s: Seconds that a request waits for a server that is away.
        drain_s: Seconds that requests under way get to end when the front door stops.
        requests: Inference requests with the server at once.
        requests_per_caller: Of one connection.
        waiting: Requests that wait for their turn.
        waiting_per_caller: Of one connection.
        streams: Streams at once; one whose caller has gone counts until it has ended.
        streams_per_caller: Of one connection.
        message_bytes: Largest gRPC message.
        body_bytes: Largest HTTP body.
        json_depth: Deepest nesting of a JSON body.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str
    upstream: str
    http_listen: str | None = None
    http_upstream: str | None = None
    http_hosts: tuple[str, ...] = ()
    token: str = Field(repr=False, min_length=16)
    tls: TlsFiles | None = None
    tokens: Path | None = None
    parent: int | None = None
    hold_s: float = Field(20.0, ge=0)
    drain_s: float = Field(30.0, ge=0)
    requests: int = Field(512, ge=1)
    requests_per_caller: int = Field(64, ge=1)
    waiting: int = Field(8192, ge=0)
    waiting_per_caller: int = Field(1024, ge=0)
    streams: int = Field(512, ge=1)
    streams_per_caller: int = Field(64, ge=1)
    message_bytes: int = Field(1 << 30, ge=1 << 10, lt=1 << 31)
    body_bytes: int = Field(64 << 20, ge=1 << 10)
    json_depth: int = Field(64, ge=1)


class Listening(BaseModel):
    """What the front door writes to its standard output, as one line of JSON, when it listens.

    Attributes:
        grpc: Address of the callers' gRPC service.
        http: Address of their HTTP service; None: there is none.
    """

    grpc: str
    http: str | None = None
