# pragma version 0.4.3
# pragma optimize gas
"""
@title The devnet's OPG: ERC-20, EIP-2612, EIP-3009 and an open faucet
@dev No constructor and no immutables, so that the runtime code can be put straight into a genesis.
     Vyper reserves `value` and `from` and has no overloading: build.py gives the ABI its usual names, and the
     (v, r, s) form of transferWithAuthorization is dispatched by hand in __default__.
"""
event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    amount: uint256

event Approval:
    owner: indexed(address)
    spender: indexed(address)
    amount: uint256

event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

event AuthorizationCanceled:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

interface ERC1271:
    def isValidSignature(digest: bytes32, signature: Bytes[4096]) -> bytes4: view

NAME: constant(String[16]) = "OpenGradient"
SYMBOL: constant(String[8]) = "OPG"
VERSION: constant(String[4]) = "1"
DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
PERMIT_TYPEHASH: constant(bytes32) = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")
TRANSFER_TYPEHASH: constant(bytes32) = keccak256("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")
RECEIVE_TYPEHASH: constant(bytes32) = keccak256("ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")
CANCEL_TYPEHASH: constant(bytes32) = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)")
TRANSFER_VRS: constant(bytes4) = method_id(
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)", output_type=bytes4
)
EIP1271_MAGIC: constant(bytes4) = 0x1626ba7e
# The upper half of s is refused (EIP-2): one signature would have two encodings otherwise.
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
FAUCET_MAX: constant(uint256) = 1_000_000 * 10 ** 18

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)
nonces: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])

@external
@pure
def name() -> String[16]:
    return NAME

@external
@pure
def symbol() -> String[8]:
    return SYMBOL

@external
@pure
def version() -> String[4]:
    return VERSION

@external
@pure
def decimals() -> uint8:
    return 18

@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256(NAME), keccak256(VERSION), chain.id, self))

@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    return self._domain()

@external
@view
def eip712Domain() -> (bytes1, String[16], String[4], uint256, address, bytes32, DynArray[uint256, 1]):
    return 0x0f, NAME, VERSION, chain.id, self, empty(bytes32), []

@internal
def _move(sender: address, receiver: address, amount: uint256):
    assert receiver != empty(address), "ERC20: transfer to the zero address"
    assert self.balanceOf[sender] >= amount, "ERC20: transfer amount exceeds balance"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, amount=amount)

@external
def transfer(to: address, amount: uint256) -> bool:
    self._move(msg.sender, to, amount)
    return True

@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= amount, "ERC20: insufficient allowance"
        self.allowance[owner][msg.sender] = allowed - amount
    self._move(owner, to, amount)
    return True

@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    log Approval(owner=msg.sender, spender=spender, amount=amount)
    return True

@external
def mint(to: address, amount: uint256):
    assert amount <= FAUCET_MAX, "faucet limit"
    self.totalSupply += amount
    self.balanceOf[to] += amount
    log Transfer(sender=empty(address), receiver=to, amount=amount)

@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    return keccak256(concat(x"1901", self._domain(), struct_hash))

@internal
@view
def _signed_by(who: address, digest: bytes32, v: uint8, r: bytes32, s: bytes32) -> bool:
    if convert(s, uint256) > HALF_N:
        return False
    recovered: address = ecrecover(digest, convert(v, uint256), convert(r, uint256), convert(s, uint256))
    return recovered != empty(address) and recovered == who

@external
def permit(owner: address, spender: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32):
    assert block.timestamp <= deadline, "ERC20Permit: expired deadline"
    nonce: uint256 = self.nonces[owner]
    digest: bytes32 = self._digest(keccak256(abi_encode(PERMIT_TYPEHASH, owner, spender, amount, nonce, deadline)))
    assert self._signed_by(owner, digest, v, r, s), "ERC20Permit: invalid signature"
    self.nonces[owner] = nonce + 1
    self.allowance[owner][spender] = amount
    log Approval(owner=owner, spender=spender, amount=amount)

@internal
def _authorized_move(
    typehash: bytes32,
    sender: address,
    to: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[4096],
):
    assert block.timestamp > valid_after, "authorization is not yet valid"
    assert block.timestamp < valid_before, "authorization is expired"
    assert not self.authorizationState[sender][nonce], "authorization is used or canceled"
    digest: bytes32 = self._digest(keccak256(abi_encode(typehash, sender, to, amount, valid_after, valid_before, nonce)))
    ok: bool = False
    if sender.codesize != 0:
        ok = staticcall ERC1271(sender).isValidSignature(digest, signature) == EIP1271_MAGIC
    elif len(signature) == 65:
        v: uint8 = convert(slice(signature, 64, 1), uint8)
        ok = self._signed_by(sender, digest, v, extract32(signature, 0), extract32(signature, 32))
    assert ok, "invalid signature"
    self.authorizationState[sender][nonce] = True
    log AuthorizationUsed(authorizer=sender, nonce=nonce)
    self._move(sender, to, amount)

@external
def transferWithAuthorization(
    sender: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    signature: Bytes[4096],
):
    self._authorized_move(TRANSFER_TYPEHASH, sender, to, amount, validAfter, validBefore, nonce, signature)

@external
def receiveWithAuthorization(
    sender: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    assert to == msg.sender, "caller must be the payee"
    self._authorized_move(
        RECEIVE_TYPEHASH, sender, to, amount, validAfter, validBefore, nonce, concat(r, s, convert(v, bytes1))
    )

@external
def cancelAuthorization(authorizer: address, nonce: bytes32, v: uint8, r: bytes32, s: bytes32):
    assert not self.authorizationState[authorizer][nonce], "authorization is used or canceled"
    digest: bytes32 = self._digest(keccak256(abi_encode(CANCEL_TYPEHASH, authorizer, nonce)))
    assert self._signed_by(authorizer, digest, v, r, s), "invalid signature"
    self.authorizationState[authorizer][nonce] = True
    log AuthorizationCanceled(authorizer=authorizer, nonce=nonce)

@external
def __default__():
    assert len(msg.data) >= 292 and convert(slice(msg.data, 0, 4), bytes4) == TRANSFER_VRS, "unknown function"
    sender: address = empty(address)
    to: address = empty(address)
    amount: uint256 = 0
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    nonce: bytes32 = empty(bytes32)
    v: uint8 = 0
    r: bytes32 = empty(bytes32)
    s: bytes32 = empty(bytes32)
    sender, to, amount, valid_after, valid_before, nonce, v, r, s = abi_decode(
        slice(msg.data, 4, 288), (address, address, uint256, uint256, uint256, bytes32, uint8, bytes32, bytes32)
    )
    self._authorized_move(
        TRANSFER_TYPEHASH, sender, to, amount, valid_after, valid_before, nonce, concat(r, s, convert(v, bytes1))
    )
