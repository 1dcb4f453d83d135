"""TLS certificates: the files of a server, and a development authority that makes some.

For anything but development, certificates come from the authority of whoever runs the service.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors

if TYPE_CHECKING:
    from cryptography import x509

_DAYS = 90
_AUTHORITY = "bilateral development authority"


class TlsFiles(BaseModel):
    """The PEM files of a server that answers over TLS.

    Attributes:
        certificate: Its certificate, with those between it and its authority.
        key: The key of that certificate.
        client_ca: Authorities whose certificates callers must show; None: they need none.
    """

    model_config = ConfigDict(frozen=True)

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def absolute(self) -> TlsFiles:
        """Return the same files for a process in another directory; links stay links."""
        client_ca = self.client_ca and self.client_ca.absolute()
        return TlsFiles(
            certificate=self.certificate.absolute(), key=self.key.absolute(), client_ca=client_ca
        )

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Return the contents: key, certificate, authorities.

        Raises:
            UserError: A file cannot be read.
        """
        contents = []
        for path in (self.key, self.certificate, self.client_ca):
            try:
                contents.append(None if path is None else path.read_bytes())
            except OSError as error:
                raise UserError(
                    f"{path} cannot be read: {error.strerror}",
                    "Give PEM files that the server's user can read, or use --tls-dev.",
                ) from error
        key, certificate, authorities = contents
        assert key is not None
        assert certificate is not None
        return key, certificate, authorities

    def context(self) -> ssl.SSLContext:
        """Return the context of a server that answers with them.

        Raises:
            UserError: They are no certificate and key that belong together.
        """
        self.read()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, OSError) as error:
            raise UserError(
                f"{self.certificate} and {self.key} are no certificate and its key: {error}",
                "Give PEM files, the key without a password.",
            ) from error
        return context


def development_files(directory: Path, hosts: tuple[str, ...] = ()) -> TlsFiles:
    """Make an authority, and a certificate each for the server and for a caller; valid 90 days.

    `ca.pem` is what callers trust, `client.pem` and `client.key` what they may show. The
    authority's own key is not kept. A certificate that is there, still valid and for these hosts
    stays as it is.

    Args:
        directory: Where the files go; made for this user only.
        hosts: Names and addresses of the server besides this machine's own.

    Returns:
        The server's files, without `client_ca`.

    Raises:
        UserError: The library is not installed, or the files cannot be written.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise UserError(
            "making certificates needs the library cryptography",
            "Install it with `pip install 'bilateral-serve[server]'`.",
        ) from error

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def signed(
        subject: str, usage: x509.ObjectIdentifier | None
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        own = ec.generate_private_key(ec.SECP256R1()) if usage else key
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(_AUTHORITY))
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=_DAYS))
            .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), True)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if usage == ExtendedKeyUsageOID.SERVER_AUTH:
            builder = builder.add_extension(x509.SubjectAlternativeName(_names(hosts)), False)
        return own, builder.sign(key, hashes.SHA256())

    def pem_key(own: ec.EllipticCurvePrivateKey) -> bytes:
        return own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    made = TlsFiles(certificate=directory / "server.pem", key=directory / "server.key")
    if made.certificate.is_file():
        try:
            found = x509.load_pem_x509_certificate(made.certificate.read_bytes())
        except ValueError as error:
            raise UserError(
                f"{made.certificate} is no certificate", "Name another directory with --tls-dev."
            ) from error
        if found.issuer != name(_AUTHORITY):
            raise UserError(
                f"{made.certificate} was not made by --tls-dev",
                "Name another directory with --tls-dev.",
            )
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_valid = found.not_valid_after_utc > datetime.datetime.now(datetime.timezone.utc)
        if is_valid and set(_names(hosts)) <= set(names):
            return made
    key = ec.generate_private_key(ec.SECP256R1())
    _, authority = signed(_AUTHORITY, None)
    files = {"ca.pem": authority.public_bytes(serialization.Encoding.PEM)}
    for who, usage in (
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("server", ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        own, certificate = signed(f"bilateral {who}", usage)
        files[f"{who}.key"] = pem_key(own)
        files[f"{who}.pem"] = certificate.public_bytes(serialization.Encoding.PEM)
    with disk_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The server's certificate comes last: where it is, all is.
        made.certificate.unlink(missing_ok=True)
        for file, content in files.items():
            (directory / file).unlink(missing_ok=True)
            descriptor = os.open(directory / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
    return made


def _names(hosts: tuple[str, ...]) -> list[x509.GeneralName]:
    """Return what the server's certificate is for: this machine's names, and the hosts given."""
    from cryptography import x509

    names: dict[str, x509.GeneralName] = {}
    for host in ("localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts):
        try:
            names[host] = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names[host] = x509.DNSName(host)
    return list(names.values())
