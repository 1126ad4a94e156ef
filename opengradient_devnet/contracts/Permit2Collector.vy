# pragma version 0.4.3
"""
@title x402's collector of deposits that are signed for Permit2, with the channel as witness
"""
import channel_types
import eip2612_permit
import permit2_types

WITNESS_TYPEHASH: constant(bytes32) = keccak256("DepositWitness(bytes32 channelId)")
TYPE_STRING: constant(String[128]) = "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)"

@external
def collect(payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[4096]):
    if msg.sender != channel_types.BATCH_SETTLEMENT:
        raw_revert(method_id("OnlyBatchSettlement()"))
    nonce: uint256 = 0
    deadline: uint256 = 0
    signature: Bytes[2048] = b""
    permit2612: Bytes[256] = b""
    nonce, deadline, signature, permit2612 = abi_decode(data, (uint256, uint256, Bytes[2048], Bytes[256]))
    if len(permit2612) > 0:
        value: uint256 = 0
        until: uint256 = 0
        v: uint8 = 0
        r: bytes32 = empty(bytes32)
        s: bytes32 = empty(bytes32)
        value, until, v, r, s = abi_decode(permit2612, (uint256, uint256, uint8, bytes32, bytes32))
        permit: eip2612_permit.EIP2612Permit = eip2612_permit.EIP2612Permit(value=value, deadline=until, r=r, s=s, v=v)
        eip2612_permit._approve_permit2(token, payer, permit, amount)
    extcall permit2_types.ISignatureTransfer(permit2_types.PERMIT2).permitWitnessTransferFrom(
        permit2_types.PermitTransferFrom(
            permitted=permit2_types.TokenPermissions(token=token, amount=amount), nonce=nonce, deadline=deadline
        ),
        permit2_types.SignatureTransferDetails(to=msg.sender, requestedAmount=amount),
        payer,
        keccak256(abi_encode(WITNESS_TYPEHASH, channelId)),
        TYPE_STRING,
        signature,
    )
