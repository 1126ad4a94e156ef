"""What people give in place of a private key, and what they are told to do. None of it is repeated: it may be secret.

Knows no signer, and raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

GIVE_DIGITS: Final = "Give 64 hex digits, with or without 0x, as `private_key` or in OG_PRIVATE_KEY."
_GIVE_DIGITS_OF_IT: Final = GIVE_DIGITS.replace("Give", "Give the key of it:")
_NAME_THE_FILE: Final = (
    "Set OG_KEYSTORE to the path of a keystore, or OG_PRIVATE_KEY_FILE to that of a file with the key."
)
_KEYSTORE: Final = (
    "it is the text of a keystore, or other JSON",
    "Set OG_KEYSTORE to the path of a file that holds it, and OG_KEYSTORE_PASSWORD; unset OG_PRIVATE_KEY.",
)
_PATH: Final = ("it looks like the path of a file", _NAME_THE_FILE)
_OTHER_TEXTS: Final = (
    (r"\{.*", *_KEYSTORE),
    (
        r"(?:\W*\d*\W*[A-Za-z]{3,8}\b){12,24}\W*",  # BIP-39: 12 to 24 words, here numbered or with commas as well
        "it is a recovery phrase (mnemonic)",
        "Pass the account that eth-account's `Account.from_mnemonic` makes, or its key in OG_PRIVATE_KEY.",
    ),
    (r"(?:0x)?[0-9a-f]{40}", "it is an address, which pays nothing by itself", _GIVE_DIGITS_OF_IT),
    (r"[\w-]+(?:\.[\w-]+)*\.eth", "it is a name, which pays nothing by itself", _GIVE_DIGITS_OF_IT),
    (r"(?:0x)?[0-9a-f]{63}", "it has 63 hex digits: a zero at its beginning seems to be lost", GIVE_DIGITS),
    (
        r"(?:0x)?(?:0[23][0-9a-f]{64}|(?:04)?[0-9a-f]{128})",
        "it is a public key, which pays nothing",
        _GIVE_DIGITS_OF_IT,
    ),
    (r"[xyzt]prv\w+", "it is an extended key (BIP-32), of which many accounts are made", _GIVE_DIGITS_OF_IT),
    (r"[A-Za-z0-9+/]{43}=", "it looks like base64", "Write the same 32 bytes as 64 hex digits."),
    (
        r"(?:export\s+|set\s+|\$env:)?[A-Z_]\w*\s*=.*",
        "it is a whole line of a shell or of a .env file",
        "Give what stands behind the equals sign.",
    ),
    (
        r"-----BEGIN .*",
        "it is a PEM file",
        "Write the 32 bytes of its key as 64 hex digits (`openssl ec -text -noout` shows them).",
    ),
    (r".*[/\\.].*", *_PATH),
)
"""(what it matches whole, what it is, what to do), in the order in which they are tried."""


def what_it_is(text: str) -> tuple[str, str]:
    """What was given in place of a key, and what to do. Never a part of it: it may be a secret."""
    for pattern, what, remedy in _OTHER_TEXTS:
        if re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE | re.DOTALL):
            return what, remedy
    return f"it has {len(text)} characters, or some that are not hex digits", GIVE_DIGITS


def what_object_it_is(value: Any) -> tuple[str, str]:
    """As `what_it_is`, for what is no text."""
    if isinstance(value, Mapping):
        return _KEYSTORE
    return _PATH if isinstance(value, Path) else (f"its type is {type(value).__name__}, and not text", GIVE_DIGITS)
