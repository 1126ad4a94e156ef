"""What tests of the paying transport share."""

from __future__ import annotations

import sys

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from opengradient_x402.keys import signer

KEY = b"\1" * 32


@pytest.fixture(params=["coincurve", "OpenSSL", "pure Python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to sign: also as on a machine without coincurve, and with an OpenSSL that is too old."""

    def too_old(*_: object, **__: object) -> None:
        raise UnsupportedAlgorithm("deterministic signing")

    if request.param != "coincurve":
        monkeypatch.setitem(sys.modules, "coincurve", None)
    if request.param == "pure Python":
        monkeypatch.setattr(ec, "ECDSA", too_old)
    assert (signer._fast_key(KEY) is None) == (request.param != "coincurve")
    assert (signer._openssl_key(KEY) is None) == (request.param == "pure Python")
    return str(request.param)
