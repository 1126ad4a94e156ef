# pragma version 0.4.3
# pragma optimize gas
"""
@title Permit2's SignatureTransfer: single-token permits and unordered nonces
@notice Its EIP-712 domain has a name, a chain id and a contract, and no version.
@dev AllowanceTransfer and the batched forms are left out: x402 does not use them.
"""
import permit2_types

event UnorderedNonceInvalidation:
    owner: indexed(address)
    word: uint256
    mask: uint256

interface ERC1271:
    def isValidSignature(digest: bytes32, signature: Bytes[4096]) -> bytes4: view

interface ERC20:
    def transferFrom(owner: address, to: address, amount: uint256) -> bool: nonpayable

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)")
TOKEN_PERMISSIONS_TYPEHASH: constant(bytes32) = keccak256("TokenPermissions(address token,uint256 amount)")
TRANSFER_FROM_TYPEHASH: constant(bytes32) = keccak256(
    "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
)
WITNESS_STUB: constant(String[100]) = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
EIP1271_MAGIC: constant(bytes4) = 0x1626ba7e

nonceBitmap: public(HashMap[address, HashMap[uint256, uint256]])

@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("Permit2"), chain.id, self))

@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    return self._domain()

@external
def invalidateUnorderedNonces(wordPos: uint256, mask: uint256):
    self.nonceBitmap[msg.sender][wordPos] |= mask
    log UnorderedNonceInvalidation(owner=msg.sender, word=wordPos, mask=mask)

@internal
@view
def _verify(signature: Bytes[4096], digest: bytes32, signer: address):
    if signer.codesize != 0:
        if staticcall ERC1271(signer).isValidSignature(digest, signature) != EIP1271_MAGIC:
            raw_revert(method_id("InvalidContractSignature()"))
        return
    r: uint256 = 0
    s: uint256 = 0
    v: uint256 = 0
    if len(signature) == 65:
        r = extract32(signature, 0, output_type=uint256)
        s = extract32(signature, 32, output_type=uint256)
        v = convert(slice(signature, 64, 1), uint256)
    elif len(signature) == 64:  # EIP-2098: v is the top bit of s
        r = extract32(signature, 0, output_type=uint256)
        vs: uint256 = extract32(signature, 32, output_type=uint256)
        s = vs & (max_value(uint256) >> 1)
        v = (vs >> 255) + 27
    else:
        raw_revert(method_id("InvalidSignatureLength()"))
    recovered: address = ecrecover(digest, v, r, s)
    if recovered == empty(address):
        raw_revert(method_id("InvalidSignature()"))
    if recovered != signer:
        raw_revert(method_id("InvalidSigner()"))

@internal
def _transfer(
    permit: permit2_types.PermitTransferFrom,
    details: permit2_types.SignatureTransferDetails,
    owner: address,
    struct_hash: bytes32,
    signature: Bytes[4096],
):
    if block.timestamp > permit.deadline:
        raw_revert(abi_encode(permit.deadline, method_id=method_id("SignatureExpired(uint256)")))
    if details.requestedAmount > permit.permitted.amount:
        raw_revert(abi_encode(permit.permitted.amount, method_id=method_id("InvalidAmount(uint256)")))
    word: uint256 = permit.nonce >> 8
    bit: uint256 = 1 << (permit.nonce & 255)
    used: uint256 = self.nonceBitmap[owner][word]
    if used & bit != 0:
        raw_revert(method_id("InvalidNonce()"))
    self.nonceBitmap[owner][word] = used | bit
    self._verify(signature, keccak256(concat(x"1901", self._domain(), struct_hash)), owner)
    moved: bool = extcall ERC20(permit.permitted.token).transferFrom(
        owner, details.to, details.requestedAmount, default_return_value=True
    )
    assert moved, "TRANSFER_FROM_FAILED"

@internal
@pure
def _permitted(permitted: permit2_types.TokenPermissions) -> bytes32:
    return keccak256(abi_encode(TOKEN_PERMISSIONS_TYPEHASH, permitted.token, permitted.amount))

@external
def permitTransferFrom(
    permit: permit2_types.PermitTransferFrom,
    transferDetails: permit2_types.SignatureTransferDetails,
    owner: address,
    signature: Bytes[4096],
):
    struct_hash: bytes32 = keccak256(
        abi_encode(TRANSFER_FROM_TYPEHASH, self._permitted(permit.permitted), msg.sender, permit.nonce, permit.deadline)
    )
    self._transfer(permit, transferDetails, owner, struct_hash, signature)

@external
def permitWitnessTransferFrom(
    permit: permit2_types.PermitTransferFrom,
    transferDetails: permit2_types.SignatureTransferDetails,
    owner: address,
    witness: bytes32,
    witnessTypeString: String[1024],
    signature: Bytes[4096],
):
    typehash: bytes32 = keccak256(concat(WITNESS_STUB, witnessTypeString))
    struct_hash: bytes32 = keccak256(
        abi_encode(typehash, self._permitted(permit.permitted), msg.sender, permit.nonce, permit.deadline, witness)
    )
    self._transfer(permit, transferDetails, owner, struct_hash, signature)
