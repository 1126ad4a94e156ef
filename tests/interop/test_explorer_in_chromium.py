"""The explorer in a real browser: it is laid out, styled light and dark, complains of nothing and runs nothing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from opengradient_devnet import Devnet
from opengradient_x402.networks import load_network
from support.payer import Payer, chat_body

DARK = "--blink-settings=preferredColorScheme=0"
HEADER_LIGHT, HEADER_DARK = (0xFF, 0xFF, 0xFF), (0x16, 0x1D, 0x26)
HOSTILE = "<script>document.title = 'broken'</script>"


@pytest.fixture(scope="module")
def net():
    with Devnet() as net:
        yield net


@pytest.fixture(scope="module")
def payment_hash(net):
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        payer.chat(chat_body(HOSTILE), headers={"x-settlement-type": "individual"})
    return net.close_sessions()[0].transaction


def first_pixel(png: Path) -> tuple[int, ...]:
    """Red, green and blue of the top left corner."""
    content = png.read_bytes()
    data, position = b"", 8
    while position < len(content):
        (length,) = struct.unpack_from(">I", content, position)
        if content[position + 4 : position + 8] == b"IDAT":
            data += content[position + 8 : position + 8 + length]
        position += length + 12
    return tuple(zlib.decompress(data)[1:4])  # no filter changes the first pixel


def test_a_payment_hash_opens_a_readable_page(net, payment_hash, browse):
    explorer_url = load_network(f"{net.gateway_url}/network").explorer_url
    dom, complaints = browse(f"{explorer_url}/tx/{payment_hash}", "--dump-dom")

    assert "A payment of " in dom
    assert payment_hash in dom
    assert complaints == ""


@pytest.mark.parametrize(("flags", "colour"), [([], HEADER_LIGHT), ([DARK], HEADER_DARK)], ids=["light", "dark"])
def test_pages_follow_the_readers_colour_scheme(net, payment_hash, browse, tmp_path, flags, colour):
    picture = tmp_path / "page.png"
    browse(net.network["explorer_url"], f"--screenshot={picture}", *flags)

    assert first_pixel(picture) == colour


def test_what_a_caller_said_is_text_in_the_browser_too(net, payment_hash, browse):
    record = net.chain.rpc("eth_getLogs", [{"fromBlock": "0x0", "address": net.network["relay"]["address"]}])[0]
    written, _ = browse(f"{net.network['explorer_url']}/tx/{record['transactionHash']}", "--dump-dom")
    blob_path = written.split('href="/explorer/blob/')[1].split('"')[0]
    dom, complaints = browse(f"{net.network['explorer_url']}/blob/{blob_path}", "--dump-dom")

    assert "&lt;script&gt;" in dom
    assert "<title>Blob" in dom
    assert "<script" not in dom
    assert complaints == ""
