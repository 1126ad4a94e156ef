# pragma version 0.4.3
"""
@title Multicall3's tryAggregate, which the x402 packages and many wallets read through
@dev 16 calls of 8 KiB, 4 KiB answers: the other forms and larger batches are left out.
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
