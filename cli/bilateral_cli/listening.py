"""Options of a server that callers connect to: address, TLS, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bilateral_export.errors import UserError

if TYPE_CHECKING:
    from bilateral_serving.certificates import TlsFiles

HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        help="Address to listen on; 0.0.0.0 and :: listen on all interfaces. What other machines"
        " can reach needs TLS, or --insecure.",
    ),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Let other machines connect without TLS.")
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="Answer over TLS with this certificate (PEM), gRPC and HTTP."),
]
TlsKeyOption = Annotated[
    Path | None, typer.Option("--tls-key", help="The key of that certificate (PEM).")
]
ClientCaOption = Annotated[
    Path | None,
    typer.Option(
        "--client-ca", help="Ask callers for a certificate of these authorities (PEM): mutual TLS."
    ),
]
TlsDevOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-dev",
        metavar="DIRECTORY",
        help="For development: make an authority and certificates there, or use those of before.",
    ),
]
TokensOption = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        help="Ask callers for a bearer token of this file (`bilateral token` makes them); it is"
        " read again when it changes.",
    ),
]


def tls_files(
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
    development: Path | None,
    host: str,
) -> TlsFiles | None:
    """Return the server's certificate; None: it answers without TLS.

    Raises:
        UserError: The options do not go together, or files cannot be made.
    """
    from bilateral_serving.certificates import TlsFiles, development_files

    if development is not None:
        if certificate or key:
            raise UserError("--tls-dev makes a certificate, and one was given", "Give one of them.")
        made = development_files(development, () if host in ("0.0.0.0", "::") else (host,))
        return made.model_copy(update={"client_ca": client_ca})
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise UserError(
            "TLS needs a certificate and its key", "Give both --tls-cert and --tls-key."
        )
    return TlsFiles(certificate=certificate, key=key, client_ca=client_ca)
