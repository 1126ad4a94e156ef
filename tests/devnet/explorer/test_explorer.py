"""The explorer: what a person finds there, by which name, and that nothing said by anybody becomes markup."""

from __future__ import annotations

import json
import re
from contextlib import closing
from html.parser import HTMLParser

import httpx
import pytest

from opengradient_devnet import Devnet
from opengradient_devnet.contracts import EXACT_PROXY, OPG, PERMIT2, RELAY, UPTO_PROXY, contract
from opengradient_devnet.explorer.markup import Html, element, fragment
from opengradient_devnet.explorer.notation import Notation, opg, utc
from opengradient_devnet.explorer.payment_pages import blob_body
from opengradient_devnet.explorer.settle_calls import settle_calls
from opengradient_devnet.gateway.payment.session_views import session_mark
from opengradient_x402 import Payments, load_network
from support.payer import Payer, chat_body, decode
from support.payers import client_for, payments_for

pytestmark = pytest.mark.devnet(schemes=("upto", "exact-permit2", "exact-eip3009"))
HOSTILE = "<script>alert('x')</script>\"&<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """A page's text, links and elements; fails on an element that is left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _value in attrs]
        if tag not in ("meta", "link", "input", "br"):
            self._open.append(tag)
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def payer(net):
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        yield payer


@pytest.fixture(scope="module")
def settled(net, payer):
    """One payment for two calls, and its settlement."""
    payment = payer.payment()
    session = payer.chat(payment=payment).headers["x-upto-session"]
    payer.chat(session=session)
    record = net.close_sessions()[-1]
    return decode(payment)["payload"]["permit2Authorization"], session, record


@pytest.fixture(scope="module")
def look(net):
    with httpx.Client(base_url=net.network["explorer_url"], trust_env=False, follow_redirects=True) as client:

        def get(path: str, *, status: int = 200, **query: str) -> Page:
            response = client.get(path, params=query or None)
            assert response.status_code == status, response.text
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            page = Page(response.text)
            page.url = str(response.url).removeprefix(net.network["explorer_url"])
            return page

        yield get


# --- what the pages say -----------------------------------------------------------------------------------


def test_a_payment_hash_opens_a_page_that_says_who_paid_whom_how_much(net, payer, settled, look):
    authorization, _session, record = settled
    page = look(f"/tx/{record.transaction}")

    amount = str(opg(record.amount_atomic))
    assert re.sub("<[^>]+>", "", amount) in page.text.replace("  ", " ")
    for told in (
        payer.address,
        net.network["payees"][0],
        authorization["nonce"],
        "upto, Permit2",
        "succeeded",
        "0.1 OPG",
    ):
        assert told in page.text
    assert "Transfer" in page.text
    assert "Settled" in page.text
    assert f"/explorer/address/{payer.address}" in page.links


@pytest.mark.parametrize(
    ("offer", "method", "event"), [(1, "exact, Permit2", "Settled"), (2, "exact, EIP-3009", "Used")]
)
def test_every_way_to_pay_is_read(net, payer, look, offer, method, event):
    response = payer.chat(payment=payer.payment(offer=offer))
    tx_hash = decode(response.headers["payment-response"])["transaction"]
    page = look(f"/tx/{tx_hash}")

    assert "A payment of" in page.text
    assert method in page.text
    assert event in page.text
    assert f"/explorer/tx/{tx_hash}" in look("/payments").links


def test_overview_counts_and_leads_to_everything(net, settled, look):
    page = look("")

    assert "Overview" in page.text
    assert f"/explorer/tx/{settled[2].transaction}" in page.links
    for path in sorted({link for link in page.links if link.startswith("/explorer")}):
        look(path.removeprefix("/explorer"))


def test_address_page_shows_balances_allowance_and_what_moved(net, payer, settled, look):
    page = look(f"/address/{payer.address.lower()}")

    assert payer.address in page.text
    assert "unlimited" in page.text
    assert "approves a spender" in page.text
    assert "settles a payment" in page.text
    assert "+ 10 OPG" in page.text.replace("  ", " ")
    assert f"/explorer/tx/{settled[2].transaction}" in page.links
    assert "gateway" in look(f"/address/{net.network['payees'][0]}").text
    assert "contract" in look(f"/address/{OPG}").text


def test_block_is_found_by_number_and_by_hash(net, settled, look):
    number = settled[2].block_number
    block = net.chain.rpc("eth_getBlockByNumber", [hex(number), False])

    by_number, by_hash = look(f"/block/{number}"), look(f"/block/{block['hash']}")
    assert block["hash"] in by_number.text
    assert by_number.links == by_hash.links
    assert f"/explorer/tx/{settled[2].transaction}" in by_number.links
    assert "mints OPG" in look("/txs").text
    assert "/explorer/block/0" in look("/blocks", **{"from": "3"}).links


def test_sessions_are_shown_while_open_and_after_without_their_ids(net, payer, settled, look):
    _authorization, ended, _record = settled
    session = payer.chat().headers["x-upto-session"]
    page = look("/sessions")

    for session_id in (session, ended):
        assert session_mark(session_id) in page.text
        assert session_id not in page.text
        assert session_id[:8] not in page.text
    assert "open" in page.text
    net.close_sessions()
    assert "No session is open" in look("/sessions").text


def test_failed_settlement_is_shown_with_its_reason(devnets):
    from opengradient_devnet.faults import FailSettlement

    net = devnets()
    with Payer(net.gateway_url, private_key=net.account(approved=True).private_key) as payer:
        net.close_sessions()  # the fault strikes once
        net.faults.inject(FailSettlement(reason="settlement_timeout"))
        payer.chat()
        net.close_sessions()
        page = Page(httpx.get(f"{net.network['explorer_url']}/sessions", trust_env=False).text)
    assert "settlement_timeout" in page.text


def test_data_settlements_lead_from_chain_to_blob_to_conversation(net, payer, look):
    body = chat_body("Where does the Rhine rise?")
    individual = payer.chat(body, headers={"x-settlement-type": "individual"})
    tx_hash, blob_id = (individual.headers[f"x-settlement-{name}"] for name in ("tx-hash", "walrus-blob-id"))
    payer.chat(body, headers={"x-settlement-type": "batch"})
    batch = net.flush_batches()[-1]

    assert {f"/explorer/blob/{blob_id}", f"/explorer/blob/{batch.blob_id}"} <= set(look("/data").links)
    assert f"/explorer/blob/{blob_id}" in look(f"/tx/{tx_hash}").links
    call = look(f"/blob/{blob_id}")
    assert "Where does the Rhine rise?" in call.text
    assert individual.headers["x-tee-request-hash"] in call.text
    assert f"/explorer/tx/{tx_hash}" in call.links
    tree = look(f"/blob/{batch.blob_id}")
    assert "Calls in this batch" in tree.text
    assert f"/explorer/tx/{batch.transaction}" in tree.links


# --- the search box ---------------------------------------------------------------------------------------


def test_one_box_finds_hashes_numbers_nonces_addresses_and_blobs(net, payer, settled, look):
    authorization, _session, record = settled
    open_payment = payer.payment()
    session = payer.chat(payment=open_payment).headers["x-upto-session"]
    waiting = decode(open_payment)["payload"]["permit2Authorization"]["nonce"]
    proof = payer.chat(chat_body("Prove it"), headers={"x-settlement-type": "individual"})
    batched = payer.chat(chat_body("Batch it"), headers={"x-settlement-type": "batch"}).json()
    batch = net.flush_batches()[-1]
    block = net.chain.rpc("eth_getBlockByNumber", [hex(record.block_number), False])
    nonce = authorization["nonce"]
    by_transaction = f"/tx/{record.transaction}"

    for query, path in [
        (record.transaction, by_transaction),
        (f"  {record.transaction[2:].upper()} ", by_transaction),
        (nonce, by_transaction),
        (f"0x{int(nonce):064x}", by_transaction),
        (block["hash"], f"/block/{record.block_number}"),
        ("0", "/block/0"),
        (payer.address.lower(), f"/address/{payer.address}"),
        ("0x" + batch.merkle_root.hex(), f"/tx/{batch.transaction}"),
        (batch.blob_id, f"/blob/{batch.blob_id}"),
        (batched["tee_request_hash"], f"/blob/{batch.blob_id}"),
        (proof.headers["x-tee-output-hash"], f"/tx/{proof.headers['x-settlement-tx-hash']}"),
        (waiting, "/sessions"),
        (session_mark(session), "/sessions"),
    ]:
        assert look("/search", q=query).url == path
    net.close_sessions()


def test_a_nonce_of_eip3009_is_found_in_both_notations(net, payer, look):
    payment = payer.payment(offer=2)
    tx_hash = decode(payer.chat(payment=payment).headers["payment-response"])["transaction"]
    nonce = decode(payment)["payload"]["authorization"]["nonce"]

    assert look("/search", q=nonce).url == look("/search", q=str(int(nonce, 16))).url == f"/tx/{tx_hash}"


def test_a_hash_with_several_meanings_lists_them(net, payer, look):
    proof = payer.chat(chat_body("Prove it"), headers={"x-settlement-type": "individual"})
    payer.chat(chat_body("Prove it again"), headers={"x-settlement-type": "individual"})
    page = look("/search", q=proof.headers["x-tee-id"])

    assert page.text.count("the enclave of a call") >= 2


@pytest.mark.parametrize(
    "query", ["", "nothing", "0x" + "ab" * 32, "0x12", "9" * 70, "9" * 5000, "٣", "../../etc", HOSTILE, "\x00"]
)
def test_what_is_not_there_is_said_to_be_not_there(look, query):
    assert "Nothing here has that name" in look("/search", status=404, q=query).text


@pytest.mark.parametrize(
    "path",
    [
        f"/tx/0x{'00' * 32}",
        "/tx/nonsense",
        "/block/999999999",
        f"/block/0x{'ab' * 32}",
        "/block/-1",
        f"/block/{'9' * 30}",
        "/address/0x12",
        f"/address/{'ab' * 20}",
        "/blob/none",
        f"/tx/{'%3Cscript%3E'}",
    ],
)
def test_unknown_things_are_404_with_a_page(look, path):
    page = look(path, status=404)

    assert "There is no" in page.text
    assert "script" not in page.tags


# --- hostile values ---------------------------------------------------------------------------------------


def test_what_a_caller_or_a_model_says_never_becomes_markup(net, payer, look):
    name = "<img src=x onerror=alert(1)>"
    with Devnet(prices=_prices(name)) as other:
        with Payer(other.gateway_url, private_key=other.account(approved=True).private_key) as hostile:
            answer = hostile.chat(
                chat_body(HOSTILE, model=name, user=HOSTILE), headers={"x-settlement-type": "individual"}
            )
        blob_id = answer.headers["x-settlement-walrus-blob-id"]
        shown = Page(httpx.get(f"{other.network['explorer_url']}/blob/{blob_id}", trust_env=False).text)

    assert name in "".join(shown.words)
    assert HOSTILE in "".join(shown.words)
    assert not {"script", "img"} & set(shown.tags)
    assert not [attribute for attribute in shown.attributes if attribute.startswith("on")]


def test_what_anybody_writes_into_the_relay_never_becomes_markup(net, look):
    writer = net.account()
    hostile = contract("Relay").encode("batchSettle", b"\x01" * 32, 1, b"\"><script>'\xff/../..")
    tx_hash = net.chain.send(writer, to=RELAY, data=hostile)["transactionHash"]

    for page in (look("/data"), look(f"/tx/{tx_hash}"), look("/search", q="0x" + "01" * 32)):
        assert "script" not in page.tags
        assert "0x" + "01" * 32 in page.text or "0x01010101…010101" in page.text
    assert look(f"/search?q={HOSTILE}", status=404).tags.count("input") == 1


def test_transactions_that_nobody_here_understands_are_shown_as_they_are(net, look):
    sender = net.account()
    for to, data in [
        (sender.address, b""),
        (UPTO_PROXY, b"\xde\xad\xbe\xef"),
        (OPG, contract("OPG").selector("approve") + b"\x01"),
        (None, bytes.fromhex("600a600c600039600a6000f3602a60005260206000f3")),
        (PERMIT2, contract("Permit2").encode("invalidateUnorderedNonces", 2**248 - 1, 2**256 - 1)),
    ]:
        tx_hash = net.chain.send(sender, to=to, data=data, value=1 if to == sender.address else 0)["transactionHash"]
        page = look(f"/tx/{tx_hash}")
        assert data.hex() in page.text
        assert ("reverted" in page.text) == (to in (UPTO_PROXY, OPG))


def test_search_results_keep_the_query_in_the_box_and_escaped(look):
    page = look("/search", status=404, q=HOSTILE)

    assert "script" not in page.tags
    assert "onerror" not in page.attributes


# --- parts ------------------------------------------------------------------------------------------------


def test_markup_escapes_everything_that_was_not_built():
    built = element("a", "<b>", element("i", 1), [None, "&"], href='"x"', class_="c", disabled=True, hidden=False)

    assert built == '<a href="&quot;x&quot;" class="c" disabled>&lt;b&gt;<i>1</i>&amp;</a>'
    assert fragment("\ud800") == "?"
    assert isinstance(fragment(Html("<b>")), Html)
    assert fragment(Html("<b>")) == "<b>"


def test_amounts_are_exact_and_ages_readable():
    notation = Notation(now_s=1000, labels={})

    assert ">0.000000000000000001<" in opg(1)
    assert "unlimited" in opg(2**256 - 1)
    assert [notation.age(time_s) for time_s in (1000, 940, 1061, -200_000)] == [
        "now",
        "1 min ago",
        "in 1 min",
        "2 d ago",
    ]
    assert utc(10**30) == str(10**30)


def test_settlements_are_found_wherever_they_are_nested(net, payer, settled):
    transaction = net.chain.rpc("eth_getTransactionByHash", [settled[2].transaction])
    data = bytes.fromhex(transaction["input"][2:])
    nested = contract("Multicall3").encode("tryAggregate", True, [(UPTO_PROXY, data), (EXACT_PROXY, data)])

    assert settle_calls(nested) == settle_calls(data) * 2
    assert settle_calls(data)[0].payer == payer.address
    assert settle_calls(data[:100]) == settle_calls(data[:4] * 50) == settle_calls(b"") == []


def _prices(name: str) -> dict:
    price = {
        "context_tokens": 1000,
        "max_output_tokens": 1000,
        "input_usd_per_mtok": "1",
        "output_usd_per_mtok": "1",
    }
    return {"opg_usd": "1", "models": {f"local/{name}": price}}


def test_blob_that_is_neither_call_nor_tree_is_shown_as_json():
    body = blob_body("id", {"values": 3, "request": [HOSTILE]}, Notation(now_s=0, labels={}), records=[])
    page = Page(body)

    assert json.dumps(HOSTILE) in "".join(page.words)
    assert "script" not in page.tags


def test_a_payment_leads_to_its_calls_and_their_data(net, payer, look):
    answered = payer.chat(headers={"x-settlement-type": "individual"})
    private = payer.chat(session=answered.headers["x-upto-session"], headers={"x-settlement-type": "private"})
    record = net.close_sessions()[-1]
    page = look(f"/tx/{record.transaction}")
    assert page.words.count(answered.json()["model"]) == 2
    usage = answered.json()["usage"]
    assert f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out" in page.text
    own = f"/explorer/tx/{record.transaction}"
    (data,) = {link for link in page.links if link.startswith("/explorer/tx/")} - {own}
    assert "IndividualSettlement" in look(data.removeprefix("/explorer")).text
    assert "none, it is private" in page.text
    # A private call's hash is nowhere on the chain, and still leads to what paid for it.
    found = look(f"/search?q={private.json()['tee_request_hash']}")
    assert record.transaction in found.url or any(record.transaction in link for link in found.links)


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_id_of_a_call_leads_to_its_session_and_then_to_its_payment(net, look, tmp_path, is_stream):
    body = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi."}]}
    with payments_for(net, net.account(approved=True), tmp_path / "ledger.sqlite") as payments:
        with client_for(payments, settlement_mode="private") as client:
            if is_stream:
                list(client.stream(body))
            else:
                client.chat(body)
        (receipt,) = payments.ledger.receipts().result()
        assert look("/search", q=receipt.call_id).url == "/sessions"
        net.close_sessions()
        settled = payments.reconciler.refresh(receipt, timeout_s=None)

    found = look("/search", q=receipt.call_id)
    assert found.url == f"/tx/{settled.payment_tx_hash}"
    assert receipt.call_id[:10] in found.text


def test_a_network_that_does_not_ask_for_ids_of_calls_gets_none(net, look, tmp_path):
    described = {name: value for name, value in net.network.items() if name != "call_id_header"}
    file = tmp_path / "network.json"
    file.write_text(json.dumps(described))
    payments = Payments.open(
        network=load_network(file),
        private_key=net.account(approved=True).private_key,
        ledger=f"sqlite:///{tmp_path / 'ledger.sqlite'}",
    )
    with closing(payments), client_for(payments) as client:
        client.chat({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "Hi."}]})
        (receipt,) = payments.ledger.receipts().result()
    assert "has answered no call with this id" in look("/search", status=404, q=receipt.call_id).text


def test_an_unknown_id_of_a_call_is_answered_with_where_to_look(look):
    assert "receipts show call_12ab --full" in look("/search?q=call_12ab", status=404).text


def test_pages_light_the_tab_that_they_belong_to(net, settled, look):
    *_, record = settled
    raw = httpx.get(f"{net.network['explorer_url']}/tx/{record.transaction}", trust_env=False).text
    assert re.search(r'<a [^>]*href="/explorer/payments"[^>]*aria-current="page"', raw) or re.search(
        r'<a [^>]*aria-current="page"[^>]*href="/explorer/payments"', raw
    )


def test_amounts_of_a_column_stand_below_each_other():
    from opengradient_devnet.explorer.notation import opg_column

    one, two, three = opg_column([12 * 10**18, 15 * 10**17, 1])
    assert 'class="before-0 behind-18"' in one
    assert 'class="before-1 behind-17"' in two
    assert 'class="before-1 behind-0"' in three
