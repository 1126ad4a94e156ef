"""Attacks and faults, and the tests that prove what happens to the money in each: `uv run pytest -m threats`."""

from __future__ import annotations

from typing import NamedTuple


class Threat(NamedTuple):
    """What is done, what the chain shows then, and parts of the names of the tests that prove it."""

    done: str
    shown: str
    tests: tuple[str, ...]


ROWS: dict[str, Threat] = {
    "1": Threat(
        "price raised, also in small steps",
        "nothing is signed above the limits: the balance stays",
        (
            "test_small_steps_of_a_price_end",
            "test_a_price_jump_is_refused",
            "test_small_steps_of_a_token_price",
            "test_a_token_price_that_jumped",
            "test_hostile_terms_are_refused_and_nothing_is_signed[price]",
        ),
    ),
    "2-4": Threat(
        "payTo, asset, network swapped",
        "nothing is signed: no authorization, the balance stays",
        (
            "test_hostile_terms_are_refused_and_nothing_is_signed[payee]",
            "test_hostile_terms_are_refused_and_nothing_is_signed[token]",
            "test_hostile_terms_are_refused_and_nothing_is_signed[network]",
        ),
    ),
    "5": Threat(
        "hostile facilitator",
        "nothing is signed for the new one: the balance stays",
        ("test_hostile_terms_are_refused_and_nothing_is_signed[facilitator]", "test_a_facilitator_that_changes"),
    ),
    "6": Threat(
        "deadline of 10^9 s",
        "nothing is signed: no authorization, the balance stays",
        ("test_hostile_terms_are_refused_and_nothing_is_signed[deadline]",),
    ),
    "7": Threat(
        "clock wrong, or it jumps",
        "no signature outlives its cap by the chain's clock",
        (
            "test_a_clock_that_jumped_signs_nothing",
            "test_a_gateway_without_a_date",
        ),
    ),
    "8": Threat(
        "second signature in another nonce space",
        "one nonce; the other signature cannot be settled",
        ("test_a_second_signature_is_made_in_the_nonce_space",),
    ),
    "9": Threat(
        "quote inflated, settled above usage",
        "the excess is taken and disputed; nothing more is paid",
        ("test_an_inflated_quote_that_is_settled", "test_an_inflated_settlement"),
    ),
    "10": Threat(
        "session id stolen from a log",
        "no text outside of the client has it: nobody else's call is paid",
        ("test_a_session_id_stays_below_the_client",),
    ),
    "11-12": Threat(
        "redirects, 402 loops",
        "one payment at most, to the first gateway",
        ("test_a_redirect_after_payment", "test_redirect_loops_under_a_plain"),
    ),
    "13": Threat(
        "402 again and again",
        "one payment, however often it is refused",
        ("test_a_402_for_ever", "test_no_answer_after_a_signature_means_not_paid"),
    ),
    "14": Threat(
        "5xx, 429, time-out after paying",
        "one payment per call; what settles is on the receipt",
        ("test_an_error_after_payment_is_not_retried", "test_a_timeout_after_payment"),
    ),
    "15": Threat(
        "402 after a settlement",
        "what was taken is found and disputed, and not paid twice",
        (
            "test_no_answer_after_a_signature_means_not_paid",
            "test_a_retry_layer_that_believes",
            "test_a_gateway_that_took",
        ),
    ),
    "16": Threat(
        "a small second signature hides the first",
        "the largest signature is reserved until the last deadline",
        ("test_a_small_and_short_second_signature",),
    ),
    "17": Threat(
        "100 parallel calls",
        "one authorization for each session, and its sum settles",
        ("test_hundred_cold_parallel",),
    ),
    "18": Threat(
        "crash between sign and send",
        "every signature that left is in the ledger, and found",
        ("test_crashes.py", "batch/test_restarts.py"),
    ),
    "19": Threat(
        "prompt-injected spending",
        "nothing moves but the calls' own payments",
        ("test_what_a_tool_returns_pays_nobody",),
    ),
    "20": Threat(
        "key leak",
        "the key is in no text that leaves the process",
        ("test_secrets.py", "test_the_key_leaves_through_no_channel"),
    ),
    "21": Threat(
        "forged receipt",
        "the real settlement is found, the forged claim disputed",
        ("test_a_wrong_transaction_hash_is_disputed", "test_another_payers_transaction"),
    ),
    "22": Threat(
        "TEE signature wrong",
        "the answer is withheld; what was taken is on the receipt",
        ("test_a_false_proof_withholds_the_answer",),
    ),
    "23": Threat(
        "TLS man in the middle",
        "nothing is sent, so nothing is signed",
        ("test_no_other_certificate_is_accepted",),
    ),
    "24": Threat(
        "chain reorganisation",
        "a settlement counts when it is final, and is found again",
        ("test_a_reorganis",),
    ),
    "25": Threat(
        "body cut or garbled after paying",
        "one payment, with its receipt on the error",
        ("test_a_garbled_body_is_an_error",),
    ),
    "26": Threat(
        "huge 402, dripped headers",
        "no more is read than the limits allow; one payment at most",
        ("test_a_hostile_402_body_is_not_read", "test_dripped_headers_end"),
    ),
    "27-28": Threat(
        "malformed header, amounts, deep JSON",
        "nothing is signed",
        ("test_challenge.py",),
    ),
    "29": Threat(
        "registry endpoint at a private address, in any spelling",
        "nothing is sent there, so nothing is signed",
        ("test_registry_admission.py", "test_nothing_is_said_where_a_far_name", "test_an_address_is_the_same"),
    ),
    "30-31": Threat(
        "downgrade, approval upsell",
        "nothing is signed; no approval is sent",
        ("test_challenge.py", "test_sponsored_approval.py"),
    ),
    "32": Threat(
        "a resource of another host is named",
        "the payee of the terms counts, not the text of the resource",
        ("test_a_resource_at_another_host",),
    ),
    "33": Threat(
        "many workers, one wallet, one budget",
        "what is taken is the budget at most, to the wei",
        (
            "test_workers_of_one_wallet_keep_one_budget",
            "test_two_processes_cannot_overdraw",
            "test_two_workers_with_the_same_rows",
            "test_a_wallet_is_found_under_every_spelling",
        ),
    ),
    "34": Threat(
        "ledger away, newer, corrupt, emptied",
        "nothing is signed, also if its folder is gone; a check finds what was paid",
        (
            "test_versions.py",
            "test_upkeep.py",
            "test_a_ledger_that_is_away_signs_nothing",
            "test_a_ledger_that_was_deleted_with_its_mark_is_noticed",
            "test_a_ledger_that_was_deleted_with_its_folder_is_refused",
        ),
    ),
    "35": Threat(
        "a node that is behind",
        "the ledger follows the chain, also after a wrong answer",
        (
            "test_two_nodes_of_which_one_is_behind",
            "test_an_expired_authorization_that_was_settled",
            "test_a_node_that_lags_behind",
        ),
    ),
    "36": Threat(
        "a node that is slow, limits, lies, or is cut",
        "payments go on in time; no wrong answer is recorded",
        ("test_whatever_a_node_does", "test_coroutines_keep_the_time_too", "test_a_node_that_is_slow_delays"),
    ),
    "37": Threat(
        "fork after use",
        "each process pays its own calls, once",
        ("test_process.py",),
    ),
    "38": Threat(
        "end of the process with streams and ledgers open",
        "every payment has its record, and the program ends",
        (
            "test_a_program_with_two_models_ends",
            "test_streams_that_are_open_at_the_end",
            "test_what_is_written_when_the_program_ends",
        ),
    ),
    "39": Threat(
        "a limit on a run with calls in parallel",
        "what is taken is the run's limit at most",
        (
            "test_spend_guard.py",
            "test_run_limit.py",
        ),
    ),
    "40": Threat(
        "a web page attacks the devnet",
        "nothing moves: no page reaches a key or the chain",
        ("test_guard.py",),
    ),
    "41": Threat(
        "PostgreSQL stalls, restarts, deadlocks",
        "nothing is signed without its record, or is recorded late",
        (
            "test_a_server_that_",
            "test_a_connection_that_is_ended_in_a_transaction",
            "test_another_program_that_holds_the_lock",
            "test_a_deadlock_with_another_program",
            "test_a_receipt_that_a_dead_server_cannot_take",
        ),
    ),
    "42": Threat(
        "very many receipts",
        "what the chain settled is booked, in bounded memory",
        (
            "test_listing_",
            "test_an_export_streams",
            "test_reconciling_many",
            "test_a_call_takes_as_long",
            "test_no_statement_of_a_call",
        ),
    ),
    "43": Threat(
        "an exact payment booked at the gateway's quote",
        "the signed amount is taken and counted",
        (
            "test_an_exact_payment_counts_at_its_signed_amount",
            "test_the_exact_scheme_is_paid_to_the_unit",
        ),
    ),
    "44": Threat(
        "a token with other decimals",
        "amounts count in the token's own decimals",
        (
            "test_amounts_are_read_in_the_decimals",
            "test_limits_are_text_in_tokens",
        ),
    ),
    "45": Threat(
        "channels: lying charges, hidden ceilings, vanished gateways",
        "at most what was signed is claimed; the rest comes back",
        (
            "test_a_lie_about_a_charge",
            "test_a_correction_that_cannot_be_believed",
            "test_a_claim_above_what_was_charged",
            "test_nobody_claims_above_the_signed_ceiling",
            "test_a_gateway_that_vanishes_with_a_deposit",
            "test_kill_9_between_voucher_and_answer",
            "test_a_lost_answer_costs_what_the_gateway_charged",
        ),
    ),
    "46": Threat(
        "a model made for each request",
        "two authorizations at most for all models",
        ("test_models_for_each_request.py",),
    ),
}


def rows_of(nodeid: str) -> list[str]:
    """The rows that a test belongs to."""
    return [row for row, threat in ROWS.items() if any(name in nodeid for name in threat.tests)]
