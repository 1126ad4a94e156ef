# pragma version 0.4.3
"""
@title x402's collector of deposits that are signed as EIP-3009 receiveWithAuthorization
@notice The nonce binds the signature to its channel.
"""
import channel_types

interface EIP3009:
    def receiveWithAuthorization(
        sender: address,
        to: address,
        amount: uint256,
        validAfter: uint256,
        validBefore: uint256,
        nonce: bytes32,
        v: uint8,
        r: bytes32,
        s: bytes32,
    ): nonpayable

@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[4096]):
    if msg.sender != channel_types.BATCH_SETTLEMENT:
        raw_revert(method_id("OnlyBatchSettlement()"))
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[2048] = b""
    valid_after, valid_before, salt, signature = abi_decode(data, (uint256, uint256, uint256, Bytes[2048]))
    nonce: bytes32 = keccak256(abi_encode(channelId, salt))
    assert len(signature) == 65, "invalid signature"
    extcall EIP3009(token).receiveWithAuthorization(
        payer,
        self,
        amount,
        valid_after,
        valid_before,
        nonce,
        convert(slice(signature, 64, 1), uint8),
        extract32(signature, 0),
        extract32(signature, 32),
    )
    moved: bool = extcall channel_types.ERC20(token).transfer(msg.sender, amount, default_return_value=True)
    assert moved, "TRANSFER_FAILED"
