# pragma version 0.4.3
"""
@title Multicall3's tryAggregate and tryBlockAndAggregate, which the x402 packages and many wallets read through
@dev tryAggregate takes 16 calls of 8 KiB with answers of 4 KiB, tryBlockAndAggregate 512 calls of 128 bytes with
     answers of 64 bytes: the other forms and larger batches are left out.
"""
struct Call:
    target: address
    callData: Bytes[8192]

struct Result:
    success: bool
    returnData: Bytes[4096]

@external
@payable
def tryAggregate(requireSuccess: bool, calls: DynArray[Call, 16]) -> DynArray[Result, 16]:
    results: DynArray[Result, 16] = []
    for c: Call in calls:
        ok: bool = False
        data: Bytes[4096] = b""
        ok, data = raw_call(c.target, c.callData, max_outsize=4096, revert_on_failure=False)
        assert ok or not requireSuccess, "Multicall3: call failed"
        results.append(Result(success=ok, returnData=data))
    return results

struct SmallCall:
    target: address
    callData: Bytes[128]

struct SmallResult:
    success: bool
    returnData: Bytes[64]

@external
@payable
def tryBlockAndAggregate(
    requireSuccess: bool, calls: DynArray[SmallCall, 512]
) -> (uint256, bytes32, DynArray[SmallResult, 512]):
    results: DynArray[SmallResult, 512] = []
    for c: SmallCall in calls:
        ok: bool = False
        data: Bytes[64] = b""
        ok, data = raw_call(c.target, c.callData, max_outsize=64, revert_on_failure=False)
        assert ok or not requireSuccess, "Multicall3: call failed"
        results.append(SmallResult(success=ok, returnData=data))
    # As in the original: the hash of the block under way is not known yet, so this is always zero.
    return block.number, empty(bytes32), results

@external
@view
def getBlockHash(blockNumber: uint256) -> bytes32:
    if blockNumber >= block.number or block.number - blockNumber > 256:
        return empty(bytes32)
    return blockhash(blockNumber)

@external
@view
def getBlockNumber() -> uint256:
    return block.number

@external
@view
def getCurrentBlockTimestamp() -> uint256:
    return block.timestamp
