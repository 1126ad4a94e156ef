"""The devnet's gateway, facilitator and contract of payment channels, with a payer that shares no code with them."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from opengradient_devnet import Devnet, Scheme
from opengradient_devnet.chain.chain import RpcError
from opengradient_devnet.contracts import BATCH_SETTLEMENT, contract
from opengradient_devnet.faults import ForgeCorrection, LieAboutCharge, NeverSettle, SettleAtCap
from support.channel_payer import ChannelPayer
from support.payer import decode

pytestmark = pytest.mark.devnet(schemes=[Scheme.BATCH_SETTLEMENT], batch_size=1000)
DEPOSIT = 10**18
CHANNELS = contract("BatchSettlement")


@pytest.fixture
def payer_of():
    """Makes payers, and closes their connections."""
    with ExitStack() as stack:
        yield lambda net, account: stack.enter_context(ChannelPayer(net, account))


@pytest.fixture
def payer(net: Devnet, payer_of):
    return payer_of(net, net.account(opg="10", approved=True))


def struct(payer):
    config = payer.config
    return (*list(config.values())[:6], bytes.fromhex(config["salt"][2:]))


def on_chain(payer):
    data = payer.net.chain.call(to=BATCH_SETTLEMENT, data=CHANNELS.encode("channels", payer.channel_id))
    return CHANNELS.decode("channels", data)


def error_of(answer):
    assert answer.status_code == 402
    return decode(answer.headers["PAYMENT-REQUIRED"])["error"].removeprefix("invalid_batch_settlement_evm_")


def paid_out(net):
    return net.chain.token_balance(net.network["payees"][0])


def test_one_deposit_pays_for_calls_and_the_claims_are_their_sum(net, payer):
    before = paid_out(net)
    assert payer.call(deposit=DEPOSIT).status_code == 200
    for _ in range(3):
        assert payer.call().status_code == 200
    assert on_chain(payer) == (DEPOSIT, 0)
    net.claim_channels()
    assert payer.charged > 0
    assert on_chain(payer) == (DEPOSIT, payer.charged)
    assert paid_out(net) == before + payer.charged


def test_a_deposit_by_the_tokens_own_authorization_needs_no_approval(devnets, payer_of):
    net = devnets(schemes=[Scheme.BATCH_SETTLEMENT_EIP3009])
    payer = payer_of(net, net.account(opg="10"))
    assert payer.call(deposit=DEPOSIT).status_code == 200
    assert on_chain(payer)[0] == DEPOSIT


def test_a_stream_is_charged_at_its_end_by_a_named_event(payer):
    answer = payer.call(deposit=DEPOSIT, stream=True)
    events = answer.text.split("\n\n")
    assert events[-2] == "data: [DONE]"
    name, data = events[-3].split("\n")
    assert name == "event: x402-settlement"
    said = json.loads(data.removeprefix("data: "))
    assert said["success"]
    assert 0 < int(decode(said["paymentResponse"])["extra"]["chargedAmount"]) <= payer.amount


def test_a_voucher_with_a_wrong_sum_is_answered_with_the_state_of_the_channel(payer):
    payer.call(deposit=DEPOSIT)
    answer = payer.send({"type": "voucher", **payer.voucher(payer.charged + payer.amount - 1)})
    assert error_of(answer) == "cumulative_amount_mismatch"
    extra = decode(answer.headers["PAYMENT-REQUIRED"])["accepts"][0]["extra"]
    assert extra["channelState"]["chargedCumulativeAmount"] == str(payer.charged)
    assert extra["voucherState"]["signature"] == payer.voucher(payer.amount)["voucher"]["signature"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"salt": "0x" + "11" * 32}, "channel_id_mismatch"),
        ({"withdrawDelay": 901}, "channel_id_mismatch"),
    ],
)
def test_another_configuration_is_another_channel(payer, change, reason):
    payload = payer.voucher(payer.amount)
    payload["channelConfig"] = {**payload["channelConfig"], **change}
    assert error_of(payer.send({"type": "voucher", **payload})) == reason


def test_a_voucher_of_somebody_else_and_one_beyond_the_deposit_are_refused(net, payer, payer_of):
    other = payer_of(net, net.account(opg="1"))
    payload = payer.voucher(payer.amount)
    other.channel_id = payer.channel_id
    payload["voucher"] = other.voucher(payer.amount)["voucher"]
    assert error_of(payer.send({"type": "voucher", **payload})) == "voucher_signature"
    assert error_of(payer.call()) == "cumulative_exceeds_balance"
    assert error_of(payer.call(deposit=DEPOSIT - 1)) == "deposit_below_min_deposit"


def test_a_refund_claims_what_is_owed_and_gives_back_the_rest(net, payer):
    before = net.chain.token_balance(payer.wallet.address)
    payer.call(deposit=DEPOSIT)
    answer = payer.send({"type": "refund", **payer.voucher(payer.charged)})
    assert answer.status_code == 200
    assert decode(answer.headers["PAYMENT-RESPONSE"])["transaction"].startswith("0x")
    assert on_chain(payer) == (payer.charged, payer.charged)
    assert net.chain.token_balance(payer.wallet.address) == before - payer.charged


def test_the_payer_withdraws_after_the_delay_without_anybodys_help(payer_of):
    with Devnet(schemes=[Scheme.BATCH_SETTLEMENT]) as net:
        account = net.account(opg="10", approved=True)
        payer = payer_of(net, account)
        net.faults.inject(NeverSettle(), times=None)
        payer.call(deposit=DEPOSIT)
        chain = net.chain
        chain.send(account, to=BATCH_SETTLEMENT, data=CHANNELS.encode("initiateWithdraw", struct(payer), DEPOSIT))
        finalize = CHANNELS.encode("finalizeWithdraw", struct(payer))
        with pytest.raises(RpcError, match="WithdrawDelayNotElapsed"):
            chain.call(to=BATCH_SETTLEMENT, data=finalize, sender=account.address)
        chain.advance(901)
        assert chain.send(account, to=BATCH_SETTLEMENT, data=finalize)["status"] == "0x1"
        assert chain.token_balance(account.address) == 10 * 10**18


def test_nobody_claims_above_the_signed_ceiling(net, payer):
    payer.call(deposit=DEPOSIT)
    net.faults.inject(SettleAtCap())
    net.claim_channels()
    assert on_chain(payer) == (DEPOSIT, payer.amount)
    signed = bytes.fromhex(payer.voucher(payer.amount)["voucher"]["signature"][2:])
    for total in (payer.amount + 1, DEPOSIT):
        claim = CHANNELS.encode("claim", [((struct(payer), payer.amount), signed, total)])
        with pytest.raises(RpcError, match="ClaimExceedsCeiling"):
            net.chain.call(to=BATCH_SETTLEMENT, data=claim, sender=payer.config["receiverAuthorizer"])


def test_the_gateway_can_be_told_to_lie(net, payer):
    net.faults.inject(LieAboutCharge(charge="5", cumulative="7"))
    answer = decode(payer.call(deposit=DEPOSIT).headers["PAYMENT-RESPONSE"])["extra"]
    honest = net.channels[-1].charged
    assert (int(answer["chargedAmount"]), int(answer["channelState"]["chargedCumulativeAmount"])) == (
        honest + 5,
        honest + 7,
    )
    net.faults.inject(ForgeCorrection(how="charge"))
    payer.charged = honest
    assert error_of(payer.call()) == "cumulative_amount_mismatch"
    assert payer.call().status_code == 200
