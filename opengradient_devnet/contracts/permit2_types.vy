# pragma version 0.4.3
"""
@title The Permit2 structs that the two x402 proxies pass on
"""

struct TokenPermissions:
    token: address
    amount: uint256

struct PermitTransferFrom:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256

struct SignatureTransferDetails:
    to: address
    requestedAmount: uint256

interface ISignatureTransfer:
    def permitWitnessTransferFrom(
        permit: PermitTransferFrom,
        transferDetails: SignatureTransferDetails,
        owner: address,
        witness: bytes32,
        witnessTypeString: String[128],
        signature: Bytes[4096],
    ): nonpayable

# Uniswap deploys Permit2 at this address on every chain.
PERMIT2: constant(address) = 0x000000000022D473030F116dDEE9F6B43aC78BA3
