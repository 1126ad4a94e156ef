# pragma version 0.4.3
"""
@title The smallest smart-contract wallet: one owner, EIP-1271 signatures
@notice For trying payers that are contracts. It is deployed by a transaction, not in the genesis.
"""
owner: immutable(address)

MAGIC: constant(bytes4) = 0x1626ba7e

@deploy
def __init__(_owner: address):
    owner = _owner

@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[4096]) -> bytes4:
    if len(signature) != 65:
        return 0xffffffff
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    recovered: address = ecrecover(digest, v, extract32(signature, 0, output_type=uint256), extract32(signature, 32, output_type=uint256))
    if recovered != owner or recovered == empty(address):
        return 0xffffffff
    return MAGIC

@external
@payable
def execute(target: address, data: Bytes[8192]):
    assert msg.sender == owner, "not the owner"
    raw_call(target, data, value=msg.value)
