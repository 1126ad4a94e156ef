"""Attacks and faults, and the tests that prove what happens to the money in each: `uv run pytest -m threats`."""

from __future__ import annotations

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "1": (
        "price raised, also in small steps",
        (
            "test_small_steps_of_a_price_end",
            "test_a_price_jump_is_refused",
            "test_small_steps_of_a_token_price",
            "test_a_token_price_that_jumped",
        ),
    ),
    "2-4": ("payTo, asset, network swapped", ("test_hostile_terms_are_refused_and_nothing_is_signed",)),
    "5": ("hostile facilitator", ("test_a_facilitator_that_changes",)),
    "6": ("deadline of 10^9 s", ("test_hostile_terms_are_refused_and_nothing_is_signed",)),
    "7": ("clock wrong, or it jumps", ("test_a_clock_that_jumped_signs_nothing", "test_a_gateway_without_a_date")),
    "8": ("second signature in another nonce space", ("test_a_second_signature_is_made_in_the_nonce_space",)),
    "9": (
        "quote inflated, settled above usage",
        ("test_an_inflated_quote_that_is_settled", "test_an_inflated_settlement"),
    ),
    "10": ("session id stolen from a log", ("test_a_session_id_stays_below_the_client",)),
    "11-12": ("redirects, 402 loops", ("test_a_redirect_after_payment", "test_redirect_loops_under_a_plain")),
    "13": ("402 for ever", ("test_a_402_for_ever", "test_no_answer_after_a_signature_means_not_paid")),
    "14": (
        "5xx, 429, time-out after paying",
        ("test_an_error_after_payment_is_not_retried", "test_a_timeout_after_payment"),
    ),
    "15": (
        "402 after a settlement",
        (
            "test_no_answer_after_a_signature_means_not_paid",
            "test_a_retry_layer_that_believes",
            "test_a_gateway_that_took",
        ),
    ),
    "16": ("a small second signature hides the first", ("test_a_small_and_short_second_signature",)),
    "17": ("100 parallel calls", ("test_hundred_cold_parallel",)),
    "18": ("crash between sign and send", ("test_crashes.py", "batch/test_restarts.py")),
    "19": ("prompt-injected spending", ("test_what_a_tool_returns_pays_nobody",)),
    "20": ("key leak", ("test_secrets.py", "test_the_key_leaves_through_no_channel")),
    "21": ("forged receipt", ("test_a_wrong_transaction_hash_is_disputed", "test_another_payers_transaction")),
    "22": ("TEE signature wrong", ("test_a_false_proof_withholds_the_answer",)),
    "23": ("TLS man in the middle", ("test_no_other_certificate_is_accepted",)),
    "24": ("chain reorganisation", ("test_a_reorganis",)),
    "25": ("body cut or garbled after paying", ("test_a_garbled_body_is_an_error",)),
    "26": ("huge 402, dripped headers", ("test_a_hostile_402_body_is_not_read", "test_dripped_headers_end")),
    "27-28": ("malformed header, amounts, deep JSON", ("test_challenge.py",)),
    "29": (
        "registry endpoint at a private address, in any spelling",
        ("test_registry_admission.py", "test_nothing_is_said_where_a_far_name", "test_an_address_is_the_same"),
    ),
    "30-31": ("downgrade, approval upsell", ("test_challenge.py", "test_sponsored_approval.py")),
    "33": (
        "many workers, one wallet, one budget",
        (
            "test_workers_of_one_wallet_keep_one_budget",
            "test_two_processes_cannot_overdraw",
            "test_two_workers_with_the_same_rows",
            "test_a_wallet_is_found_under_every_spelling",
        ),
    ),
    "34": (
        "ledger away, newer, corrupt, emptied",
        ("test_versions.py", "test_upkeep.py", "test_a_ledger_that_is_away_signs_nothing"),
    ),
    "35": (
        "a node that is behind",
        (
            "test_two_nodes_of_which_one_is_behind",
            "test_an_expired_authorization_that_was_settled",
            "test_a_node_that_lags_behind",
        ),
    ),
    "36": (
        "a node that is slow, limits, lies, or is cut",
        ("test_whatever_a_node_does", "test_coroutines_keep_the_time_too", "test_a_node_that_is_slow_delays"),
    ),
    "37": ("fork after use", ("test_process.py",)),
    "38": (
        "end of the process with streams and ledgers open",
        (
            "test_a_program_with_two_models_ends",
            "test_streams_that_are_open_at_the_end",
            "test_what_is_written_when_the_program_ends",
        ),
    ),
    "39": ("a limit on a run with calls in parallel", ("test_spend_guard.py", "test_run_limit.py")),
    "40": ("a web page attacks the devnet", ("test_guard.py",)),
    "41": (
        "PostgreSQL stalls, restarts, deadlocks",
        (
            "test_a_server_that_",
            "test_a_connection_that_is_ended_in_a_transaction",
            "test_another_program_that_holds_the_lock",
            "test_a_deadlock_with_another_program",
            "test_a_receipt_that_a_dead_server_cannot_take",
        ),
    ),
    "42": (
        "very many receipts",
        (
            "test_listing_",
            "test_an_export_streams",
            "test_reconciling_many",
            "test_a_call_takes_as_long",
            "test_no_statement_of_a_call",
        ),
    ),
    "43": (
        "an exact payment booked at the gateway's quote",
        ("test_an_exact_payment_counts_at_its_signed_amount", "test_the_exact_scheme_is_paid_to_the_unit"),
    ),
    "44": ("a token with other decimals", ("test_amounts_are_read_in_the_decimals", "test_limits_are_text_in_tokens")),
    "45": (
        "channels: lying charges, hidden ceilings, vanished gateways",
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
    "46": ("a model made for each request", ("test_models_for_each_request.py",)),
}


def rows_of(nodeid: str) -> list[str]:
    """The rows that a test belongs to."""
    return [row for row, (_, names) in ROWS.items() if any(name in nodeid for name in names)]
