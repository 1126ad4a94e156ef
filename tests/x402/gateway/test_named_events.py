"""Named events in a stream: what a gateway reports beside the answer."""

from __future__ import annotations

import base64
import json

import pytest

from opengradient_devnet.faults import RawEvent
from opengradient_x402.errors import GatewayError
from support.payers import PROMPT


def settlement(**data) -> RawEvent:
    return RawEvent(text=f"event: x402-settlement\ndata: {json.dumps(data)}\n\n")


def test_a_settlement_that_a_stream_reports_goes_into_the_receipt(net, client):
    response = base64.b64encode(json.dumps({"success": True, "transaction": "job-7"}).encode()).decode()
    net.faults.inject(settlement(success=True, paymentResponse=response))
    with client.stream(PROMPT) as stream:
        list(stream)
    assert "What is x402?" in stream.completion.content
    assert (stream.receipt.outcome, stream.receipt.error, stream.receipt.payment_job) == ("ok", None, "job-7")


@pytest.mark.parametrize("error", ["charge_exceeds_signed_cumulative", None])
def test_a_settlement_that_failed_after_the_answer_is_told_by_the_receipt_and_loses_nothing(net, client, error):
    net.faults.inject(settlement(success=False, error=error))
    with client.stream(PROMPT) as stream:
        text = "".join(delta.content for delta in stream)
    assert "What is x402?" in text == stream.completion.content
    assert (stream.receipt.outcome, stream.receipt.status) == ("ok", "served")
    assert stream.receipt.error == f"settlement failed: {error or 'no reason given'}"


@pytest.mark.parametrize("data", ["", "[]", "{", '{"success": true, "paymentResponse": "%"}', '{"success": 0}'])
def test_a_settlement_event_that_cannot_be_read_changes_nothing(net, client, data):
    net.faults.inject(RawEvent(text=f"event: x402-settlement\ndata: {data}\n\n"))
    with client.stream(PROMPT) as stream:
        list(stream)
    assert (stream.receipt.outcome, stream.receipt.error) == ("ok", None)


def test_an_event_named_error_is_still_an_error(net, client):
    net.faults.inject(RawEvent(text='event: error\ndata: {"error": "overloaded"}\n\n'))
    with pytest.raises(GatewayError, match="overloaded"), client.stream(PROMPT) as stream:
        list(stream)


@pytest.mark.parametrize("text", ["data:\n\n", "data: \n\ndata\n\n", "event: message\ndata:\n\n"])
def test_an_event_without_data_loses_no_answer_that_was_paid(net, client, text):
    net.faults.inject(RawEvent(text=text))
    with client.stream(PROMPT) as stream:
        shown = "".join(delta.content for delta in stream)
    assert "What is x402?" in shown == stream.completion.content
    assert (stream.receipt.outcome, stream.receipt.error) == ("ok", None)
