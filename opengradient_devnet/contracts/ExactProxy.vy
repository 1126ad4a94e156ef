# pragma version 0.4.3
# pragma optimize gas
"""
@title x402 exact proxy: the spender of the payer's Permit2 witness signature
@notice Takes exactly the signed amount; whoever sends it, it goes where the payer said.
"""
import eip2612_permit
import permit2_types

struct Witness:
    to: address
    validAfter: uint256

event Settled:
    pass

event SettledWithPermit:
    pass

WITNESS_TYPE: constant(String[128]) = "Witness(address to,uint256 validAfter)"
TYPE_STRING: constant(String[128]) = "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)"

@external
@pure
def PERMIT2() -> address:
    return permit2_types.PERMIT2

@external
@pure
def WITNESS_TYPEHASH() -> bytes32:
    return keccak256(WITNESS_TYPE)

@external
@pure
def WITNESS_TYPE_STRING() -> String[128]:
    return TYPE_STRING

@internal
def _settle(
    permit: permit2_types.PermitTransferFrom,
    amount: uint256,
    owner: address,
    witness: Witness,
    signature: Bytes[4096],
):
    if amount == 0:
        raw_revert(method_id("InvalidAmount()"))
    if owner == empty(address):
        raw_revert(method_id("InvalidOwner()"))
    if witness.to == empty(address):
        raw_revert(method_id("InvalidDestination()"))
    if block.timestamp < witness.validAfter:
        raw_revert(method_id("PaymentTooEarly()"))
    witness_hash: bytes32 = keccak256(abi_encode(keccak256(WITNESS_TYPE), witness.to, witness.validAfter))
    extcall permit2_types.ISignatureTransfer(permit2_types.PERMIT2).permitWitnessTransferFrom(
        permit,
        permit2_types.SignatureTransferDetails(to=witness.to, requestedAmount=amount),
        owner,
        witness_hash,
        TYPE_STRING,
        signature,
    )

@external
@nonreentrant
def settle(
    permit: permit2_types.PermitTransferFrom,
    owner: address,
    witness: Witness,
    signature: Bytes[4096],
):
    self._settle(permit, permit.permitted.amount, owner, witness, signature)
    log Settled()

@external
@nonreentrant
def settleWithPermit(
    permit2612: eip2612_permit.EIP2612Permit,
    permit: permit2_types.PermitTransferFrom,
    owner: address,
    witness: Witness,
    signature: Bytes[4096],
):
    eip2612_permit._approve_permit2(permit.permitted.token, owner, permit2612, permit.permitted.amount)
    self._settle(permit, permit.permitted.amount, owner, witness, signature)
    log SettledWithPermit()
