"""Whom to believe on a TLS line: the public certificate authorities, or one registered certificate and nobody else.

An enclave makes its own certificate, and the registry publishes it. So that certificate is the only trust
anchor, and names do not matter: whoever holds its key is the enclave. There is no context here that trusts
everybody.
"""

from __future__ import annotations

import ssl

import httpx

from opengradient_x402.gateway.endpoints import Endpoint


def context_for(endpoint: Endpoint) -> ssl.SSLContext:
    """The TLS context for connections to an endpoint. Loading the public authorities takes about 20 ms."""
    if endpoint.certificate_der is not None:
        return pinned_context(endpoint.certificate_der)
    if endpoint.base_url.startswith("http://"):
        # Loopback only (the policy sees to it): an empty context trusts nothing and loads no files.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.create_ssl_context()


def pinned_context(certificate_der: bytes) -> ssl.SSLContext:
    """A context that accepts this certificate only. Raises ValueError when it is not one X.509 certificate."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # verify_mode stays CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The certificate itself is the anchor, whether or not it is self-signed or marked as an authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        x509.load_der_x509_certificate(certificate_der)  # OpenSSL would take several, one after another
        context.load_verify_locations(cadata=certificate_der)
    except x509.InvalidVersion as exc:
        raise ValueError(str(exc)) from exc
    except ssl.SSLError as exc:
        raise ValueError(f"not an X.509 certificate ({exc.reason or 'unreadable'})") from exc
    # An anchor may also sign other certificates. Those are not registered, so the match is exact.
    context.sslsocket_class, context.sslobject_class = _exact(certificate_der)
    return context


def _exact(certificate_der: bytes) -> tuple[type[ssl.SSLSocket], type[ssl.SSLObject]]:
    """What the context makes of a connection, for threads and for event loops: both end the handshake so."""

    def check(shown: bytes | None) -> None:
        if shown != certificate_der:
            raise ssl.SSLCertVerificationError(1, "certificate verify failed: it is not the registered one")

    class ExactSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  (as ssl has it)
            super().do_handshake(block)
            check(self.getpeercert(binary_form=True))

    class ExactObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self.getpeercert(binary_form=True))

    return ExactSocket, ExactObject


def is_certificate_failure(exc: BaseException) -> bool:
    """Whether a connection failed because the other side showed a certificate that is not trusted."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
