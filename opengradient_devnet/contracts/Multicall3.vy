# pragma version 0.4.3
"""
@title Multicall3, as far as it is read through: tryAggregate, tryBlockAndAggregate, aggregate3, and what a block is
@dev tryAggregate takes 16 calls of 8 KiB and gives 4 KiB answers; the other two take 64 small calls, which is
enough for nonces and balances. The forms that send money are left out.
"""
struct Call:
    target: address
    callData: Bytes[8192]

struct Result:
    success: bool
    returnData: Bytes[4096]

struct SmallCall:
    target: address
    callData: Bytes[1024]

struct SmallCall3:
    target: address
    allowFailure: bool
    callData: Bytes[1024]

struct SmallResult:
    success: bool
    returnData: Bytes[512]

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

@external
@payable
def tryBlockAndAggregate(
    requireSuccess: bool, calls: DynArray[SmallCall, 64]
) -> (uint256, bytes32, DynArray[SmallResult, 64]):
    results: DynArray[SmallResult, 64] = []
    for c: SmallCall in calls:
        ok: bool = False
        data: Bytes[512] = b""
        ok, data = raw_call(c.target, c.callData, max_outsize=512, revert_on_failure=False)
        assert ok or not requireSuccess, "Multicall3: call failed"
        results.append(SmallResult(success=ok, returnData=data))
    return block.number, empty(bytes32), results

@external
@payable
def aggregate3(calls: DynArray[SmallCall3, 64]) -> DynArray[SmallResult, 64]:
    results: DynArray[SmallResult, 64] = []
    for c: SmallCall3 in calls:
        ok: bool = False
        data: Bytes[512] = b""
        ok, data = raw_call(c.target, c.callData, max_outsize=512, revert_on_failure=False)
        assert ok or c.allowFailure, "Multicall3: call failed"
        results.append(SmallResult(success=ok, returnData=data))
    return results

@external
@view
def getBlockNumber() -> uint256:
    return block.number

@external
@view
def getCurrentBlockTimestamp() -> uint256:
    return block.timestamp

@external
@view
def getEthBalance(account: address) -> uint256:
    return account.balance
