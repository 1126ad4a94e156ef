"""A self-signed TLS certificate for 127.0.0.1, new for every run, and the server context that presents it.

Clients trust it only through the TEE registry, which publishes the DER bytes.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFETIME = dt.timedelta(days=30)
# Clocks of containers and their hosts differ by a little.
_EARLIER = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate as DER, and the context of a server that presents it."""

    der: bytes
    server_context: ssl.SSLContext = field(repr=False)


def make_certificate(*, host: str = "127.0.0.1") -> Certificate:
    """Make a P-256 key and a self-signed certificate for `host` and localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "OpenGradient devnet gateway")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        der=certificate.public_bytes(serialization.Encoding.DER),
        server_context=_server_context(certificate, key),
    )


def _server_context(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # ssl reads key and chain from files only; mkdtemp makes the folder readable by its owner alone.
    with tempfile.TemporaryDirectory(prefix="opengradient-devnet-") as folder:
        path = Path(folder) / "gateway.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context
