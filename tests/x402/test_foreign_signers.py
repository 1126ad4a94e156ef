"""Keys and signers that people have already: accounts, keystores, KMS, wallets that sign typed data only."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from pydantic import SecretStr

from opengradient_x402.chain.eip712 import payment_digest, payment_document, token_permit
from opengradient_x402.errors import ConfigurationError, InvalidPrivateKey
from opengradient_x402.keys.signer import (
    ForeignSigner,
    Keystore,
    LocalSigner,
    recover_address,
    sign_typed,
    signer_of,
    text_digest,
    with_hidden_secrets,
)
from opengradient_x402.ledger.ledger import Ledger
from opengradient_x402.networks import load_network
from opengradient_x402.payment.payments import Payments
from opengradient_x402.settings import Settings
from support.payers import PROMPT, client_for, network_of

KEY = "0x" + "5e" * 32
ACCOUNT = Account.from_key(KEY)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PHRASE = "test test test test test test test test test test test junk"


class Kms:
    """Signs digests, in lower-case spelling, with a random k, a high s and v from zero, as some services do."""

    def __init__(self, account):
        self.address, self._account, self.asked = account.address.lower(), account, []

    def sign_digest(self, digest):
        self.asked.append(digest)
        made = self._account.unsafe_sign_hash(digest)
        high = ORDER - made.s
        return made.r.to_bytes(32, "big") + high.to_bytes(32, "big") + bytes([28 - made.v])


class Device:
    """Signs typed data and nothing else, as hardware wallets and WalletConnect do."""

    def __init__(self, account):
        self.address, self._account, self.shown = account.address, account, []

    def sign_typed_data(self, domain_data=None, message_types=None, message_data=None, full_message=None):
        self.shown.append(full_message)
        return self._account.sign_typed_data(domain_data, message_types, message_data, full_message)


@pytest.mark.parametrize(
    "key", [ACCOUNT, ACCOUNT._key_obj, ACCOUNT.key, SecretStr(KEY)], ids=["account", "eth-keys", "HexBytes", "secret"]
)
def test_objects_that_hold_a_key_are_the_local_signer_of_it(key):
    signer = signer_of(key)
    assert isinstance(signer, LocalSigner)
    assert signer.address == ACCOUNT.address
    assert signer.nonce_for("call") == LocalSigner(KEY).nonce_for("call")


@pytest.mark.parametrize(
    ("value", "what", "remedy"),
    [
        (PHRASE, "a recovery phrase", "from_mnemonic"),
        (ACCOUNT.address, "an address", "Give the key of it"),
        (json.dumps({"crypto": {}}), "the text of a keystore", "OG_KEYSTORE"),
        (PHRASE.upper().replace(" ", ", "), "a recovery phrase", "from_mnemonic"),
        (" ".join(f"{i}. {word}" for i, word in enumerate(PHRASE.split(), 1)), "a recovery phrase", "from_mnemonic"),
        ("wallet-of-mine.eth", "a name", "Give the key of it"),
        ("0x02" + KEY[2:], "a public key", "Give the key of it"),
        ("xprv" + "9" * 107, "an extended key", "Give the key of it"),
        (base64.b64encode(ACCOUNT.key).decode(), "base64", "64 hex digits"),
        ("/home/me/.keys/UTC--2026.json", "the path of a file", "OG_PRIVATE_KEY_FILE"),
        ("C:\\keys\\wallet.json", "the path of a file", "OG_KEYSTORE"),
        (f"export OG_PRIVATE_KEY={KEY}", "a whole line", "behind the equals sign"),
        (f"OG_PRIVATE_KEY = '{KEY}'", "a whole line", "behind the equals sign"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHQC/+==\n-----END EC PRIVATE KEY-----\n", "a PEM file", "64 hex digits"),
        (KEY[:-1], "63 hex digits: a zero", "64 hex digits"),
    ],
)
def test_what_is_no_key_is_called_by_its_name(value, what, remedy):
    with pytest.raises(InvalidPrivateKey, match=f"{what}.*Nothing was paid.*{remedy}") as caught:
        LocalSigner(value)
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (json.loads('{"crypto": {}}'), "the text of a keystore"),
        (Path("wallet.json"), "the path of a file"),
        (int(KEY, 16), "its type is int"),
    ],
)
def test_an_object_that_is_no_key_is_called_by_its_name(value, what):
    with pytest.raises(InvalidPrivateKey, match=f"{what}.*Nothing was paid") as caught:
        LocalSigner(value)
    assert str(int(KEY, 16)) not in str(caught.value)


# -- keystores


@pytest.fixture(scope="module")
def keystore(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "UTC--wallet.json"
    path.write_text(json.dumps(Account.encrypt(KEY, "open sesame", kdf="pbkdf2", iterations=2)))
    return path


def test_a_keystore_is_opened_with_its_password(keystore):
    assert signer_of(Keystore(keystore, "open sesame")).address == ACCOUNT.address
    assert signer_of(Keystore(str(keystore), SecretStr("open sesame"))).address == ACCOUNT.address
    assert "sesame" not in repr(Keystore(keystore, "open sesame"))


@pytest.mark.parametrize(
    ("content", "password", "reason"),
    [
        (None, "open sesame", "cannot be read"),
        ("{", "open sesame", "is not JSON"),
        ("{}", "open sesame", "no `crypto` member"),
        ('{"version": 3, "crypto": {}}', "open sesame", "cannot be decrypted"),
        ('{"version": 9, "crypto": {}}', "open sesame", "cannot be decrypted"),
        ("good", "wrong", "the password is wrong"),
        ("good", None, "needs its password.*OG_KEYSTORE_PASSWORD_FILE"),
        (None, None, "it cannot be read"),
    ],
)
def test_a_keystore_that_cannot_be_opened_says_why(keystore, tmp_path, content, password, reason):
    path = tmp_path / "wallet.json"
    if content is not None:
        path.write_text(keystore.read_text() if content == "good" else content)
    with pytest.raises(InvalidPrivateKey, match=f"{reason}.*Nothing was paid|{reason}"):
        Keystore(path, password).open()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("crypto", "kdfparams", "c"), 10**30),
        (("crypto", "kdfparams", "dklen"), 10**12),
        (("crypto", "kdfparams", "prf"), "md5"),
        (("crypto", "kdfparams"), None),
        (("crypto", "mac"), 5),
        (("crypto", "cipherparams"), []),
        (("crypto",), "text"),
    ],
)
def test_a_damaged_keystore_cannot_be_decrypted(keystore, tmp_path, where, value):
    with pytest.raises(InvalidPrivateKey, match=r"cannot be decrypted.*Nothing was paid"):
        Keystore(changed(keystore, tmp_path, where, value), "open sesame").open()


def test_a_keystore_that_opens_to_the_key_of_another_wallet_is_not_used(keystore, tmp_path):
    """The checksum in the file does not cover the initial value of its cipher."""
    path = changed(keystore, tmp_path, ("crypto", "cipherparams", "iv"), "00" * 16)
    with pytest.raises(InvalidPrivateKey, match=r"not that of the address.*Nothing was paid"):
        Keystore(path, "open sesame").open()


@pytest.mark.parametrize("address", [ACCOUNT.address, ACCOUNT.address.lower()[2:], "", None])
def test_the_address_in_a_keystore_may_be_written_in_every_way_or_left_out(keystore, tmp_path, address):
    path = changed(keystore, tmp_path, ("address",), address)
    assert Keystore(path, "open sesame").open().address == ACCOUNT.address


def changed(keystore, directory, where, value):
    """A copy of the keystore with another value at a place in it."""
    document = inner = json.loads(keystore.read_text())
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    (directory / "changed.json").write_text(json.dumps(document))
    return directory / "changed.json"


def test_the_environment_names_keystore_password_and_files(keystore, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    named = {"OG_KEYSTORE": str(keystore), "OG_KEYSTORE_PASSWORD_FILE": str(secret)}
    assert signer_of(Settings.load(named, dotenv=False).require_key()).address == ACCOUNT.address
    secret.write_text(KEY + "\n")
    assert signer_of(Settings.load({"OG_PRIVATE_KEY_FILE": str(secret)}, dotenv=False).require_key()).address
    with pytest.raises(ConfigurationError, match="both set"):
        Settings.load({**named, "OG_PRIVATE_KEY": KEY}, dotenv=False).require_key()
    with pytest.raises(ConfigurationError, match=r"OG_PRIVATE_KEY_FILE names .*cannot be read"):
        Settings.load({"OG_PRIVATE_KEY_FILE": str(tmp_path / "none")}, dotenv=False)


def test_a_password_s_file_may_end_with_a_line_feed_and_blanks_belong_to_the_password(tmp_path):
    secret = tmp_path / "secret"
    for written in (" open sesame ", " open sesame \n", "\ufeff open sesame \r\n"):
        secret.write_text(written, encoding="utf-8", newline="")
        settings = Settings.load({"OG_KEYSTORE_PASSWORD_FILE": str(secret)}, dotenv=False)
        assert settings.keystore_password is not None
        assert settings.keystore_password.get_secret_value() == " open sesame "


@pytest.mark.parametrize("name", ["OG_PRIVATE_KEY", "OG_KEYSTORE_PASSWORD"])
def test_a_secret_s_file_that_is_empty_is_named(tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("\n")
    with pytest.raises(ConfigurationError, match=f"{name}_FILE names {secret}, which is empty"):
        Settings.load({f"{name}_FILE": str(secret)}, dotenv=False)


# -- signers


def test_signatures_come_out_canonical_whatever_form_the_signer_gives():
    signer = signer_of(Kms(ACCOUNT))
    digest = hashlib.sha256(b"x").digest()
    assert signer.address == ACCOUNT.address
    assert signer.sign_digest(digest) == LocalSigner(KEY).sign_digest(digest)


def test_a_signature_of_another_key_is_never_used():
    other = SimpleNamespace(address=ACCOUNT.address, sign_digest=Kms(Account.create()).sign_digest)
    with pytest.raises(ConfigurationError, match=f"is not that of {ACCOUNT.address}. Nothing was sent"):
        signer_of(other).sign_digest(bytes(32))


@pytest.mark.parametrize("answer", [b"", b"\x01" * 96, "0xzz", None, 7, b"\xff" * 65])
def test_what_is_no_signature_is_an_error(answer):
    contract_wallet = SimpleNamespace(address=ACCOUNT.address, sign_digest=lambda digest: answer)
    with pytest.raises(ConfigurationError, match="Nothing was sent"):
        signer_of(contract_wallet).sign_digest(bytes(32))


def test_an_object_that_cannot_sign_is_no_key():
    for thing in (SimpleNamespace(address=ACCOUNT.address), SimpleNamespace(sign_digest=print, address="me"), 7, {}):
        with pytest.raises(InvalidPrivateKey):
            signer_of(thing)


def test_a_wallet_that_signs_typed_data_only_is_told_what_else_it_cannot_do():
    with pytest.raises(ConfigurationError, match=r"signs typed data only.*Nothing was signed"):
        signer_of(Device(ACCOUNT)).sign_digest(bytes(32))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scheme": "exact", "facilitator": None},
        {"scheme": "exact", "transfer_method": "eip3009", "facilitator": None},
    ],
)
def test_the_document_of_a_payment_has_the_digest_of_the_payment(net, changes):
    terms = SimpleNamespace(
        **{
            "scheme": "upto",
            "transfer_method": "permit2",
            "asset": network_of(net).asset.address,
            "payee": ACCOUNT.address,
            "facilitator": ACCOUNT.address,
            "spender": network_of(net).upto_proxy,
            "amount_atomic": 10**17,
            "deadline": 2_000_000_000,
        }
        | changes
    )
    fields = {"payer": ACCOUNT.address, "nonce": 2**255 + 1, "network": network_of(net)}
    document, digest = payment_document(terms, **fields), payment_digest(terms, **fields)
    assert _hash_eip191_message(encode_typed_data(full_message=document)) == digest
    signature = sign_typed(signer_of(Device(ACCOUNT)), digest, lambda: document)
    assert signature == LocalSigner(KEY).sign_digest(digest)


def test_the_permit_that_a_wallet_of_typed_data_is_shown_is_the_one_that_is_signed():
    digest, document = token_permit(
        load_network("base-sepolia-usdc"), owner=ACCOUNT.address, amount_atomic=10_000, nonce=3, deadline_s=2**31
    )
    assert _hash_eip191_message(encode_typed_data(full_message=document)) == digest


@pytest.mark.parametrize("kind", [Kms, Device])
def test_the_nonce_secret_is_signed_for_once_and_outlives_the_process(tmp_path, kind):
    first, again = kind(ACCOUNT), kind(ACCOUNT)
    nonces = []
    for wallet in (first, again):
        signer, ledger = signer_of(wallet), Ledger(tmp_path / "l.sqlite")
        signer.remember_in(ledger)
        nonces.append([signer.nonce_for(f"call {number}") for number in range(3)])
        ledger.close()
    assert nonces[0] == nonces[1]
    assert len(set(nonces[0])) == 3
    assert [len(getattr(wallet, "asked", None) or getattr(wallet, "shown", ())) for wallet in (first, again)] == [1, 0]


@pytest.mark.parametrize("kind", [Kms, Device])
def test_other_peoples_signers_pay(net, tmp_path, kind):
    account = net.account(opg="5", approved=True)
    payments = Payments.open(
        network=network_of(net),
        private_key=kind(Account.from_key(account.private_key)),
        ledger=tmp_path / "l.sqlite",
    )
    with client_for(payments) as client:
        receipt = client.chat(PROMPT).receipt
    assert receipt.payer == account.address
    payments.close()


def test_both_faces_take_accounts_and_keystores(keystore):
    from langchain_opengradient import ChatOpenGradient
    from llama_index_opengradient import OpenGradient

    for make in (ChatOpenGradient, OpenGradient):
        assert make(model="openai/gpt-5", private_key=ACCOUNT).private_key.address == ACCOUNT.address
        held = make(model="openai/gpt-5", private_key=Keystore(keystore, "open sesame"))
        assert held.private_key == Keystore(keystore, "open sesame")
        assert "sesame" not in repr(held) + str(held.model_copy())
        assert make(model="openai/gpt-5", private_key=KEY).private_key == SecretStr(KEY)
        with pytest.raises(InvalidPrivateKey):
            make(model="openai/gpt-5", private_key=7)


def test_a_text_is_signed_as_wallets_sign_it():
    signature = LocalSigner(KEY).sign_digest(text_digest("hello é"))
    assert recover_address(text_digest("hello é"), signature) == ACCOUNT.address
    assert with_hidden_secrets({"private_key": None}) == {"private_key": None}
    assert isinstance(with_hidden_secrets({"private_key": Kms(ACCOUNT)})["private_key"], ForeignSigner)


def test_nothing_of_web3_is_imported_before_a_keystore_is_opened(keystore):
    program = (
        "import sys; from opengradient_x402.keys.signer import Keystore, LocalSigner;"
        f"LocalSigner('0x' + '11' * 32).sign_digest(bytes(32)); store = Keystore({str(keystore)!r}, 'open sesame');"
        "seen = [m for m in ('web3', 'eth_account', 'eth_abi') if m in sys.modules]; store.open();"
        "print(seen, 'eth_account' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]
