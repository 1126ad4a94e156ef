"""`opengradient-x402 doctor`: what stands between this machine and a paid call, each problem with its fix.

Checks in the order in which a call needs things. Nothing is signed and nothing is paid: the gateway is asked for
its price, and the answer is judged by the spend policy.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import typer

from opengradient_x402.cli.options import GatewayOption, JsonOption, LedgerOption, NetworkOption, RpcOption
from opengradient_x402.cli.output import counted, print_json, print_pairs, working

if TYPE_CHECKING:
    from opengradient_x402.chain.questions import Question
    from opengradient_x402.networks import Network
    from opengradient_x402.payment.challenge import PaymentTerms

_T = TypeVar("_T")
_MOST_SKEW_S = 30
_IDLE_S = 86_400
_LONGEST_LOOK_S = 1.5
"""For one request, and half and a third of it after one and two dead hosts: all checks together take less than five
seconds, also where none of the three (node, gateway, registry) answers."""
_DELEGATION: Final = bytes.fromhex("ef0100")  # EIP-7702: what a delegated account's code begins with
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "bold red"), "skipped": ("-", "dim")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One check: what was found, and what to do about it."""

    name: str
    state: Literal["ok", "warning", "problem", "skipped"]
    found: str
    fix: str | None = None


def doctor(
    network: NetworkOption = None,
    rpc_url: RpcOption = None,
    gateway: GatewayOption = None,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check everything that a paid call needs, and show what is in channels. Exit code 1: there is a problem."""
    examination = _Examination(network, gateway, ledger, rpc_url)
    found: list[Diagnosis] = []
    for name, check in examination.checks():
        with working(f"Checking {name}"):
            found.append(_diagnosed(name, check))
        if not as_json:
            _print(found[-1])
    if as_json:
        print_json([asdict(diagnosis) for diagnosis in found])
    else:
        typer.echo()
        for sentence in _advice(found):
            typer.echo(sentence)
    if any(diagnosis.state == "problem" for diagnosis in found):
        raise typer.Exit(1)


def _print(diagnosis: Diagnosis) -> None:
    """One check, and below it what to do."""
    from rich.text import Text

    mark, style = _MARKS[diagnosis.state]
    name = Text.assemble((mark, style), f" {diagnosis.name:<9}")
    print_pairs([(name, diagnosis.found), *([("", f"→ {diagnosis.fix}")] if diagnosis.fix is not None else [])])


def _advice(found: list[Diagnosis]) -> list[str]:
    count = Counter(diagnosis.state for diagnosis in found)
    if count["problem"]:
        return [f"{counted(count['problem'], 'problem')} to mend before a call can be paid."]
    return ["Ready. Next: opengradient-x402 chat 'What is x402?' --wait 150"]


class _Examination:
    """The checks, and what later ones need of earlier ones."""

    def __init__(self, network: str | None, gateway: str | None, ledger: str | None, rpc_url: str | None) -> None:
        self._rpc_url = rpc_url
        self._is_node_dead = False
        self._dead_hosts = 0
        self._network_choice = network
        self._gateway_choice = gateway
        self._ledger_choice = ledger
        self._network: Network | None = None
        self._address: str | None = None
        self._terms: PaymentTerms | None = None
        self._served_at: str | None = None

    def checks(self) -> list[tuple[str, Callable[[], Diagnosis]]]:
        """In the order in which a call needs them."""
        return [
            ("key", self._key),
            ("network", self._chain),
            ("gateway", self._gateway),
            ("clock", self._clock),
            ("account", self._account),
            ("gas", self._gas),
            ("tokens", self._tokens),
            ("allowance", self._allowance),
            ("registry", self._registry),
            ("ledger", self._ledger),
            ("channels", self._channels),
        ]

    def _key(self) -> Diagnosis:
        from opengradient_x402.cli.options import signer_of_environment

        self._address = signer_of_environment().address
        return _ok("key", f"wallet {self._address}")

    def _chain(self) -> Diagnosis:
        from opengradient_x402.chain.questions import block
        from opengradient_x402.cli.options import network_of

        self._network = network_of(self._network_choice, self._rpc_url)
        head = self._asked(block())
        explorer = f", explorer {self._network.explorer_url}" if self._network.explorer_url else ""
        return _ok("network", f"{self._network.name} (chain {self._network.chain_id}), block {head.number}{explorer}")

    def _gateway(self) -> Diagnosis:
        import httpx

        from opengradient_x402.chain.node import Line, limited_to
        from opengradient_x402.cli.options import gateway_of
        from opengradient_x402.payment.challenge import parse_challenge
        from opengradient_x402.payment.policy import SpendPolicy

        network = self._known_network()
        url = gateway_of(self._gateway_choice, network).rstrip("/").removesuffix("/v1")
        SpendPolicy().check_endpoint(url)
        body = {"model": "gpt-5", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}
        request = httpx.Request("POST", f"{url}/v1/chat/completions", json=body, extensions=limited_to(self._look_s))
        try:
            with Line() as line:  # only the headers are read: a body of any size may come with them
                response = line.send(request)
                response.close()
        except httpx.HTTPError as exc:
            self._dead_hosts += 1
            return _problem(
                "gateway",
                f"{url} was not reached ({type(exc).__name__})",
                "Check the address (`--gateway`) and your connection.",
            )
        self._served_at = response.headers.get("date")
        header = response.headers.get("payment-required")
        if response.status_code != 402 or header is None:
            return _problem(
                "gateway",
                f"{url} answered {response.status_code} instead of naming its price (402)",
                "Give the URL of an OpenGradient gateway with `--gateway` or OG_GATEWAY_URL.",
            )
        challenge = parse_challenge(header)
        named = frozenset(terms.pay_to for terms in challenge.terms)
        policy = SpendPolicy() if network.payees else SpendPolicy(payees=named)
        self._terms = policy.choose(challenge, network=network, origin=url, pinned_facilitator=None)
        price = network.asset.format(self._terms.amount_atomic)
        found = f"{url} asks for an authorization of {price} (scheme {self._terms.scheme})"
        if not network.payees:
            found += f", to be paid to {self._terms.pay_to}: if you trust it, name it in `SpendPolicy(payees=...)`"
        return _ok("gateway", found)

    def _clock(self) -> Diagnosis:
        from email.utils import parsedate_to_datetime

        from opengradient_x402.chain.questions import chain_time

        now_s = int(time.time())
        try:
            reference, whose = int(parsedate_to_datetime(self._served_at or "").timestamp()), "the gateway's"
        except (ValueError, OverflowError):
            reference, whose = self._asked(chain_time()), "the chain's"
        skew_s = now_s - reference
        if abs(skew_s) > _MOST_SKEW_S:
            return _problem(
                "clock",
                f"this machine's clock is {abs(skew_s)} s {'ahead of' if skew_s > 0 else 'behind'} {whose}",
                "Set the clock (NTP): deadlines of payments are checked against it.",
            )
        return _ok("clock", f"within {max(abs(skew_s), 1)} s of {whose}")

    def _account(self) -> Diagnosis:
        from opengradient_x402.addresses import address_of
        from opengradient_x402.chain.questions import code_of

        address = self._known_address()
        code = self._asked(code_of(address))
        if not code:
            return _ok("account", "a wallet with a key and no code")
        is_delegated = code.startswith(_DELEGATION) and len(code) == len(_DELEGATION) + 20
        what = f"delegates to the contract {address_of(code)} (EIP-7702)" if is_delegated else "is a contract"
        return Diagnosis(
            name="account",
            state="warning",
            found=f"{address} {what}: that code decides whether a signature of the key counts",
            fix="If payments are refused, use a wallet without code, or end the delegation.",
        )

    def _gas(self) -> Diagnosis:
        from opengradient_x402.chain.questions import native_balance
        from opengradient_x402.money import format_amount

        network, address = self._known_network(), self._known_address()
        wei = self._asked(native_balance(address))
        if wei == 0:
            return Diagnosis(
                name="gas",
                state="warning",
                found="no ETH (payments need none; `approve` and cancelling do)",
                fix=f"Send a little ETH on {network.name} to {address} if you must approve.",
            )
        return _ok("gas", f"{format_amount(wei, decimals=18)} ETH")

    def _tokens(self) -> Diagnosis:
        from opengradient_x402.chain.questions import balance_of

        network, address = self._known_network(), self._known_address()
        held, needed = self._asked(balance_of(network.asset.address, address)), self._needed()
        found = network.asset.format(held)
        if held < needed or held == 0:
            source = f" A faucet: {network.faucet_url}" if network.faucet_url else ""
            wanted = f"; a call authorizes {network.asset.format(needed)}" if needed else ""
            return _problem("tokens", found + wanted, f"Send {network.asset.symbol} to {address}.{source}")
        return _ok("tokens", found)

    def _allowance(self) -> Diagnosis:
        from opengradient_x402.chain.questions import allowance
        from opengradient_x402.money import MAX_UINT256

        network, address = self._known_network(), self._known_address()
        # Only what was typed is typed again: the name in a network file is no name that `--network` knows.
        option = f" --network {shlex.quote(self._network_choice)}" if self._network_choice else ""
        node = ", with the `--rpc-url` that you gave here" if self._rpc_url else ""  # a provider's key may be in it
        allowed = self._asked(allowance(network.asset.address, address, network.permit2))
        if allowed < self._needed() or allowed == 0:
            return _problem(
                "allowance",
                f"payments may take {network.asset.format(allowed)}",
                f"Run `opengradient-x402 approve 5{option}` once{node}.",
            )
        if allowed > MAX_UINT256 // 2 and network.accounts_url is None:  # who hands out wallets hands out play money
            return Diagnosis(
                name="allowance",
                state="warning",
                found="unlimited",
                fix="A bounded one limits what a mistake can cost.",
            )
        most = "all tokens" if allowed > MAX_UINT256 // 2 else network.asset.format(allowed)
        return _ok("allowance", f"payments may take {most}")

    def _registry(self) -> Diagnosis:
        from opengradient_x402.chain.contracts import active_tees
        from opengradient_x402.chain.questions import ChainReader

        registry = self._known_network().registry
        if registry is None:
            return Diagnosis(name="registry", state="skipped", found="the network names none")
        if self._is_node_dead and registry.rpc_url == self._known_network().rpc_url:
            raise _Unanswerable("its node is the one above")
        found = ChainReader.at(registry, timeout_s=self._look_s).ask(active_tees(registry.address))
        if not found:
            return Diagnosis(
                name="registry",
                state="warning",
                found="no enclave is active",
                fix="Calls to a gateway with an address work; `--gateway registry` does not.",
            )
        return _ok("registry", counted(len(found), "active enclave"))

    def _ledger(self) -> Diagnosis:
        from opengradient_x402.cli.options import opened_ledger

        with opened_ledger(self._ledger_choice) as ledger:
            waiting = ledger.authorizations(status="signed").result()
            overdue = [entry for entry in waiting if 0 < entry.deadline < time.time()]  # a voucher has no deadline
        if overdue:
            return Diagnosis(
                name="ledger",
                state="warning",
                found=f"past their deadline and not reconciled: {counted(len(overdue), 'authorization')}",
                fix="Run `opengradient-x402 receipts reconcile`: the budget gets back what was never taken.",
            )
        return _ok("ledger", f"writable, {counted(len(waiting), 'open authorization')}")

    def _channels(self) -> Diagnosis:
        from opengradient_x402.channels.book import ChannelBook
        from opengradient_x402.cli.options import opened_ledger

        network, address = self._known_network(), self._known_address()
        with opened_ledger(self._ledger_choice) as ledger:
            known = ChannelBook(ledger).channels(network=network.caip2, payer=address).result()
        used = [channel for channel in known if channel.status != "closed"]
        if not used:
            return _ok("channels", "no payment channel is open")
        free = network.asset.format(sum(channel.free_atomic for channel in used))
        if all(time.time() - channel.used_at < _IDLE_S and channel.status == "open" for channel in used):
            return _ok("channels", f"{free} free in {counted(len(used), 'payment channel')}")
        return Diagnosis(
            name="channels",
            state="warning",
            found=f"{free} free in {counted(len(used), 'payment channel')}: not used for a day, or closing",
            fix="`opengradient-x402 channels list` shows them, `channels refund` or `channels withdraw` takes it back.",
        )

    @property
    def _look_s(self) -> float:
        """How long the next host may take to answer, in seconds."""
        return _LONGEST_LOOK_S / (1 + self._dead_hosts)

    def _needed(self) -> int:
        return 0 if self._terms is None else self._terms.amount_atomic

    def _known_network(self) -> Network:
        if self._network is None:
            raise _Unanswerable("the network is not known")
        return self._network

    def _known_address(self) -> str:
        if self._address is None:
            raise _Unanswerable("the wallet is not known")
        return self._address

    def _asked(self, question: Question[_T]) -> _T:
        """What the node answers. After one failure it is not asked again, since each question takes time."""
        from opengradient_x402.chain.questions import ChainReader
        from opengradient_x402.errors import OpenGradientError

        network = self._known_network()
        if self._is_node_dead:
            raise _Unanswerable("the node did not answer")
        try:
            return ChainReader.at(network, timeout_s=self._look_s).ask(question)
        except OpenGradientError:
            self._is_node_dead = True
            self._dead_hosts += 1
            raise


class _Unanswerable(Exception):
    """An earlier check found out too little for this one."""


def _diagnosed(name: str, check: Callable[[], Diagnosis]) -> Diagnosis:
    from opengradient_x402.errors import OpenGradientError

    try:
        return check()
    except _Unanswerable as exc:
        return Diagnosis(name=name, state="skipped", found=str(exc))
    except OpenGradientError as exc:
        return Diagnosis(name=name, state="problem", found=exc.message)


def _ok(name: str, found: str) -> Diagnosis:
    return Diagnosis(name=name, state="ok", found=found)


def _problem(name: str, found: str, fix: str) -> Diagnosis:
    return Diagnosis(name=name, state="problem", found=found, fix=fix)
