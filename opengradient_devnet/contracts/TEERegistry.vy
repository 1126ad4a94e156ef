# pragma version 0.4.3
"""
@title TEE registry: which enclaves there are, how to reach them and whom to pay
@notice The read functions have the ABI of the live registry. Registration takes no attestation document:
        the devnet's enclave is a process on your own machine and can prove nothing.
@dev The live registry drops an enclave without a recent heartbeat; here enabled is active, so that a
     laptop may sleep.
"""
struct OHTTPConfig:
    keyId: uint8
    kemId: uint16
    kdfId: uint16
    aeadId: uint16
    publicKey: Bytes[64]
    keyConfig: Bytes[256]
    registeredAt: uint256

struct TEEInfo:
    owner: address
    paymentAddress: address
    endpoint: String[256]
    publicKey: Bytes[1024]
    tlsCertificate: Bytes[2048]
    pcrHash: bytes32
    teeType: uint8
    enabled: bool
    registeredAt: uint256
    lastHeartbeatAt: uint256
    ohttpConfig: OHTTPConfig

event TEERegistered:
    teeId: indexed(bytes32)
    owner: indexed(address)
    teeType: uint8

event HeartbeatReceived:
    teeId: indexed(bytes32)
    timestamp: uint256

MAX_TEES: constant(uint256) = 16

tees: HashMap[bytes32, TEEInfo]
ids: DynArray[bytes32, MAX_TEES]

@external
def registerTEE(
    paymentAddress: address,
    endpoint: String[256],
    publicKey: Bytes[1024],
    tlsCertificate: Bytes[2048],
    pcrHash: bytes32,
    teeType: uint8,
    ohttpConfig: OHTTPConfig,
) -> bytes32:
    teeId: bytes32 = keccak256(publicKey)
    owner: address = self.tees[teeId].owner
    if owner == empty(address):
        self.ids.append(teeId)
    else:
        assert owner == msg.sender, "not the owner"
    config: OHTTPConfig = ohttpConfig
    config.registeredAt = block.timestamp
    self.tees[teeId] = TEEInfo(
        owner=msg.sender,
        paymentAddress=paymentAddress,
        endpoint=endpoint,
        publicKey=publicKey,
        tlsCertificate=tlsCertificate,
        pcrHash=pcrHash,
        teeType=teeType,
        enabled=True,
        registeredAt=block.timestamp,
        lastHeartbeatAt=block.timestamp,
        ohttpConfig=config,
    )
    log TEERegistered(teeId=teeId, owner=msg.sender, teeType=teeType)
    return teeId

@external
def setEnabled(teeId: bytes32, enabled: bool):
    assert self.tees[teeId].owner == msg.sender, "not the owner"
    self.tees[teeId].enabled = enabled

@external
def heartbeat(teeId: bytes32):
    assert self.tees[teeId].owner == msg.sender, "not the owner"
    self.tees[teeId].lastHeartbeatAt = block.timestamp
    log HeartbeatReceived(teeId=teeId, timestamp=block.timestamp)

@external
@view
def getTEE(teeId: bytes32) -> TEEInfo:
    assert self.tees[teeId].owner != empty(address), "unknown TEE"
    return self.tees[teeId]

@external
@view
def isTEEEnabled(teeId: bytes32) -> bool:
    return self.tees[teeId].enabled

@external
@view
def isTEEActive(teeId: bytes32) -> bool:
    return self.tees[teeId].enabled

@external
@view
def getTEEsByType(teeType: uint8) -> DynArray[bytes32, MAX_TEES]:
    found: DynArray[bytes32, MAX_TEES] = []
    for teeId: bytes32 in self.ids:
        if self.tees[teeId].teeType == teeType:
            found.append(teeId)
    return found

@external
@view
def getEnabledTEEs(teeType: uint8) -> DynArray[bytes32, MAX_TEES]:
    found: DynArray[bytes32, MAX_TEES] = []
    for teeId: bytes32 in self.ids:
        if self.tees[teeId].teeType == teeType and self.tees[teeId].enabled:
            found.append(teeId)
    return found

@external
@view
def getActiveTEEs(teeType: uint8) -> DynArray[TEEInfo, MAX_TEES]:
    found: DynArray[TEEInfo, MAX_TEES] = []
    for teeId: bytes32 in self.ids:
        if self.tees[teeId].enabled and self.tees[teeId].teeType == teeType:
            found.append(self.tees[teeId])
    return found
