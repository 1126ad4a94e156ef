# pragma version 0.4.3
# pragma optimize gas
"""
@title x402 batch settlement: channels that a payer fills once, and receivers claim from by vouchers
@notice A balance counts all deposits, claimed or not; what is left of a channel is `balance - totalClaimed`.
"""
import channel_types

struct Channel:
    balance: uint128
    totalClaimed: uint128

struct Withdrawal:
    amount: uint128
    initiatedAt: uint40

struct Receiver:
    totalClaimed: uint128
    totalSettled: uint128

struct Voucher:
    channel: channel_types.ChannelConfig
    maxClaimableAmount: uint128

struct VoucherClaim:
    voucher: Voucher
    signature: Bytes[512]
    totalClaimed: uint128

event ChannelCreated:
    channelId: indexed(bytes32)
    config: channel_types.ChannelConfig

event ChannelClosed:
    channelId: indexed(bytes32)
    config: channel_types.ChannelConfig

event Deposited:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128
    newBalance: uint128

event Claimed:
    channelId: indexed(bytes32)
    sender: indexed(address)
    claimAmount: uint128
    newTotalClaimed: uint128

event Refunded:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128

event WithdrawInitiated:
    channelId: indexed(bytes32)
    amount: uint128
    finalizeAfter: uint40

event WithdrawFinalized:
    channelId: indexed(bytes32)
    sender: indexed(address)
    amount: uint128

event Settled:
    receiver: indexed(address)
    token: indexed(address)
    sender: indexed(address)
    amount: uint128

interface ERC1271:
    def isValidSignature(digest: bytes32, signature: Bytes[512]) -> bytes4: view

MAX_CLAIMS: constant(uint256) = 32
MAX_CALLS: constant(uint256) = 4
MIN_DELAY: constant(uint40) = 900
MAX_DELAY: constant(uint40) = 2_592_000
DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
CONFIG_TYPEHASH: constant(bytes32) = keccak256(
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER_TYPEHASH: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)")
REFUND_TYPEHASH: constant(bytes32) = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)")
ENTRY_TYPEHASH: constant(bytes32) = keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)")
BATCH_TYPEHASH: constant(bytes32) = keccak256(
    "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
)
EIP1271_MAGIC: constant(bytes4) = 0x1626ba7e

_channels: HashMap[bytes32, Channel]
_pending: HashMap[bytes32, Withdrawal]
_receivers: HashMap[address, HashMap[address, Receiver]]
refundNonce: public(HashMap[bytes32, uint256])

@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    domain: bytes32 = keccak256(
        abi_encode(DOMAIN_TYPEHASH, keccak256("x402 Batch Settlement"), keccak256("1"), chain.id, self)
    )
    return keccak256(concat(x"1901", domain, struct_hash))

@internal
@view
def _id(config: channel_types.ChannelConfig) -> bytes32:
    return self._digest(
        keccak256(
            abi_encode(
                CONFIG_TYPEHASH,
                config.payer,
                config.payerAuthorizer,
                config.receiver,
                config.receiverAuthorizer,
                config.token,
                config.withdrawDelay,
                config.salt,
            )
        )
    )

@internal
@view
def _voucher_digest(id: bytes32, amount: uint128) -> bytes32:
    return self._digest(keccak256(abi_encode(VOUCHER_TYPEHASH, id, amount)))

@internal
@view
def _refund_digest(id: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return self._digest(keccak256(abi_encode(REFUND_TYPEHASH, id, nonce, amount)))

@internal
@view
def _is_signed_by(who: address, digest: bytes32, signature: Bytes[512]) -> bool:
    if who.codesize != 0:
        return staticcall ERC1271(who).isValidSignature(digest, signature) == EIP1271_MAGIC
    if len(signature) != 65:
        return False
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    recovered: address = ecrecover(
        digest, v, extract32(signature, 0, output_type=uint256), extract32(signature, 32, output_type=uint256)
    )
    return recovered != empty(address) and recovered == who

@external
@view
def getChannelId(config: channel_types.ChannelConfig) -> bytes32:
    return self._id(config)

@external
@view
def getVoucherDigest(channelId: bytes32, maxClaimableAmount: uint128) -> bytes32:
    return self._voucher_digest(channelId, maxClaimableAmount)

@external
@view
def getRefundDigest(channelId: bytes32, nonce: uint256, amount: uint128) -> bytes32:
    return self._refund_digest(channelId, nonce, amount)

@external
@view
def getClaimBatchDigest(voucherClaims: DynArray[VoucherClaim, MAX_CLAIMS]) -> bytes32:
    return self._batch_digest(voucherClaims)

@external
@view
def channels(channelId: bytes32) -> (uint128, uint128):
    channel: Channel = self._channels[channelId]
    return channel.balance, channel.totalClaimed

@external
@view
def pendingWithdrawals(channelId: bytes32) -> (uint128, uint40):
    pending: Withdrawal = self._pending[channelId]
    return pending.amount, pending.initiatedAt

@external
@view
def receivers(receiver: address, token: address) -> (uint128, uint128):
    known: Receiver = self._receivers[receiver][token]
    return known.totalClaimed, known.totalSettled

@external
@nonreentrant
def deposit(config: channel_types.ChannelConfig, amount: uint128, collector: address, collectorData: Bytes[4096]):
    if amount == 0:
        raw_revert(method_id("ZeroDeposit()"))
    if config.payer == empty(address) or config.receiver == empty(address) or config.receiverAuthorizer == empty(address):
        raw_revert(method_id("InvalidChannel()"))
    if config.withdrawDelay < MIN_DELAY or config.withdrawDelay > MAX_DELAY:
        raw_revert(method_id("WithdrawDelayOutOfRange()"))
    id: bytes32 = self._id(config)
    token: channel_types.ERC20 = channel_types.ERC20(config.token)
    before: uint256 = staticcall token.balanceOf(self)
    extcall channel_types.IDepositCollector(collector).collect(
        config.payer, config.token, convert(amount, uint256), id, collectorData
    )
    if staticcall token.balanceOf(self) != before + convert(amount, uint256):
        raw_revert(method_id("DepositCollectionFailed()"))
    self._channels[id].balance += amount
    channel: Channel = self._channels[id]
    if channel.balance == amount and channel.totalClaimed == 0:
        log ChannelCreated(channelId=id, config=config)
    log Deposited(channelId=id, sender=msg.sender, amount=amount, newBalance=channel.balance)

@internal
def _claim(claim: VoucherClaim):
    config: channel_types.ChannelConfig = claim.voucher.channel
    id: bytes32 = self._id(config)
    signer: address = config.payerAuthorizer
    if signer == empty(address):
        signer = config.payer
    if not self._is_signed_by(signer, self._voucher_digest(id, claim.voucher.maxClaimableAmount), claim.signature):
        raw_revert(method_id("InvalidSignature()"))
    if claim.totalClaimed > claim.voucher.maxClaimableAmount:
        raw_revert(method_id("ClaimExceedsCeiling()"))
    channel: Channel = self._channels[id]
    if claim.totalClaimed > channel.balance:
        raw_revert(method_id("ClaimExceedsBalance()"))
    if claim.totalClaimed <= channel.totalClaimed:
        return
    amount: uint128 = claim.totalClaimed - channel.totalClaimed
    self._receivers[config.receiver][config.token].totalClaimed += amount
    self._channels[id].totalClaimed = claim.totalClaimed
    log Claimed(channelId=id, sender=msg.sender, claimAmount=amount, newTotalClaimed=claim.totalClaimed)

@external
@nonreentrant
def claim(voucherClaims: DynArray[VoucherClaim, MAX_CLAIMS]):
    for claim: VoucherClaim in voucherClaims:
        config: channel_types.ChannelConfig = claim.voucher.channel
        if msg.sender != config.receiver and msg.sender != config.receiverAuthorizer:
            raw_revert(method_id("NotReceiverAuthorizer()"))
        self._claim(claim)

@internal
@view
def _batch_digest(claims: DynArray[VoucherClaim, MAX_CLAIMS]) -> bytes32:
    entries: DynArray[bytes32, MAX_CLAIMS] = []
    for claim: VoucherClaim in claims:
        entries.append(
            keccak256(
                abi_encode(
                    ENTRY_TYPEHASH, self._id(claim.voucher.channel), claim.voucher.maxClaimableAmount, claim.totalClaimed
                )
            )
        )
    packed: Bytes[1088] = slice(abi_encode(entries), 64, len(entries) * 32)  # without offset and length (EIP-712)
    return self._digest(keccak256(abi_encode(BATCH_TYPEHASH, keccak256(packed))))

@external
@nonreentrant
def claimWithSignature(voucherClaims: DynArray[VoucherClaim, MAX_CLAIMS], authorizerSignature: Bytes[512]):
    if len(voucherClaims) == 0:
        raw_revert(method_id("EmptyBatch()"))
    authorizer: address = voucherClaims[0].voucher.channel.receiverAuthorizer
    if not self._is_signed_by(authorizer, self._batch_digest(voucherClaims), authorizerSignature):
        raw_revert(method_id("InvalidSignature()"))
    for claim: VoucherClaim in voucherClaims:
        if claim.voucher.channel.receiverAuthorizer != authorizer:
            raw_revert(method_id("NotReceiverAuthorizer()"))
        self._claim(claim)

@external
@nonreentrant
def settle(receiver: address, token: address):
    known: Receiver = self._receivers[receiver][token]
    amount: uint128 = known.totalClaimed - known.totalSettled
    if amount == 0:
        raw_revert(method_id("NothingToSettle()"))
    self._receivers[receiver][token].totalSettled = known.totalClaimed
    self._pay(token, receiver, amount)
    log Settled(receiver=receiver, token=token, sender=msg.sender, amount=amount)

@internal
def _pay(token: address, to: address, amount: uint128):
    moved: bool = extcall channel_types.ERC20(token).transfer(to, convert(amount, uint256), default_return_value=True)
    assert moved, "TRANSFER_FAILED"

@internal
@view
def _left(id: bytes32, wanted: uint128) -> uint128:
    channel: Channel = self._channels[id]
    return min(wanted, channel.balance - channel.totalClaimed)

@internal
def _log_if_closed(config: channel_types.ChannelConfig, id: bytes32):
    if self._channels[id].balance == 0 and self._channels[id].totalClaimed == 0:
        log ChannelClosed(channelId=id, config=config)

@internal
def _refund(config: channel_types.ChannelConfig, id: bytes32, wanted: uint128):
    amount: uint128 = self._left(id, wanted)
    if amount == 0:
        raw_revert(method_id("NothingToRefund()"))
    self._channels[id].balance -= amount
    self._pending[id] = empty(Withdrawal)
    self.refundNonce[id] += 1
    log Refunded(channelId=id, sender=msg.sender, amount=amount)
    self._log_if_closed(config, id)
    self._pay(config.token, config.payer, amount)

@external
@nonreentrant
def refund(config: channel_types.ChannelConfig, amount: uint128):
    if msg.sender != config.receiver and msg.sender != config.receiverAuthorizer:
        raw_revert(method_id("NotReceiverAuthorizer()"))
    self._refund(config, self._id(config), amount)

@external
@nonreentrant
def refundWithSignature(
    config: channel_types.ChannelConfig, amount: uint128, nonce: uint256, receiverAuthorizerSignature: Bytes[512]
):
    id: bytes32 = self._id(config)
    if nonce != self.refundNonce[id]:
        raw_revert(method_id("InvalidRefundNonce()"))
    digest: bytes32 = self._refund_digest(id, nonce, amount)
    if not self._is_signed_by(config.receiverAuthorizer, digest, receiverAuthorizerSignature):
        raw_revert(method_id("InvalidSignature()"))
    self._refund(config, id, amount)

@external
@nonreentrant
def initiateWithdraw(config: channel_types.ChannelConfig, amount: uint128):
    if msg.sender != config.payer and msg.sender != config.payerAuthorizer:
        raw_revert(method_id("NotPayer()"))
    id: bytes32 = self._id(config)
    if amount == 0 or amount != self._left(id, amount):
        raw_revert(method_id("WithdrawExceedsBalance()"))
    now: uint40 = convert(block.timestamp, uint40)
    self._pending[id] = Withdrawal(amount=amount, initiatedAt=now)
    log WithdrawInitiated(channelId=id, amount=amount, finalizeAfter=now + config.withdrawDelay)

@external
@nonreentrant
def finalizeWithdraw(config: channel_types.ChannelConfig):
    id: bytes32 = self._id(config)
    pending: Withdrawal = self._pending[id]
    if pending.amount == 0:
        raw_revert(method_id("NoWithdrawal()"))
    if block.timestamp < convert(pending.initiatedAt + config.withdrawDelay, uint256):
        raw_revert(method_id("WithdrawDelayNotElapsed()"))
    self._pending[id] = empty(Withdrawal)
    amount: uint128 = self._left(id, pending.amount)
    self._channels[id].balance -= amount
    log WithdrawFinalized(channelId=id, sender=msg.sender, amount=amount)
    self._log_if_closed(config, id)
    self._pay(config.token, config.payer, amount)

@external
def multicall(data: DynArray[Bytes[8192], MAX_CALLS]) -> DynArray[Bytes[32], MAX_CALLS]:
    results: DynArray[Bytes[32], MAX_CALLS] = []
    for call: Bytes[8192] in data:
        results.append(raw_call(self, call, max_outsize=32, is_delegate_call=True))
    return results
