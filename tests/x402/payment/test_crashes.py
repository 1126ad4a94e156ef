"""A process that dies at the worst moment loses no money silently."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

from opengradient_x402.ledger.ledger import Ledger

SCRIPT = textwrap.dedent("""
    import os, signal, sys
    from opengradient_x402.payment import handshake
    from opengradient_x402.gateway.client import GatewayClient
    from opengradient_x402.payment.payments import Payments

    sign = Payments.sign

    def sign_and_die(self, *args, **how):
        sign(self, *args, **how)              # the signature exists ...
        os.kill(os.getpid(), signal.SIGKILL)  # ... and was not sent

    Payments.sign = sign_and_die
    payments = Payments.open(network=sys.argv[1], private_key=sys.argv[2], ledger=sys.argv[3])
    GatewayClient(payments).chat({"model": "openai/gpt-5", "messages": [{"role": "user", "content": "hi"}]})
""")


def test_kill_9_between_signing_and_sending_leaves_the_authorization_in_the_ledger(net, account, tmp_path):
    path = tmp_path / "ledger.sqlite"
    died = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"{net.gateway_url}/network", account.private_key, str(path)],
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    ledger = Ledger(path)
    (row,) = ledger.authorizations().result()
    assert (row.status, row.payer, row.amount_atomic) == ("signed", account.address, 10**17)
    (receipt,) = ledger.receipts().result()
    assert (receipt.status, receipt.outcome) == ("authorized", "unknown")
    ledger.close()


def test_a_forked_process_never_repeats_a_call_id():
    script = textwrap.dedent("""
        import os, sys
        from opengradient_x402.payment.call import Call
        Call()
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, ",".join(Call().id for _ in range(50)).encode()); os._exit(0)
        os.wait()
        theirs = os.read(read, 10000).decode().split(",")
        ours = [Call().id for _ in range(50)]
        print(len(set(theirs + ours)))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=240, check=True)
    assert done.stdout.strip() == b"100"
