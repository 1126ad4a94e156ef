# pragma version 0.4.3
"""
@title Settlement relay: what was asked and answered, as hashes on chain
@notice Anybody may write here, as on any open devnet: a reader checks the enclave's signature, not the sender.
"""
event BatchSettlement:
    merkleRoot: indexed(bytes32)
    batchSize: uint256
    walrusBlobId: Bytes[256]

event IndividualSettlement:
    teeId: indexed(bytes32)
    ethAddress: indexed(address)
    inputHash: bytes32
    outputHash: bytes32
    timestamp: uint256
    walrusBlobId: Bytes[256]
    signature: Bytes[1024]

@external
def batchSettle(merkleRoot: bytes32, batchSize: uint256, walrusBlobId: Bytes[256]):
    log BatchSettlement(merkleRoot=merkleRoot, batchSize=batchSize, walrusBlobId=walrusBlobId)

@external
def settleIndividual(
    teeId: bytes32,
    inputHash: bytes32,
    outputHash: bytes32,
    timestamp: uint256,
    ethAddress: address,
    walrusBlobId: Bytes[256],
    signature: Bytes[1024],
):
    log IndividualSettlement(
        teeId=teeId,
        ethAddress=ethAddress,
        inputHash=inputHash,
        outputHash=outputHash,
        timestamp=timestamp,
        walrusBlobId=walrusBlobId,
        signature=signature,
    )

# OpenZeppelin's MerkleProof: pairs are sorted before they are hashed.
@external
@pure
def verifyProof(proof: DynArray[bytes32, 64], root: bytes32, leaf: bytes32) -> bool:
    node: bytes32 = leaf
    for sibling: bytes32 in proof:
        if convert(node, uint256) <= convert(sibling, uint256):
            node = keccak256(concat(node, sibling))
        else:
            node = keccak256(concat(sibling, node))
    return node == root
