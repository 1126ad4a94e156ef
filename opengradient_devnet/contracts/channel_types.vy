# pragma version 0.4.3
"""
@title What a channel is, for the contract that keeps channels and for those that collect deposits
"""

struct ChannelConfig:
    payer: address
    payerAuthorizer: address
    receiver: address
    receiverAuthorizer: address
    token: address
    withdrawDelay: uint40
    salt: bytes32

interface IDepositCollector:
    def collect(payer: address, token: address, amount: uint256, channelId: bytes32, data: Bytes[4096]): nonpayable

interface ERC20:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def balanceOf(owner: address) -> uint256: view

# x402 deploys it at this address on every chain.
BATCH_SETTLEMENT: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003
