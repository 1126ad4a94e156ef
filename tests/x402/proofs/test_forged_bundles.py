"""What no list of lies names: random forgeries, made-up evidence, nodes that lie, and whom a reader trusts."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from dataclasses import replace
from hashlib import sha256

import pytest
import rfc8785
from eth_utils.crypto import keccak
from typer.testing import CliRunner

from opengradient_devnet import Scheme
from opengradient_x402.cli.main import build_app
from opengradient_x402.errors import BundleUnreadable, ConfigurationError, OpenGradientError
from opengradient_x402.networks import PRESETS
from opengradient_x402.proofs.bundle import Bundle, Contents, Record, cases_of
from opengradient_x402.proofs.checks import channels, receipts
from opengradient_x402.proofs.checks.network import describe
from opengradient_x402.proofs.findings import Finding, Proven, Read, Refuted, Stated, Statement, Undecided
from opengradient_x402.proofs.history import IN_HISTORY, described
from opengradient_x402.proofs.verification import Verification, verify_bundle
from support.forging import HASH, OTHER, World, forge
from support.ledger_rows import entry, served
from support.made_up import made_up
from support.node import at_rest, behind, serving
from support.payers import network_of

pytestmark = pytest.mark.devnet(schemes=[Scheme.UPTO, Scheme.BATCH_SETTLEMENT])


def about(verification: Verification, statement: Statement) -> list[Finding]:
    return [finding for finding in verification.findings if finding.statement is statement]


# -- random forgeries against what is true of the chain and of the enclave


class Liar:
    """Changes records at random: swaps, drops, copies, relabels, reorders, and takes from strangers."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance = world, random.Random(seed)
        known = [*world.bundle.records, *world.strangers.records]
        self.records = [Record(item.kind, json.loads(json.dumps(dict(item.body)))) for item in world.bundle.records]
        self.values = {}
        for record in known:
            for name, value in record.body.items():
                self.values.setdefault((record.kind, name), []).append(value)

    def bundle(self) -> bytes:
        for _ in range(self.chance.randint(1, 5)):
            acts = [self.swap, self.take, self.drop, self.copy, self.relabel, self.reorder, self.borrow, self.graft]
            self.chance.choice(acts)()
        records = tuple(self.records)
        bundle = replace(self.world.bundle, records=records)
        how, parts = self.chance.random(), {}
        if 0.1 < how < 0.3:  # a history told anew, under the anchors of the true one
            leaves = [leaf(record) for record in records if record.kind in IN_HISTORY]
            history = self.world.bundle.history
            sizes = [one["size"] for one in (*history["anchors"], *history["consistency"]) if one["size"] < len(leaves)]
            anchors = [one for one in history["anchors"] if one["size"] <= len(leaves)]
            parts["history"] = described(leaves, range(len(leaves)), sizes, anchors=anchors)
        return forge(bundle, self.world.payments.signer, keep_history=how < 0.1, **parts)

    def of(self, *kinds: str) -> list[int]:
        return [index for index, record in enumerate(self.records) if record.kind in kinds]

    def swap(self) -> None:
        kind = self.chance.choice(["authorization", "receipt", "channel", "data_settlement", "rpc"])
        if len(places := self.of(kind)) < 2:
            return
        one, other = self.chance.sample(places, 2)
        first, second = dict(self.records[one].body), dict(self.records[other].body)
        shared = [name for name in first if name in second and name not in ("id", "call_id")]
        group = self.chance.choice([[name] for name in shared] + [[n for n in shared if n.startswith("tee_")]])
        for name in group:
            first[name], second[name] = second[name], first[name]
        self.records[one], self.records[other] = Record(kind, first), Record(kind, second)

    def take(self) -> None:
        index = self.chance.choice(self.of("authorization", "receipt", "channel", "data_settlement"))
        kind, body = self.records[index].kind, dict(self.records[index].body)
        name = self.chance.choice(list(body))
        body[name] = self.chance.choice(self.values[kind, name])
        self.records[index] = Record(kind, body)

    def drop(self) -> None:
        del self.records[self.chance.randrange(len(self.records))]

    def copy(self) -> None:
        ids = [self.records[index].body["id"] for index in self.of("authorization")]
        if not ids:
            return
        wanted, suffix = self.chance.choice(ids), self.chance.choice("abc")
        for record in list(self.records):
            body = dict(record.body)
            if record.kind == "authorization" and body["id"] == wanted:
                self.records.append(Record(record.kind, body | {"id": wanted + suffix}))
            if record.kind == "receipt" and body["authorization_id"] == wanted:
                new = {"call_id": body["call_id"] + suffix, "authorization_id": wanted + suffix}
                self.records.append(Record(record.kind, body | new))

    def relabel(self) -> None:
        status = self.chance.choice(["settled", "expired", "cancelled"])
        mode = self.chance.choice(["private", "batch", "individual"])
        chosen = self.chance.choice([{"status": status}, {"settlement_mode": mode}])
        wanted = self.chance.choice(self.values["authorization", "id"])
        for index in self.of("authorization", "receipt"):
            body = self.records[index].body
            if wanted in (body.get("id"), body.get("authorization_id")):
                self.records[index] = Record(self.records[index].kind, {**body, **chosen})

    def graft(self) -> None:
        """The payer's payment to a second wallet, or the late cancellation of its nonce, under a call of a gateway."""
        p, signed = self.world.own_payment, self.chance.choice(self.values["authorization", "signed"])
        last = {**signed[-1], "deadline": p["deadline"], "amount_atomic": p["amount"]}
        own = {**last, "payee": p["payee"], "facilitator": p["payee"]}
        shown = {"nonce": p["nonce"], "block_number": p["block_number"], "block_hash": p["block_hash"]}
        is_burned, ids = self.chance.random() < 0.3, self.values["authorization", "id"]
        status = "cancelled" if is_burned else "settled"
        tx_hash, wanted = p["burned_in" if is_burned else "tx_hash"], self.chance.choice(ids)
        taken = {} if is_burned else {"settled_atomic": p["amount"]}
        for index in self.of("authorization", "receipt"):
            body = {**self.records[index].body}
            if body.get("id") == wanted:
                chosen = self.chance.choice([[own], [last], [own, last], [last, own]])
                body |= {**shown, **taken, "status": status, "tx_hash": tx_hash, "signed": chosen}
            elif body.get("authorization_id") == wanted:
                told = {"authorized_atomic": p["amount"], "deadline": p["deadline"], "payment_tx_hash": tx_hash}
                told |= {} if is_burned else {"authorization_settled_atomic": p["amount"]}
                party = self.chance.choice([own, last])
                told |= {name: party[name] for name in ("payee", "facilitator") if name in party}
                body |= {**shown, **told, **taken, "status": status}
            self.records[index] = Record(self.records[index].kind, body)

    def reorder(self) -> None:
        self.chance.shuffle(self.records)

    def borrow(self) -> None:
        stolen = [item for item in self.world.strangers.records if item.kind in ("authorization", "receipt", "channel")]
        known = {json.dumps(dict(item.body), sort_keys=True) for item in self.records}
        self.records += [item for item in stolen if json.dumps(dict(item.body), sort_keys=True) not in known]


class Truth:
    """What is true: of the devnet's chain, of its enclave, and of what the two wallets signed."""

    def __init__(self, world: World) -> None:
        net = world.net
        honest = [*world.bundle.records, *world.strangers.records]
        self.network = network_of(net)
        self.signed = {
            _terms(record.body, terms)
            for record in honest
            if record.kind == "authorization"
            for terms in record.body["signed"]
        }
        own, network = world.own_payment, self.network
        parties = (own["payee"], own["payee"], network.upto_proxy, own["amount"], own["deadline"])
        self.signed.add((world.payments.payer, own["nonce"], network.asset.address, *parties))
        receipts = [record.body for record in honest if record.kind == "receipt"]
        self.proofs = {_proof(body): body["settlement_mode"] for body in receipts if "tee_signature" in body}
        self.payer_of = {_proof(body): body["payer"] for body in receipts if "tee_signature" in body}
        token = net.network["asset"]["address"]
        logs = net.chain.rpc("eth_getLogs", [{"fromBlock": "0x0", "address": token, "topics": [TRANSFER]}])
        self.transfers = {
            (log["transactionHash"], int(log["data"], 16), log["topics"][2][-40:]): log["topics"][1][-40:]
            for log in logs
        }
        self.payees = {((tx_hash, amount), payee) for tx_hash, amount, payee in self.transfers}
        settlements = {item.transaction for item in net.settlements} | {world.own_payment["tx_hash"]}
        self.settlements = {
            (log["transactionHash"], log["topics"][1][-40:], int(log["blockNumber"], 16))
            for log in logs
            if log["transactionHash"] in settlements
        }
        self.moves: dict[str, list[tuple[str, int, str, int]]] = {}
        for log in net.chain.rpc("eth_getLogs", [{"fromBlock": "0x0", "address": BATCH_SETTLEMENT}]):
            if (kind := MOVES.get(log["topics"][0])) is not None:
                move = (log["transactionHash"], int(log["logIndex"], 16), kind, int(log["data"][:66], 16))
                self.moves.setdefault(log["topics"][1], []).append(move)
        self.blocks = {log["transactionHash"]: int(log["blockNumber"], 16) for log in net.chain.rpc(
            "eth_getLogs", [{"fromBlock": "0x0", "address": BATCH_SETTLEMENT}])}  # fmt: skip
        self.channel_of = {record.body["id"]: record.body["payer"] for record in honest if record.kind == "channel"}
        self.unused = {
            (body["payer"], body["nonce"])
            for record in honest
            if record.kind == "authorization" and (body := record.body)["status"] in ("expired", "cancelled")
        }
        history = world.bundle.history
        self.anchored = {f"{one['size']}:{one['root']}" for one in history["anchors"]}
        self.root = history["root"]
        self.leaves = {leaf(record) for record in world.bundle.records if record.kind in IN_HISTORY}
        self.tees = {body["tee_id"] for body in receipts if "tee_id" in body}
        self.hash_at = lambda number: net.chain.rpc("eth_getBlockByNumber", [hex(number), False])["hash"]

    def holds(self, finding: Finding, bundle: Bundle, verification: Verification) -> bool:
        entries = {body["id"]: body for body in bundle.of_kind("authorization")}
        calls = {body["call_id"]: body for body in bundle.of_kind("receipt")}
        entry, call = entries.get(finding.about, {}), calls.get(finding.about, {})
        channels = {body["id"]: body for body in bundle.of_kind("channel")}
        if finding.about in channels:
            return self.holds_of_channel(finding, channels[finding.about], entries.values())
        match finding.statement:
            case Statement.SIGNED:
                return any(_terms(entry, terms) in self.signed for terms in entry["signed"])
            case Statement.PAID:
                payees = {terms["payee"][2:].lower() for terms in entry["signed"]}
                claims = {(entry["tx_hash"], int(entry["settled_atomic"]), payee) for payee in payees}
                return any(self.transfers.get(claim) == entry["payer"][2:].lower() for claim in claims)
            case Statement.CONFIRMED:
                return self.hash_at(entry["block_number"]) == entry["block_hash"]
            case Statement.NOTHING_TAKEN:
                return (entry["payer"], entry["nonce"]) in self.unused
            case Statement.PAYEE:
                known = {payee[2:].lower() for payee in self.network.payees}
                tx_hash, amount = entry.get("tx_hash"), int(entry.get("settled_atomic", "-1"))
                paid = {payee for claim, payee in self.payees if claim == (tx_hash, amount)}
                is_refuted = any(
                    isinstance(one, Refuted) and one.about == finding.about
                    for one in about(verification, Statement.PAID)
                )
                named = {terms["payee"][2:].lower() for terms in entry["signed"]}
                return named <= known and (paid <= known or is_refuted)
            case Statement.FACILITATOR:
                named = {terms.get("facilitator") for terms in entry["signed"]} - {None}
                return named <= self.network.facilitators
            case Statement.ENCLAVE:
                return _proof(call) in self.proofs
            case Statement.REGISTERED | Statement.ATTESTED:
                return call["tee_id"] in self.tees
            case Statement.DATA:
                return self.proofs[_proof(call)] == call["settlement_mode"] != "private"
            case Statement.OWN_CALL:
                return self.payer_of[_proof(call)] == call["payer"] and self.proofs[_proof(call)] == "individual"
            case Statement.BLOB:
                return self.proofs[_proof(call)] == "individual"
            case Statement.NAMED_TRANSACTION | Statement.NAMED_BLOB:
                honest = [
                    body for body in bundle.of_kind("receipt") if body.get("data_tx_hash") == call["data_tx_hash"]
                ]
                return bool(honest)
            case Statement.COMPLETE:
                period, wallet = bundle.period, finding.about[2:].lower()
                shown = {item.about for item in about(verification, Statement.PAID) if isinstance(item, Read)}
                known = {entries[name]["tx_hash"] for name in shown if name in entries}
                listed = {
                    (place["tx_hash"], place["log_index"]) for one in channels.values() for place in one["events"]
                }
                inside = range(period["from_block"], period["to_block"] + 1)
                return all(
                    tx_hash in known
                    for tx_hash, payer, number in self.settlements
                    if payer == wallet and number in inside
                ) and all(
                    (tx_hash, index) in listed
                    for channel, payer in self.channel_of.items()
                    for tx_hash, index, kind, _ in self.moves[channel]
                    if payer[2:].lower() == wallet and kind != "return" and self.blocks[tx_hash] in inside
                )
            case Statement.MADE:
                return finding.key in {body["payer"] for body in entries.values()}
            case Statement.HISTORY:
                leaves = [leaf(record) for record in bundle.records if record.kind in IN_HISTORY]
                is_honest = bundle.history["root"] == self.root and self.leaves.issuperset(leaves)
                return is_honest or "0x" + root(leaves).hex() == bundle.history["root"]
            case Statement.ANCHORED:
                return finding.about in self.anchored and bundle.history["root"] == self.root
            case Statement.NETWORK:
                return bundle.network == describe(self.network)
        return False

    def holds_of_channel(self, finding: Finding, channel, entries) -> bool:
        """A channel's statements, against all events of the contract."""
        own = [body for body in entries if "voucher" in body and int(body["nonce"]) == int(channel["id"], 16)]
        true = self.moves.get(channel["id"], [])
        listed = [(place["tx_hash"], place["log_index"]) for place in channel["events"]]
        if self.channel_of.get(channel["id"]) != channel["payer"]:
            return False
        match finding.statement:
            case Statement.CHANNEL:
                shown = [move for move in true if (move[0], move[1]) in listed]
                names = {"deposit": "deposited", "claim": "claimed", "return": "returned"}
                sums = {name: sum(move[3] for move in shown if move[2] == kind) for kind, name in names.items()}
                return len(shown) == len(listed) and all(int(channel[f"{name}_atomic"]) == sums[name] for name in sums)
            case Statement.PAID:
                claimed = sum(move[3] for move in true if move[2] == "claim")
                return (
                    sum(int(body.get("settled_atomic", "0")) for body in own if body["status"] == "settled") <= claimed
                )
            case Statement.CONFIRMED:
                settled = [body for body in own if body["status"] == "settled"]
                return all(self.hash_at(body["block_number"]) == body["block_hash"] for body in settled)
            case Statement.SIGNED:
                return any(move[2] == "claim" for move in true)
        return False


TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
BATCH_SETTLEMENT = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"
MOVES = {
    "0x" + keccak(text=f"{name}(bytes32,address,{words})").hex(): kind
    for name, words, kind in (
        ("Deposited", "uint128,uint128", "deposit"),
        ("Claimed", "uint128,uint128", "claim"),
        ("Refunded", "uint128", "return"),
        ("WithdrawFinalized", "uint128", "return"),
    )
}


def _terms(body, terms) -> tuple:
    names = ("asset", "payee", "facilitator", "spender", "amount_atomic", "deadline")
    return body["payer"], body["nonce"], *(terms.get(name) for name in names)


def _proof(call) -> tuple:
    names = ("tee_id", "tee_request_hash", "tee_output_hash", "tee_signature", "tee_timestamp")
    return tuple(call[name] for name in names)


def leaf(record: Record) -> bytes:
    return sha256(b"\0" + rfc8785.dumps({"kind": record.kind, "body": dict(record.body)})).digest()


def root(leaves: list[bytes]) -> bytes:
    """RFC 9162, word by word."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def lie_at_random(world: World, seeds: range) -> int:
    truth, read = Truth(world), 0
    network = network_of(world.net)
    with serving(world.net.chain) as node:
        node.misbehave = at_rest(world.net.chain)
        for seed in seeds:
            content = Liar(world, seed).bundle()
            try:
                verification = verify_bundle(content, network=network, rpc_url=node.url, relay_rpc_url=node.url)
            except BundleUnreadable:
                continue
            read += 1
            for finding in [*verification.of(Proven), *verification.of(Read)]:
                assert truth.holds(finding, verification.bundle, verification), (seed, finding)
    return read


def test_no_lie_at_random_is_proven_or_read(forged_world):
    assert lie_at_random(forged_world, range(40)) >= 10


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_lie_of_thousands_is_proven_or_read(forged_world):
    assert lie_at_random(forged_world, range(1000, 5000)) >= 1000


def test_the_truth_that_lies_are_held_against_is_the_honest_bundles(forged_world):
    truth, network = Truth(forged_world), network_of(forged_world.net)
    period = {"from_block": 0, "to_block": forged_world.bundle.period["to_block"]}
    bundle = replace(forged_world.bundle, period=period).signed(forged_world.payments.signer)
    verification = verify_bundle(bundle.to_bytes(), network=network)
    shown = [*verification.of(Proven), *verification.of(Read)]
    assert [item for item in shown if not truth.holds(item, bundle, verification)] == []


# -- evidence that somebody made up


def make_up_evidence(world: World, seeds: range) -> None:
    network = network_of(world.net)
    for seed in seeds:
        content = made_up(world.bundle, seed)
        for reader in (network, None):
            verification = verify_bundle(content, network=reader, is_offline=True)
            assert not any(finding.source.is_chain for finding in verification.of(Read)), seed


def test_made_up_evidence_ends_in_findings(forged_world):
    make_up_evidence(forged_world, range(60))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_thousands_of_pieces_of_made_up_evidence_end_in_findings(forged_world):
    make_up_evidence(forged_world, range(1000, 5000))


@pytest.mark.parametrize(
    "raw", [b"NaN", b"1e999", b"[" * 600 + b"]" * 600, b'{"a":1,"a":2}', b"\xff", b'"\\ud800"', b"1" * 5000, b"null"]
)
def test_a_blob_that_is_no_json_ends_in_findings(forged_world, raw):
    def spoil(record):
        text = base64.b64encode(raw).decode()
        return [Record("blob", {**record.body, "content_base64": text})] if record.kind == "blob" else [record]

    content = forge(forged_world.bundle, None, spoil)
    verification = verify_bundle(content, network=network_of(forged_world.net), is_offline=True)
    assert about(verification, Statement.DATA)


def test_a_transfer_without_a_payee_ends_in_findings(forged_world):
    def cut(record):
        if record.kind == "rpc" and record.body["method"] == "eth_getTransactionReceipt":
            for log in record.body["result"]["logs"]:
                log["topics"] = log["topics"][:2]
        return [record]

    assert verify_bundle(forge(forged_world.bundle, None, cut), is_offline=True).findings


@pytest.mark.parametrize("kind", ["payments", "vouchers"])
def test_calldata_full_of_signatures_is_read_in_bounded_time(forged_world, monkeypatch, kind):
    tried = []
    monkeypatch.setattr(receipts, "recover_address", lambda *pair: tried.append(pair))
    monkeypatch.setattr(channels, "recover_address", lambda *pair: tried.append(pair))
    false = ((65).to_bytes(32, "big") + b"\x11" * 65).hex()

    def stuff(record):
        if record.kind == "rpc" and record.body["method"] == "eth_getTransactionByHash":
            record.body["result"]["input"] += (record.body["result"]["input"][2:] if kind == "vouchers" else "") * 9
            record.body["result"]["input"] += false * 3000
        return [record]

    content = forge(forged_world.bundle, None, stuff)
    verification = verify_bundle(content, network=network_of(forged_world.net), is_offline=True)
    signed = about(verification, Statement.SIGNED)
    assert {type(item) for item in signed} == {Undecided}
    assert receipts.MOST_TRIES < len(tried) <= receipts.MOST_TRIES * len(signed)


@pytest.mark.parametrize("command", [["report", "-f", "csv"], ["export", "-f", "csv"], ["export", "-f", "csv-raw"]])
def test_a_table_of_a_strangers_bundle_runs_nothing(forged_world, tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    signs = iter("=+-@")
    names = {}

    def odd(record):
        if "call_id" in record.body:
            call = record.body["call_id"]
            names.setdefault(call, next(signs, "=") + f"cmd|{call}")
            record.body["call_id"] = names[call]
        for name in {"model", "run", "dispute"} & record.body.keys():
            record.body[name] = "\n=HYPERLINK(1)"
        return [record]

    (file := tmp_path / "bundle.json").write_bytes(forge(forged_world.bundle, None, odd))
    offline = ["--offline"] if command[0] == "report" else []
    words = ["receipts", command[0], str(file), *command[1:], *offline]
    done = CliRunner().invoke(build_app(words), words)
    assert done.exit_code in (0, 1), done.output
    assert command[0] == "report" or "what the writer of the file says: nothing of it was checked" in done.stderr
    cells = [cell for row in csv.reader(io.StringIO(done.stdout)) for cell in row]
    assert any("cmd|call_" in cell for cell in cells)
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\n", "\t", "\r"))] == []


# -- nodes


def test_two_nodes_that_agree_are_both_named(forged_world):
    net = forged_world.net
    with serving(net.chain) as second:
        content = forged_world.bundle.to_bytes()
        urls = [net.network["rpc_url"], second.url]
        verification = verify_bundle(content, network=network_of(net), rpc_url=urls)
    assert verification.of(Refuted) == []
    (complete,) = about(verification, Statement.COMPLETE)
    assert complete.source.name.startswith("chain 31402 by ")
    assert " and 127.0.0.1:" in complete.source.name


@pytest.mark.parametrize("order", [1, -1])
def test_where_two_nodes_disagree_nothing_is_read(forged_world, order):
    net = forged_world.net

    def lies(method, params, number):
        if method == "eth_getTransactionReceipt":
            shown = json.loads(json.dumps(net.chain.rpc(method, params)))
            for log in shown["logs"] if shown else ():
                log["data"] = log["data"][:-1] + ("0" if log["data"][-1] != "0" else "1")
            return 200, {"result": shown}
        return None

    with serving(net.chain) as liar:
        liar.misbehave = lies
        urls = [net.network["rpc_url"], liar.url][::order]
        verification = verify_bundle(forged_world.bundle.to_bytes(), network=network_of(net), rpc_url=urls)
    shown = [item for item in about(verification, Statement.PAID) if "disagree" in item.why]
    assert len(shown) == 2
    assert {type(item) for item in shown} == {Undecided}
    (complete,) = about(verification, Statement.COMPLETE)
    assert isinstance(complete, Undecided)
    assert "the nodes disagree" in complete.why


@pytest.mark.parametrize("order", [1, -1])
def test_two_nodes_that_tell_different_things_of_one_class_disagree(forged_world, order):
    net, network = forged_world.net, network_of(forged_world.net)
    honest = about(verify_bundle(forged_world.bundle.to_bytes(), network=network), Statement.REGISTERED)
    image = honest[0].why.split(" image ")[1][2:]

    def lies(method, params, number):
        if method == "eth_call" and params[0]["to"] == network.registry.address:
            return 200, {"result": net.chain.rpc(method, params).replace(image, "77" * 32)}
        return None

    with serving(net.chain) as liar:
        liar.misbehave = lies
        urls = [net.network["rpc_url"], liar.url][::order]
        verification = verify_bundle(forged_world.bundle.to_bytes(), network=network, rpc_url=urls)
    shown = about(verification, Statement.REGISTERED)
    assert len(shown) == len(honest)
    assert {type(item) for item in shown} == {Undecided}
    assert image in shown[0].why
    assert "77" * 32 in shown[0].why


def test_two_nodes_with_two_hashes_of_one_block_disagree(forged_world):
    net = forged_world.net
    head = int(net.chain.rpc("eth_getBlockByNumber", ["latest", False])["number"], 16)
    known = behind(net.chain, head)  # an idle session may settle between two looks

    def forked(method, params, number):
        if method == "eth_getBlockByNumber" and params[0] == "latest":
            return 200, {"result": {**net.chain.rpc(method, [hex(head), False]), "hash": HASH}}
        return known(method, params, number)

    with serving(net.chain) as one, serving(net.chain) as other:
        one.misbehave, other.misbehave = known, forked
        urls = [one.url, other.url]
        verification = verify_bundle(forged_world.bundle.to_bytes(), network=network_of(net), rpc_url=urls)
    assert not any(item.source.is_chain for item in verification.of(Read))
    (complete,) = about(verification, Statement.COMPLETE)
    assert HASH in complete.why


# -- whom a reader trusts


def test_ones_own_receipt_vouches_for_nobody_elses_unless_the_reader_demands_it(forged_world):
    kinds = ("authorization", "receipt", "channel")
    stolen = tuple(item for item in forged_world.strangers.records if item.kind in kinds)
    content = forge(forged_world.bundle, forged_world.payments.signer, added=stolen)
    (made,) = about(verify_bundle(content, is_offline=True), Statement.MADE)
    assert isinstance(made, Undecided)
    assert f"{forged_world.stranger.address} paid as well" in made.why
    demanded = {"is_offline": True, "expected_signer": forged_world.payments.payer}
    (made,) = about(verify_bundle(content, **demanded), Statement.MADE)
    assert isinstance(made, Proven)


def test_an_attested_key_needs_no_registry_for_a_reader_who_knows_the_image(forged_world):
    content, network = forged_world.bundle.to_bytes(), network_of(forged_world.net)
    alone = verify_bundle(content, network=network, is_offline=True)
    shown = about(alone, Statement.ATTESTED)
    assert {type(item) for item in shown} == {Proven}
    assert not any(isinstance(item, Proven) for item in about(alone, Statement.ENCLAVE))
    image = shown[0].why.split(" the image ")[1].split()[0]
    for images, expected in (({image}, Proven), ({HASH}, Undecided)):
        known = verify_bundle(content, network=network, is_offline=True, pcr_hashes=images)
        signed = [item for item in about(known, Statement.ENCLAVE) if "no enclave signature" not in item.why]
        assert {type(item) for item in signed} == {expected}


def test_an_attestation_under_another_root_than_the_readers_shows_nothing(forged_world):
    verification = verify_bundle(forged_world.bundle.to_bytes(), is_offline=True)  # the root is AWS's then
    assert {type(item) for item in about(verification, Statement.ATTESTED)} == {Undecided}


def test_answers_of_another_chain_are_no_evidence(forged_world):
    def elsewhere(record):
        return [Record("rpc", {**record.body, "chain_id": 1})] if record.kind == "rpc" else [record]

    content = forge(forged_world.bundle, forged_world.payments.signer, elsewhere)
    paid = about(verify_bundle(content, network=network_of(forged_world.net), is_offline=True), Statement.PAID)
    assert {type(item) for item in paid} == {Undecided}


@pytest.mark.parametrize("absent", ["registry", "relay"])
def test_a_file_that_names_no_registry_is_read_through_the_readers_own(forged_world, absent):
    network = {name: value for name, value in forged_world.bundle.network.items() if name != absent}
    content = forge(forged_world.bundle, forged_world.payments.signer, network=network)
    verification = verify_bundle(content, network=network_of(forged_world.net))
    (finding,) = about(verification, Statement.NETWORK)
    assert isinstance(finding, Undecided)
    assert f"no {absent}" in finding.why
    assert any(isinstance(item, Proven) for item in about(verification, Statement.ENCLAVE))


def test_a_relay_that_only_the_writer_names_shows_nothing(forged_world):
    own = replace(network_of(forged_world.net), relay=None)
    verification = verify_bundle(forged_world.bundle.to_bytes(), network=own)
    (finding,) = about(verification, Statement.NETWORK)
    assert "a relay of its own" in finding.why
    assert {type(item) for item in about(verification, Statement.DATA)} == {Undecided}


@pytest.mark.parametrize("name", ["registry", "asset", "permit2"])
def test_look_alikes_under_the_chain_id_of_a_preset_are_refuted(forged_world, name):
    network = describe(PRESETS["base"])
    network[name] = OTHER if name == "permit2" else {**network[name], "address": OTHER}
    content = Bundle(created_at=1, network=network, records=()).signed(forged_world.payments.signer).to_bytes()
    (finding,) = about(verify_bundle(content, is_offline=True), Statement.NETWORK)
    assert isinstance(finding, Refuted)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_file_about_any_token_of_a_preset_is_about_known_contracts(forged_world, name):
    made = Bundle(created_at=1, network=describe(PRESETS[name]), records=())
    content = made.signed(forged_world.payments.signer).to_bytes()
    (finding,) = about(verify_bundle(content, is_offline=True), Statement.NETWORK)
    assert f"are those of {name}" in finding.why


def test_a_private_chain_that_calls_itself_base_is_the_writers_word(forged_world):
    network = {**forged_world.bundle.network, "name": "base"}
    content = forge(forged_world.bundle, forged_world.payments.signer, network=network)
    verification = verify_bundle(content, rpc_url=forged_world.net.network["rpc_url"])
    (finding,) = about(verification, Statement.NETWORK)
    assert isinstance(finding, Stated)
    assert "no network of chain 31402 is known here" in finding.why
    assert verification.of(Read) == []


def test_another_network_than_the_files_is_a_configuration_error(forged_world):
    with pytest.raises(ConfigurationError, match="chain 31402, and the network base is chain 8453"):
        verify_bundle(forged_world.bundle.to_bytes(), network=PRESETS["base"], is_offline=True)


def test_a_signer_that_is_no_address_is_a_configuration_error(forged_world):
    with pytest.raises(ConfigurationError, match="is not an address"):
        verify_bundle(forged_world.bundle.to_bytes(), is_offline=True, expected_signer="zzz")


def test_payments_that_name_no_facilitator_can_be_read_back(forged_world):
    exact = entry(1, scheme="exact", facilitator=None)
    cases = tuple(cases_of([exact], [served(exact, "call_1")]))
    written = Contents(cases=cases, data_places=(), made_at=1)
    network = describe(network_of(forged_world.net))
    again = Bundle(created_at=1, network=network, records=tuple(written.records()))
    assert Contents.of(Bundle.from_bytes(again.to_bytes())) == written


@pytest.mark.parametrize("values", [{"relay": 5}, {"chain_id": "31402"}, {"chain_id": 2**60}, {"blob_url": "x"}])
def test_a_network_that_is_none_is_said_so(forged_world, values):
    try:
        content = forge(forged_world.bundle, None, network={**forged_world.bundle.network, **values})
    except ValueError:  # more than a JSON number can say
        return
    with pytest.raises(BundleUnreadable, match="Nothing was proven"):
        verify_bundle(content, is_offline=True)


def test_only_its_own_errors_leave_a_verification(forged_world):
    for content in (b"", b"{}", b"[]", b"null", b'{"format":"opengradient-audit-bundle/1"}', HASH.encode()):
        with pytest.raises(OpenGradientError):
            verify_bundle(content, is_offline=True)
