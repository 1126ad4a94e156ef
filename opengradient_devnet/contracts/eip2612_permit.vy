# pragma version 0.4.3
"""
@title Approving Permit2 by an EIP-2612 signature, tolerant of failure
@notice A permit that fails must not stop the payment: an allowance may be there already, and anybody may
        have sent the same permit first. The failure is logged and the transfer decides.
"""
import permit2_types

struct EIP2612Permit:
    value: uint256
    deadline: uint256
    r: bytes32
    s: bytes32
    v: uint8

event EIP2612PermitFailedWithReason:
    token: indexed(address)
    owner: indexed(address)
    reason: String[256]

event EIP2612PermitFailedWithPanic:
    token: indexed(address)
    owner: indexed(address)
    errorCode: uint256

event EIP2612PermitFailedWithData:
    token: indexed(address)
    owner: indexed(address)
    data: Bytes[256]

ERROR_STRING: constant(bytes4) = 0x08c379a0  # Error(string)
PANIC: constant(bytes4) = 0x4e487b71  # Panic(uint256)

@internal
def _approve_permit2(token: address, owner: address, permit: EIP2612Permit, permitted: uint256):
    if permit.value != permitted:
        raw_revert(method_id("Permit2612AmountMismatch()"))
    call_data: Bytes[228] = abi_encode(
        owner, permit2_types.PERMIT2, permit.value, permit.deadline, permit.v, permit.r, permit.s,
        method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
    )
    ok: bool = False
    data: Bytes[256] = b""
    ok, data = raw_call(token, call_data, max_outsize=256, revert_on_failure=False)
    if not ok:
        self._log_failure(token, owner, data)

@internal
def _log_failure(token: address, owner: address, data: Bytes[256]):
    if len(data) >= 36:
        selector: bytes4 = convert(slice(data, 0, 4), bytes4)
        if selector == PANIC:
            log EIP2612PermitFailedWithPanic(token=token, owner=owner, errorCode=extract32(data, 4, output_type=uint256))
            return
        if selector == ERROR_STRING and len(data) >= 68:
            size: uint256 = extract32(data, 36, output_type=uint256)
            if size <= len(data) - 68:
                reason: Bytes[256] = slice(data, 68, size)
                log EIP2612PermitFailedWithReason(token=token, owner=owner, reason=convert(reason, String[256]))
                return
    log EIP2612PermitFailedWithData(token=token, owner=owner, data=data)
