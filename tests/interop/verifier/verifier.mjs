// Verifies audit bundles, written from docs/bundle-format.md alone: no line is shared with the Python verifier.
//
// node verifier.mjs SCHEMA < tasks: one JSON task on each line, one JSON list of [class, statement, about] for each.
// A task is {"file": base64, "network": the reader's description or null, "rpc": a node's URL or null,
// "earlier": an earlier bundle in base64, or null}. Without "rpc" the records of the file answer.
import { createHash, createPublicKey, verify as verifySignature, constants, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { keccak_256 } from "@noble/hashes/sha3.js";
import Ajv from "ajv/dist/2020.js";

const validate = new Ajv({ strict: false }).compile(JSON.parse(readFileSync(process.argv[2], "utf8")));

// -- bytes and words

const hex = (bytes) => "0x" + Buffer.from(bytes).toString("hex");
const raw = (text) => Buffer.from(text.slice(2), "hex");
const utf8 = (text) => Buffer.from(text, "utf8");
const join = (...parts) => Buffer.concat(parts.map((part) => Buffer.from(part)));
const sha256 = (...parts) => createHash("sha256").update(join(...parts)).digest();
const keccak = (...parts) => Buffer.from(keccak_256(join(...parts)));
const word = (value) => raw("0x" + BigInt(value).toString(16).padStart(64, "0"));
const addressWord = (address) => join(Buffer.alloc(12), raw(address));
const topicOf = (address) => hex(addressWord(address));
const number = (bytes) => BigInt(hex(bytes.length ? bytes : [0]));
const isHex = (text, digits) => typeof text === "string" && new RegExp(`^0x[0-9a-fA-F]{${digits}}$`).test(text);

class Unreadable extends Error {}
class Missing extends Error {}

function canonical(value) {
  if (typeof value === "string") {
    if (!value.isWellFormed()) throw new Unreadable("half a character");
    return JSON.stringify(value);
  }
  if (typeof value === "number") {
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) throw new Unreadable("a number over 53 bits");
    return JSON.stringify(value);
  }
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${canonical(name)}:${canonical(value[name])}`).join(",")}}`;
}

function checksummed(address) {
  const digits = address.slice(2).toLowerCase();
  const hash = keccak(utf8(digits)).toString("hex");
  return "0x" + [...digits].map((digit, i) => (hash[i] >= "8" ? digit.toUpperCase() : digit)).join("");
}

function isAddress(address) {
  const digits = address.slice(2);
  return [digits.toLowerCase(), digits.toUpperCase(), checksummed(address).slice(2)].includes(digits);
}

// -- the file

function isTooDeep(content) {
  let depth = 0;
  for (const [token] of content.toString("latin1").matchAll(/"(?:[^"\\]|\\.)*"|[[{]|[\]}]/gs)) {
    if (token === "[" || token === "{") depth += 1;
    else if (token === "]" || token === "}") depth -= 1;
    if (depth > 500) return true;
  }
  return false;
}

// Made to fill the memory: many values in few bytes
function isTooFull(content) {
  const count = (...signs) => content.reduce((sum, byte) => sum + (signs.includes(byte) ? 1 : 0), 0);
  const [containers, commas] = [count(0x5b, 0x7b), count(0x2c)];
  return containers > 100_000 + content.length / 32 || commas > 1_000_000 + content.length / 8;
}

function read(content) {
  let file;
  if (isTooFull(content)) throw new Unreadable("too many values");
  if (isTooDeep(content)) throw new Unreadable("more than 500 deep");
  try {
    file = JSON.parse(content.toString("utf8"));
  } catch (error) {
    throw new Unreadable(String(error));
  }
  if (!Buffer.from(canonical(file) + "\n", "utf8").equals(content)) throw new Unreadable("not canonical");
  if (!validate(file)) throw new Unreadable(JSON.stringify(validate.errors?.[0]));
  const { digest, signature, ...rest } = file;
  if (hex(sha256(utf8(canonical(rest)))) !== digest) throw new Unreadable("another digest");
  file.of = (kind) => file.records.filter((record) => record.kind === kind).map((record) => record.body);
  checkValues(file);
  checkTogether(file);
  return file;
}

const IS_BASE64 = /^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;
const IN_HISTORY = ["authorization", "receipt", "decision"];
const ADDRESSES = ["payer_authorizer", "receiver", "receiver_authorizer", "payer", "payee", "asset", "facilitator", "spender", "address", "permit2", "upto_proxy", "exact_proxy"];

function checkValues(file) {
  const visit = (name, value) => {
    if (value === null) throw new Unreadable("null");
    if (typeof value === "object") return Object.entries(value).forEach(([inner, one]) => visit(inner, one));
    if (ADDRESSES.includes(name) && !isAddress(value)) throw new Unreadable(`the checksum of ${value}`);
    if ((name.endsWith("_atomic") || name === "nonce" || name === "salt") && BigInt(value) >= 2n ** 256n) throw new Unreadable(value);
    if (name.endsWith("_base64") && !IS_BASE64.test(value)) throw new Unreadable("base64");
  };
  const { records, ...header } = file;
  visit("", JSON.parse(JSON.stringify(header)));
  records.filter((record) => record.kind !== "rpc").forEach((record) => visit("", record.body));
}

function checkTogether(file) {
  const once = (what, names) => {
    if (new Set(names).size !== names.length) throw new Unreadable(`a ${what} twice`);
  };
  const ids = file.of("authorization").map((body) => body.id);
  const receipts = file.of("receipt");
  const calls = receipts.map((body) => body.call_id);
  const data = file.of("data_settlement").map((body) => body.call_id);
  once("authorization", ids);
  once("receipt", calls);
  once("data settlement", data);
  once("answer", file.of("rpc").map((body) => canonical([body.chain_id, body.method, body.params])));
  once("blob", file.of("blob").map((body) => body.blob_id));
  once("attestation", file.of("attestation").map((body) => body.tee_id));
  once("source", file.of("source").map((body) => body.chain_id));
  const paid = new Set(receipts.map((body) => body.authorization_id));
  if (paid.size !== ids.length || ids.some((id) => !paid.has(id))) throw new Unreadable("receipts and authorizations");
  if (data.some((id) => !calls.includes(id))) throw new Unreadable("a data settlement of nobody");
  once("earlier head", (file.history?.consistency ?? []).map((one) => one.size));
  once("anchor", (file.history?.anchors ?? []).map((one) => `${one.size}:${one.root}`));
  const decided = file.of("decision").map((body) => body.call_id);
  once("decision", decided);
  const channels = file.of("channel");
  once("channel", channels.map((body) => body.id));
  if (channels.some((body) => ids.includes(body.id))) throw new Unreadable("an authorization's id is a channel's");
  once("event", channels.flatMap((body) => body.events.map((place) => `${place.tx_hash} ${place.log_index}`)));
  const used = new Set();
  for (const entry of file.of("authorization")) {
    const isVoucher = Boolean(entry.voucher);
    if (entry.signed.some((terms) => (terms.scheme === BY_CHANNEL) !== isVoucher)) throw new Unreadable("a voucher or a channel alone");
    if (isVoucher) used.add(hex(word(entry.nonce)));
  }
  if (used.size !== channels.length || channels.some((body) => !used.has(body.id))) throw new Unreadable("channels and calls");
  if (file.period && file.period.from_block > file.period.to_block) throw new Unreadable("an empty period");
  if (file.history && file.history.places.length !== ids.length + calls.length + decided.length) throw new Unreadable("places");
}

// -- signatures

function recovered(digest, signature) {
  if (signature.length !== 65 || ![27, 28].includes(signature[64])) return null;
  if (number(signature.subarray(32, 64)) > secp256k1.Point.Fn.ORDER / 2n) return null;
  try {
    const made = secp256k1.Signature.fromBytes(signature.subarray(0, 64), "compact").addRecoveryBit(signature[64] - 27);
    const point = made.recoverPublicKey(digest).toBytes(false).subarray(1);
    return checksummed(hex(keccak(point).subarray(12)));
  } catch {
    return null;
  }
}

function personal(text) {
  return keccak(utf8(`\x19Ethereum Signed Message:\n${utf8(text).length}${text}`));
}

const typed = (text) => keccak(utf8(text));
const PERMITTED = "TokenPermissions(address token,uint256 amount)";

// -- payment channels

const BY_CHANNEL = "batch-settlement";
const CHANNELS = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003";
const COLLECTORS = [CHANNELS, "0x4020806089470a89826cB9fB1f4059150b550004", "0x4020425FAf3B746C082C2f942b4E5159887B0005"];

function channelDigest(network, type, ...words) {
  const domain = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
  const names = ["x402 Batch Settlement", "1"].map((name) => keccak(utf8(name)));
  const separator = keccak(typed(domain), ...names, word(network.chain_id), addressWord(CHANNELS));
  return keccak([0x19, 0x01], separator, keccak(typed(type), ...words));
}

function parameters(channel) {
  const parties = [channel.payer, channel.payer_authorizer, channel.receiver, channel.receiver_authorizer, channel.asset];
  return join(...parties.map(addressWord), word(channel.withdraw_delay_s), word(channel.salt));
}

function isNamed(channel, network) {
  const type =
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)";
  return hex(channelDigest(network, type, parameters(channel))) === channel.id;
}

const voucherDigest = (network, id, most) =>
  channelDigest(network, "Voucher(bytes32 channelId,uint128 maxClaimableAmount)", raw(id), word(most));

function paymentDigest(terms, entry, network) {
  const chain = word(network.chain_id);
  let domain, struct;
  if (terms.transfer_method === "eip3009") {
    const type = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
    const names = [network.asset.name, network.asset.version].map((name) => keccak(utf8(name)));
    domain = keccak(typed(type), ...names, chain, addressWord(terms.asset));
    struct = keccak(
      typed("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"),
      ...[addressWord(entry.payer), addressWord(terms.payee), word(terms.amount_atomic), word(0), word(terms.deadline), word(entry.nonce)],
    );
  } else {
    const upto = terms.scheme === "upto";
    const witnessType = `Witness(address to,${upto ? "address facilitator," : ""}uint256 validAfter)`;
    const type =
      "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)" + PERMITTED;
    const facilitator = upto ? [addressWord(terms.facilitator)] : [];
    const witness = keccak(typed(witnessType), addressWord(terms.payee), ...facilitator, word(0));
    const permitted = keccak(typed(PERMITTED), addressWord(terms.asset), word(terms.amount_atomic));
    domain = keccak(typed("EIP712Domain(string name,uint256 chainId,address verifyingContract)"), keccak(utf8("Permit2")), chain, addressWord(network.permit2));
    struct = keccak(typed(type + witnessType), permitted, addressWord(terms.spender), word(entry.nonce), word(terms.deadline), witness);
  }
  return keccak([0x19, 0x01], domain, struct);
}

// -- the tree of RFC 9162

function sides(place, last) {
  const found = [];
  while (last > 0) {
    const left = place % 2 === 1 || place === last;
    found.push(left);
    while (left && place > 0 && place % 2 === 0) [place, last] = [Math.floor(place / 2), Math.floor(last / 2)];
    [place, last] = [Math.floor(place / 2), Math.floor(last / 2)];
  }
  return found;
}

const node = (left, right) => sha256([1], left, right);
const leafOf = (record) => sha256([0], utf8(canonical({ body: record.body, kind: record.kind })));

function isIncluded(leaf, { index, proof }, head) {
  if (index >= head.size) return false;
  const way = sides(index, head.size - 1);
  if (way.length !== proof.length) return false;
  const top = way.reduce((below, left, i) => (left ? node(raw(proof[i]), below) : node(below, raw(proof[i]))), leaf);
  return hex(top) === head.root;
}

const EMPTY_ROOT = hex(sha256());

function isContinued(earlier, proof, head) {
  if (earlier.size === 0) return proof.length === 0 && earlier.root === EMPTY_ROOT;
  if (earlier.size === head.size) return proof.length === 0 && earlier.root === head.root;
  let [place, last] = [earlier.size - 1, head.size - 1];
  while (place % 2 === 1) [place, last] = [Math.floor(place / 2), Math.floor(last / 2)];
  const nodes = (place > 0 ? proof : [earlier.root, ...proof]).map(raw);
  const way = sides(place, last);
  if (nodes.length !== way.length + 1) return false;
  let [before, now] = [nodes[0], nodes[0]];
  way.forEach((left, i) => {
    if (left) before = node(nodes[i + 1], before);
    now = left ? node(nodes[i + 1], now) : node(now, nodes[i + 1]);
  });
  return hex(before) === earlier.root && hex(now) === head.root;
}

// -- answers of chains

class Sources {
  constructor(file, rpc) {
    this.rpc = rpc;
    this.answers = new Map(file.of("rpc").map((one) => [canonical([one.chain_id, one.method, one.params]), one.result]));
    this.blobs = new Map(file.of("blob").map((one) => [one.blob_id, Buffer.from(one.content_base64, "base64")]));
    this.known = new Set(file.of("source").map((one) => one.chain_id));
  }

  source(chain) {
    if (!this.rpc && !this.known.has(chain)) throw new Missing("no source");
  }

  async ask(chain, method, params) {
    if (this.rpc) {
      const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
      const answer = await (await fetch(this.rpc, { method: "POST", headers: { "content-type": "application/json" }, body })).json();
      if (!("result" in answer)) throw new Missing(JSON.stringify(answer.error));
      return answer.result;
    }
    const key = canonical([chain, method, params]);
    if (!this.answers.has(key)) throw new Missing(method);
    return this.answers.get(key);
  }

  async blob(id, store) {
    if (this.rpc && store) {
      const answer = await fetch(`${store.replace(/\/$/, "")}/${encodeURIComponent(id)}`);
      if (answer.ok) return Buffer.from(await answer.arrayBuffer());
    }
    return this.rpc ? null : (this.blobs.get(id) ?? null);
  }
}

function must(condition) {
  if (!condition) throw new Missing("an answer that is not what it should be");
}

const quantity = (text) => (must(typeof text === "string" && /^0x[0-9a-fA-F]{1,64}$/.test(text)), BigInt(text));
const small = (text) => (must(quantity(text) >> 63n === 0n), BigInt(text));
const hash = (text) => (must(isHex(text, 64)), text.toLowerCase());
const data = (text) => (must(typeof text === "string" && /^0x([0-9a-fA-F]{2})*$/.test(text)), raw(text));
const object = (value) => (must(value !== null && typeof value === "object" && !Array.isArray(value)), value);

function logOf(entry) {
  object(entry);
  must(Array.isArray(entry.topics) && entry.topics.length <= 4 && isHex(entry.address, 40) && isAddress(entry.address));
  return {
    address: checksummed(entry.address),
    topics: entry.topics.map(hash),
    data: data(entry.data),
    block_number: small(entry.blockNumber),
    block_hash: hash(entry.blockHash),
    tx_hash: hash(entry.transactionHash),
    log_index: small(entry.logIndex),
  };
}

async function receiptOf(sources, chain, txHash) {
  const found = await sources.ask(chain, "eth_getTransactionReceipt", [txHash]);
  if (found === null) return null;
  object(found);
  must(Array.isArray(found.logs));
  const [number, block] = [small(found.blockNumber), hash(found.blockHash)];
  const done = { number, hash: block, tx_hash: hash(found.transactionHash), ok: quantity(found.status) === 1n, logs: found.logs.map(logOf) };
  must(done.tx_hash === txHash.toLowerCase());
  for (const log of done.logs) must(log.tx_hash === done.tx_hash && log.block_number === number && log.block_hash === block);
  return done;
}

async function transactionOf(sources, chain, txHash) {
  const found = await sources.ask(chain, "eth_getTransactionByHash", [txHash]);
  if (found === null) return null;
  must(hash(object(found).hash) === txHash.toLowerCase());
  return { tx_hash: hash(found.hash), input: data(found.input) };
}

// Events are those that were asked for, or the answer is none.
async function logsOf(sources, chain, query) {
  const found = await sources.ask(chain, "eth_getLogs", [query]);
  must(Array.isArray(found));
  return found.map(logOf).map((log) => {
    must(log.address === checksummed(query.address));
    query.topics.forEach((wanted, at) => {
      const allowed = typeof wanted === "string" ? [wanted] : wanted;
      must(allowed === null || allowed.some((one) => one.toLowerCase() === log.topics[at]));
    });
    must(log.block_number >= BigInt(query.fromBlock) && log.block_number <= BigInt(query.toBlock));
    return log;
  });
}

async function blockOf(sources, chain, tag) {
  const found = object(await sources.ask(chain, "eth_getBlockByNumber", [tag, false]));
  const block = { number: small(found.number), hash: hash(found.hash), time: small(found.timestamp) };
  must(tag === "latest" || block.number === BigInt(tag));
  return block;
}

// -- events (keccak256 of their signatures)

const event = (signature) => hex(typed(signature));
const TRANSFER = event("Transfer(address,address,uint256)");
const SETTLED = [event("Settled()"), event("SettledWithPermit()")];
const INVALIDATED = event("UnorderedNonceInvalidation(address,uint256,uint256)");
const USED = event("AuthorizationUsed(address,bytes32)");
const CANCELLED = event("AuthorizationCanceled(address,bytes32)");
const BATCH = event("BatchSettlement(bytes32,uint256,bytes)");
const INDIVIDUAL = event("IndividualSettlement(bytes32,address,bytes32,bytes32,uint256,bytes,bytes)");
const MOVES = {
  [event("Deposited(bytes32,address,uint128,uint128)")]: ["deposit", 64],
  [event("Claimed(bytes32,address,uint128,uint128)")]: ["claim", 64],
  [event("Refunded(bytes32,address,uint128)")]: ["return", 32],
  [event("WithdrawFinalized(bytes32,address,uint128)")]: ["return", 32],
};
const CLAIMED = event("Claimed(bytes32,address,uint128,uint128)");
const MULTICALL = "0xcA11bde05977b3631167028862bE2a173976CA11";

function moveOf(log) {
  const [kind, size] = MOVES[log.topics[0]] ?? [null, -1];
  if (log.address !== CHANNELS || log.topics.length !== 3 || log.data.length !== size) return null;
  const total = size === 64 ? number(log.data.subarray(32)) : 0n;
  return { kind, channel: log.topics[1], amount: number(log.data.subarray(0, 32)), total, log };
}

const place = (log) => `${log.tx_hash} ${log.log_index}`;
const sumOf = (moves, kind) => moves.filter((move) => move.kind === kind).reduce((sum, move) => sum + move.amount, 0n);

const inOrder = (logs) => [...logs].sort((one, other) => Number(one.log_index - other.log_index));
const isTransfer = (log) => log.topics[0] === TRANSFER && log.topics.length === 3 && log.data.length === 32;

function settledTransfers(done, spenders) {
  const found = [];
  let pending = [];
  for (const log of inOrder(done.logs)) {
    if (isTransfer(log)) pending.push(log);
    else if (spenders.includes(log.address) && log.topics.length === 1 && SETTLED.includes(log.topics[0])) {
      found.push(...pending);
      pending = [];
    }
  }
  return found;
}

function nonceAt(input, entry) {
  const nonce = word(entry.nonce);
  for (const terms of entry.signed) {
    const permitted = join(addressWord(terms.asset), word(terms.amount_atomic));
    const start = input.indexOf(join(permitted, nonce, word(terms.deadline)));
    if (start >= 0) return start + permitted.length;
  }
  return BigInt(entry.nonce) > 2n ** 128n ? input.indexOf(nonce) : -1;
}

function amountsAt(input, at) {
  return [at - 32, at + 64].filter((start) => start >= 0).map((start) => number(input.subarray(start, start + 32)));
}

const isOf = (entry) => (log) =>
  log.address === checksummed(entry.signed[0].asset) &&
  log.topics.length === 3 && log.topics[0] === TRANSFER && log.data.length === 32 &&
  log.topics[1] === topicOf(entry.payer) &&
  entry.signed.some((terms) => topicOf(terms.payee) === log.topics[2]);

// -- the verifier

class Verifier {
  constructor(file, reader, rpc) {
    this.file = file;
    this.network = reader ?? file.network;
    this.reader = reader;
    this.sources = new Sources(file, rpc);
    this.isRead = Boolean(reader && rpc);
    this.said = [];
    this.claims = new Map();
    this.paid = new Map();
    this.unexplained = new Set();
    this.channels = new Map(file.of("channel").map((channel) => [channel.id, channel]));
    this.entries = file.of("authorization");
    this.receipts = file.of("receipt");
  }

  say(kind, statement, about = "bundle") {
    this.said.push([kind, statement, about]);
  }

  // What rests on a chain counts for a reader who asked it, through contracts of their own.
  sayRead(statement, about, kind = "read") {
    this.say(this.isRead ? kind : "undecided", statement, about);
  }

  async findings(earlier) {
    const payers = [...new Set(this.entries.map((entry) => checksummed(entry.payer)))].sort();
    const maker = this.maker(payers);
    this.contracts();
    this.history(maker, earlier);
    this.once();
    for (const entry of this.entries) {
      const calls = this.receipts.filter((call) => call.authorization_id === entry.id);
      await this.payment(entry, calls);
      await this.parties(entry, calls);
      this.shares(entry, calls);
      for (const call of calls) this.dispute(entry, call, calls);
      for (const call of calls) await this.call(call);
    }
    for (const one of this.file.of("decision")) {
      this.say(one.decided_at < one.asked_at ? "refuted" : "stated", "a person decided about this payment", one.call_id);
    }
    for (const channel of this.channels.values()) await this.channel(channel);
    for (const anchor of this.file.history?.anchors ?? []) await this.anchor(anchor);
    for (const payer of payers) await this.complete(payer);
    return this.said;
  }

  maker(payers) {
    const { signature, digest } = this.file;
    const statement = "the payer made this file";
    if (!signature) return this.say("undecided", statement);
    const signer = recovered(personal(`OpenGradient audit bundle ${digest}`), raw(signature.value));
    if (!signer || signer !== signature.address || !payers.includes(signer)) return this.say("refuted", statement);
    if (payers.length > 1) return this.say("undecided", statement);
    this.say("proven", statement);
    return signer;
  }

  contracts() {
    const statement = "the contracts are those of the network";
    if (!this.reader) return this.say("stated", statement);
    const [ours, theirs] = [this.reader, this.file.network];
    const differs = (name) => canonical(ours[name] ?? null) !== canonical(theirs[name] ?? null);
    const optional = ["registry", "relay"];
    const both = optional.filter((name) => ours[name] && theirs[name]);
    if (["asset", "permit2", "upto_proxy", "exact_proxy", ...both].some(differs)) return this.say("refuted", statement);
    this.say(optional.some((name) => !ours[name] !== !theirs[name]) ? "undecided" : "read", statement);
  }

  history(maker, earlier) {
    const { history } = this.file;
    const [statement, continued] = ["the records are in the ledger's history", "the history continues the earlier one"];
    const records = this.file.records.filter((record) => IN_HISTORY.includes(record.kind));
    const good = maker ? "proven" : "stated";
    if (!history) {
      this.say("undecided", statement);
      return earlier && this.say("refuted", continued);
    }
    const indices = new Set(history.places.map((place) => place.index));
    const fits = records.every((record, i) => isIncluded(leafOf(record), history.places[i], history));
    const isTree = history.size > 0 || history.root === EMPTY_ROOT;
    this.say(fits && isTree && indices.size === records.length ? good : "refuted", statement);
    if (!earlier) return;
    const before = earlier.history;
    if (history.size < before.size) return this.say("refuted", continued);
    const found = [0, history.size].includes(before.size) ? { proof: [] } : history.consistency.find((one) => one.size === before.size);
    if (!found) return this.say("undecided", continued);
    const holds = isContinued(before, found.proof, history) && !this.changed(earlier, records);
    this.say(holds ? good : "refuted", continued);
  }

  async anchor({ size, root, tx_hash }) {
    const { history } = this.file;
    const [statement, about] = ["the history's records were there at the time of the anchor", `${size}:${root}`];
    const found = size === history.size ? { proof: [] } : history.consistency.find((one) => one.size === size);
    if (!found || !isContinued({ size, root }, found.proof, history)) return this.say("refuted", statement, about);
    const chain = this.network.chain_id;
    try {
      this.sources.source(chain);
      const mined = await transactionOf(this.sources, chain, tx_hash);
      const done = await receiptOf(this.sources, chain, tx_hash);
      const isIt = mined?.tx_hash === tx_hash && done?.tx_hash === tx_hash && done.ok;
      if (!isIt || !mined.input.equals(utf8(`OpenGradient history ${about}`))) return this.say("refuted", statement, about);
      const head = await blockOf(this.sources, chain, "latest");
      const there = await blockOf(this.sources, chain, "0x" + done.number.toString(16));
      if (there.hash !== done.hash) return this.say("refuted", statement, about);
      if (head.number - there.number + 1n < BigInt(this.network.confirmations ?? 3)) return this.say("undecided", statement, about);
      this.sayRead(statement, about);
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      this.say("undecided", statement, about);
    }
  }

  changed(earlier, records) {
    const name = ({ kind, body }) => `${kind} ${body.id ?? body.call_id}`;
    const now = new Map(records.map((record) => [name(record), record.body]));
    const first = Math.min(...this.receipts.map((call) => call.created_at));
    return earlier.records.some((record) => {
      const { kind, body } = record;
      if (!IN_HISTORY.includes(kind)) return false;
      const after = now.get(name(record));
      if (!after) return kind === "receipt" && this.receipts.length > 0 && body.created_at >= first;
      let fixed = ["network", "payer", "nonce", "call_id"];
      if (kind === "decision") fixed = ["decision", "asked_at", "decided_at", "payee", "payer", "network", "amount_atomic", "model"];
      if (kind === "receipt") {
        fixed = ["network", "payer", "nonce", "authorization_id", "created_at", "asset"];
        if (body.outcome !== "unknown") {
          fixed.push("model", "endpoint", "settlement_mode", "outcome", "prompt_tokens", "completion_tokens");
          fixed.push("tee_id", "tee_request_hash", "tee_output_hash", "tee_signature", "tee_timestamp");
        }
      }
      return fixed.some((field) => body[field] !== after[field]);
    });
  }

  once() {
    const seen = new Set();
    let twice = false;
    const claim = (key) => {
      twice ||= seen.has(key);
      seen.add(key);
    };
    for (const entry of this.entries) {
      const cost = BigInt(entry.settled_atomic ?? 0) || BigInt(entry.voucher?.charged_atomic ?? 0);
      const { base_atomic: base, max_atomic: most } = entry.voucher ?? {};
      if (entry.voucher) claim(["voucher", entry.nonce, base, most, cost ? "" : entry.id].join());
      else claim(["nonce", entry.payer.toLowerCase(), entry.signed[0].asset.toLowerCase(), entry.signed[0].transfer_method, entry.nonce].join());
    }
    for (const call of this.receipts) {
      const proof = this.proof(call);
      if (proof) claim(hex(proof.signature));
    }
    this.say(twice ? "refuted" : "stated", "no payment and no proof is claimed twice");
  }

  // null: none; undefined: one that cannot be read
  proof(call) {
    if (!call.tee_signature || String(call.tee_verified ?? "").startsWith("replayed")) return null;
    const bytes = (text) => raw("0x" + String(text ?? "").replace(/^0x/, ""));
    const isHash = (text) => /^(0x)?[0-9a-fA-F]{64}$/.test(text ?? "");
    if (!IS_BASE64.test(call.tee_signature) || ![call.tee_id, call.tee_request_hash, call.tee_output_hash].every(isHash)) return undefined;
    if (call.tee_timestamp === undefined || call.tee_timestamp >= 1e15) return undefined;
    return {
      id: hex(bytes(call.tee_id)),
      signature: Buffer.from(call.tee_signature, "base64"),
      request: bytes(call.tee_request_hash),
      output: bytes(call.tee_output_hash),
      time: BigInt(call.tee_timestamp),
    };
  }

  // -- payments

  contradicts(entry, calls) {
    const { network } = this;
    const chain = `eip155:${network.chain_id}`;
    const spenders = { "permit2 upto": network.upto_proxy, "permit2 exact": network.exact_proxy, "eip3009 exact": network.asset.address };
    for (const method of ["permit2", "eip3009"]) spenders[`${method} ${BY_CHANNEL}`] = CHANNELS;
    const same = (one, other) => (one ?? "").toLowerCase() === (other ?? "").toLowerCase();
    if (entry.network !== chain) return true;
    const foreign = (terms) =>
      !same(terms.asset, network.asset.address) || !same(terms.spender, spenders[`${terms.transfer_method} ${terms.scheme}`] ?? "none");
    if (entry.signed.some(foreign)) return true;
    if (entry.status !== "settled" && entry.settled_atomic !== undefined) return true;
    const fitting = { signed: ["authorized", "served"], settled: ["settled"], expired: ["expired"], cancelled: ["cancelled"] };
    const terms = entry.signed.at(-1);
    const most = (name) => entry.signed.reduce((known, one) => (BigInt(one[name]) > BigInt(known) ? one[name] : known), 0);
    return calls.some(
      (call) =>
        ![...fitting[entry.status], "disputed"].includes(call.status) ||
        call.network !== entry.network ||
        call.scheme !== terms.scheme ||
        !same(call.facilitator, terms.facilitator) ||
        call.deadline !== most("deadline") ||
        !same(call.payer, entry.payer) ||
        !same(call.payee, terms.payee) ||
        !same(call.asset, entry.signed[0].asset) ||
        call.nonce !== entry.nonce ||
        call.authorized_atomic !== most("amount_atomic") ||
        call.authorization_settled_atomic !== entry.settled_atomic ||
        call.payment_tx_hash !== entry.tx_hash ||
        call.block_hash !== entry.block_hash ||
        call.block_number !== entry.block_number,
    );
  }

  async payment(entry, calls) {
    const paid = "the settlement is as the receipt says";
    const statement = ["expired", "cancelled"].includes(entry.status) ? "nothing was taken" : paid;
    if (this.contradicts(entry, calls) || this.contradictsChannel(entry)) return this.say("refuted", paid, entry.id);
    if (entry.voucher && entry.status === "settled") return;
    const before = this.said.length;
    try {
      this.sources.source(this.network.chain_id);
      if (entry.status === "settled") await this.settlement(entry, calls);
      else if (entry.status === "expired") await this.expiry(entry);
      else if (entry.status === "cancelled") await this.cancellation(entry);
      else this.say("undecided", statement, entry.id);
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      this.said.length = before;
      this.say("undecided", statement, entry.id);
    }
  }

  contradictsChannel(entry) {
    if (!entry.voucher) return false;
    const channel = this.channels.get(hex(word(entry.nonce)));
    const terms = entry.signed.at(-1);
    const same = (one, other) => (one ?? "").toLowerCase() === other.toLowerCase();
    return !(
      same(entry.payer, channel.payer) &&
      same(terms.payee, channel.receiver) &&
      same(terms.asset, channel.asset) &&
      same(terms.facilitator, channel.receiver_authorizer) &&
      ["signed", "settled"].includes(entry.status) &&
      (entry.tx_hash === undefined || channel.events.some((event) => event.tx_hash === entry.tx_hash)) &&
      isNamed(channel, this.network)
    );
  }

  async channel(channel) {
    const statement = "deposits, claims and refunds of the payment channel are as the file says";
    if (!isNamed(channel, this.network)) return this.say("refuted", statement, channel.id);
    const before = this.said.length;
    try {
      this.sources.source(this.network.chain_id);
      const moves = await this.moves(channel);
      if (!moves || !this.areInOrder(moves) || !this.areAsSaid(channel, moves)) return this.say("refuted", statement, channel.id);
      this.sayRead(statement, channel.id);
      const calls = this.entries.filter((entry) => entry.voucher && hex(word(entry.nonce)) === channel.id);
      const claims = moves.filter((move) => move.kind === "claim");
      if (claims.length) await this.voucherIn(channel, claims.at(-1), calls);
      this.paidBy(channel, moves, calls);
      await this.confirmed(channel, claims, calls);
      moves.forEach((move) => this.claims.set(place(move.log), channel.id));
      if (sumOf(moves, "claim") > calls.reduce((sum, entry) => sum + chargeOf(entry), 0n)) this.unexplained.add(channel.id);
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      this.said.length = before;
      this.say("undecided", statement, channel.id);
    }
  }

  async moves(channel) {
    const found = [];
    for (const where of channel.events) {
      const done = await receiptOf(this.sources, this.network.chain_id, where.tx_hash);
      if (!done?.ok || done.tx_hash !== where.tx_hash) return null;
      const log = done.logs.find((one) => one.log_index === BigInt(where.log_index));
      const move = log && moveOf(log);
      if (move?.channel !== channel.id) return null;
      found.push(move);
    }
    return found.sort((one, other) => Number(one.log.block_number - other.log.block_number || one.log.log_index - other.log.log_index));
  }

  areInOrder(moves) {
    const totals = {};
    for (const { kind, amount, total } of moves) {
      if (kind === "return") {
        if (totals.deposit !== undefined) totals.deposit -= amount;
        continue;
      }
      if ((totals[kind] ?? total - amount) !== total - amount) return false;
      totals[kind] = total;
      if (kind === "deposit" && total === amount) totals.claim ??= 0n;
    }
    return totals.deposit === undefined || (totals.claim ?? 0n) <= totals.deposit;
  }

  areAsSaid(channel, moves) {
    const said = { deposit: channel.deposited_atomic, claim: channel.claimed_atomic, return: channel.returned_atomic };
    return Object.entries(said).every(([kind, amount]) => sumOf(moves, kind) === BigInt(amount));
  }

  async voucherIn(channel, claim, calls) {
    const mined = await transactionOf(this.sources, this.network.chain_id, claim.log.tx_hash);
    const input = mined && mined.tx_hash === claim.log.tx_hash ? mined.input : Buffer.alloc(0);
    const payer = checksummed(channel.payer);
    const known = new Set(
      calls.flatMap((entry) => [BigInt(entry.voucher.base_atomic), BigInt(entry.voucher.base_atomic) + chargedOr(entry), BigInt(entry.voucher.max_atomic)]),
    );
    const wanted = parameters(channel);
    let [holds, tries] = [false, 0];
    for (let at = input.indexOf(wanted); at >= 0 && tries < MOST_TRIES; at = input.indexOf(wanted, at + 1)) {
      const most = number(input.subarray(at + wanted.length, at + wanted.length + 32));
      const digest = voucherDigest(this.network, channel.id, most);
      const canFit = checksummed(channel.payer_authorizer) === payer && most >= claim.total && known.has(most);
      for (const signature of signaturesIn(input, at + wanted.length)) {
        if ((tries += 1) > MOST_TRIES) break;
        holds ||= canFit && recovered(digest, signature) === payer;
      }
    }
    this.say(holds ? "proven" : "undecided", "the payer signed for this payment", channel.id);
  }

  paidBy(channel, moves, calls) {
    const statement = "the settlement is as the receipt says";
    const claims = moves.filter((move) => move.kind === "claim");
    const settled = calls.filter((entry) => entry.status === "settled");
    if (!claims.length && !settled.length) return this.say("undecided", statement, channel.id);
    const taken = sumOf(moves, "claim");
    const settledSum = (list) => list.reduce((sum, entry) => sum + BigInt(entry.settled_atomic ?? 0), 0n);
    const start = claims.reduce((least, move) => (least === null || move.total - move.amount < least ? move.total - move.amount : least), null) ?? 0n;
    let known = calls.reduce((sum, entry) => sum + chargeOf(entry), 0n);
    let reached = start;
    const baseOf = (entry) => BigInt(entry.voucher.base_atomic);
    for (const entry of [...calls].sort((one, other) => (baseOf(one) < baseOf(other) ? -1 : 1))) {
      if (baseOf(entry) > reached) known += baseOf(entry) - reached;
      if (endOf(entry) > reached) reached = endOf(entry);
    }
    const wrong = this.isTooEarly(settled, moves, settledSum) || settledSum(settled) > taken || taken > known;
    if (wrong) this.say("refuted", statement, channel.id);
    else this.sayRead(statement, channel.id);
  }

  isTooEarly(settled, moves, settledSum) {
    const isClaimOf = (entry) => (move) =>
      move.kind === "claim" &&
      move.log.tx_hash === entry.tx_hash &&
      move.log.block_number === BigInt(entry.block_number ?? 0) &&
      move.total >= endOf(entry);
    if (settled.some((entry) => entry.tx_hash !== undefined && !moves.some(isClaimOf(entry)))) return true;
    return [...new Set(settled.map((entry) => entry.block_number ?? 0))].some((height) => {
      const until = moves.filter((move) => move.log.block_number <= BigInt(height));
      const claimed = until.filter((move) => move.kind === "claim").reduce((most, move) => (move.total > most ? move.total : most), 0n);
      const [taken, left] = [sumOf(until, "claim"), sumOf(until, "deposit") - sumOf(until, "return")];
      if (settledSum(settled.filter((entry) => (entry.block_number ?? 0) <= height)) > taken) return true;
      const now = settled.filter((entry) => (entry.block_number ?? 0) === height);
      return left > taken && now.some((entry) => endOf(entry) > claimed);
    });
  }

  async confirmed(channel, claims, calls) {
    const statement = "the settlement is in a block of the chain";
    const settled = calls.filter((entry) => entry.status === "settled");
    const places = settled.map((entry) => [BigInt(entry.block_number ?? 0), entry.block_hash ?? "no block"]);
    if (claims.length) places.push([claims.at(-1).log.block_number, claims.at(-1).log.block_hash]);
    if (!places.length) return;
    const head = await blockOf(this.sources, this.network.chain_id, "latest");
    places.sort(([one], [other]) => Number(one - other));
    for (const [height, named] of places) {
      const there = await blockOf(this.sources, this.network.chain_id, "0x" + height.toString(16));
      if (there.hash !== named) return this.say("refuted", statement, channel.id);
    }
    if (head.number - places.at(-1)[0] + 1n < BigInt(this.network.confirmations ?? 3)) return this.say("undecided", statement, channel.id);
    this.sayRead(statement, channel.id);
  }

  signed(entry, input) {
    const longest = entry.signed.reduce((known, terms) => (terms.deadline > known.deadline ? terms : known));
    const signatures = input ? signaturesIn(input, Math.max(0, input.indexOf(word(entry.nonce)))) : [raw(entry.signature ?? "0x")];
    const wanted = input ? entry.signed.toReversed() : [longest];
    let [holds, tries] = [false, 0];
    for (const signature of signatures) {
      for (const terms of wanted) {
        if (holds || (tries += 1) > MOST_TRIES) break;
        if (terms.scheme === "upto" && !terms.facilitator) continue;
        holds = recovered(paymentDigest(terms, entry, this.network), signature) === checksummed(entry.payer);
      }
      if (holds || tries >= MOST_TRIES) break;
    }
    this.say(holds ? "proven" : "undecided", "the payer signed for this payment", entry.id);
    return holds;
  }

  found(entry, done, mined) {
    if (!done.ok) return null;
    const method = entry.signed[0].transfer_method;
    const all = this.entries.filter((one) => one.signed[0].transfer_method === method);
    if (method === "eip3009") {
      let left = done.logs;
      let mine = null;
      for (const one of all) {
        const asset = checksummed(one.signed[0].asset);
        const used = done.logs.find((log) => log.address === asset && log.topics.join() === [USED, topicOf(one.payer), hex(word(one.nonce))].join());
        const fitting = left.filter(isOf(one));
        if (!used || !fitting.length) continue;
        const amounts = one.signed.map((terms) => BigInt(terms.amount_atomic));
        const exact = fitting.filter((log) => amounts.includes(number(log.data)));
        const far = (log) => Math.abs(Number(log.log_index - used.log_index));
        const best = (exact.length ? exact : fitting).reduce((known, log) => (far(log) < far(known) ? log : known));
        left = left.filter((log) => log !== best);
        if (one === entry) mine = best;
      }
      return mine;
    }
    const spenders = [...new Set(all.flatMap((one) => one.signed.map((terms) => checksummed(terms.spender))))];
    let left = settledTransfers(done, spenders);
    const placed = all.map((one) => [nonceAt(mined.input, one), one]).filter(([at]) => at >= 0);
    for (const [at, one] of placed.sort(([first], [second]) => first - second)) {
      const stated = amountsAt(mined.input, at);
      const fitting = left.filter(isOf(one));
      if (!fitting.length) continue;
      const best = fitting.find((log) => stated.includes(number(log.data))) ?? fitting[0];
      left = left.filter((log) => log !== best);
      if (one === entry) return best;
    }
    return this.diverted(entry, done, mined);
  }

  diverted(entry, done, mined) {
    const at = BigInt(entry.nonce) > 2n ** 128n ? mined.input.indexOf(word(entry.nonce)) : -1;
    if (at < 0) return null;
    const stated = amountsAt(mined.input, at);
    const spenders = entry.signed.map((terms) => checksummed(terms.spender));
    const asset = checksummed(entry.signed[0].asset);
    const outgoing = settledTransfers(done, spenders).filter((log) => log.address === asset && log.topics[1] === topicOf(entry.payer));
    return outgoing.find((log) => stated.includes(number(log.data))) ?? null;
  }

  async settlement(entry, calls) {
    const [chain, statement] = [this.network.chain_id, "the settlement is as the receipt says"];
    const done = await receiptOf(this.sources, chain, entry.tx_hash ?? "");
    const mined = await transactionOf(this.sources, chain, entry.tx_hash ?? "");
    if (!done || !mined) return this.say("refuted", statement, entry.id);
    if (done.tx_hash !== entry.tx_hash || mined.tx_hash !== entry.tx_hash) return this.say("undecided", statement, entry.id);
    const signed = this.signed(entry, mined.input);
    const log = this.found(entry, done, mined);
    if (log) this.paid.set(entry.id, checksummed("0x" + log.topics[2].slice(26)));
    const payees = entry.signed.map((terms) => topicOf(terms.payee));
    if (
      !log ||
      number(log.data) !== BigInt(entry.settled_atomic ?? -1) ||
      (!payees.includes(log.topics[2]) && !(entry.dispute !== undefined && calls.every((call) => call.status === "disputed"))) ||
      log.block_number !== BigInt(entry.block_number ?? -1) ||
      log.block_hash !== entry.block_hash
    ) {
      return this.say("refuted", statement, entry.id);
    }
    const claim = `${log.tx_hash} ${log.log_index}`;
    if (entry.signed[0].transfer_method === "permit2" && !signed) this.say("undecided", statement, entry.id);
    else if (this.claims.has(claim)) this.say("refuted", statement, entry.id);
    else {
      this.claims.set(claim, entry.id);
      this.sayRead(statement, entry.id);
    }
    const head = await blockOf(this.sources, chain, "latest");
    const there = await blockOf(this.sources, chain, "0x" + BigInt(entry.block_number).toString(16));
    const confirmed = "the settlement is in a block of the chain";
    if (there.hash !== entry.block_hash) this.say("refuted", confirmed, entry.id);
    else if (head.number - there.number + 1n < BigInt(this.network.confirmations ?? 3)) this.say("undecided", confirmed, entry.id);
    else this.sayRead(confirmed, entry.id);
  }

  async expiry(entry) {
    const statement = "nothing was taken";
    if (!this.signed(entry, null)) return this.say("undecided", statement, entry.id);
    const isPermit = entry.signed[0].transfer_method === "permit2";
    const nonce = BigInt(entry.nonce);
    const keeper = isPermit ? this.network.permit2 : entry.signed[0].asset;
    const call = join(raw(isPermit ? "0x4fe02b44" : "0xe94a0102"), addressWord(entry.payer), word(isPermit ? nonce >> 8n : nonce));
    const [time, used] = await this.together([[MULTICALL, raw("0x0f28c97d")], [keeper, call]]);
    const isUsed = isPermit ? (used >> (nonce & 255n)) & 1n : used;
    const deadline = Math.max(...entry.signed.map((terms) => terms.deadline));
    if (isUsed || time <= BigInt(deadline)) return this.say("refuted", statement, entry.id);
    this.sayRead(statement, entry.id);
  }

  // tryBlockAndAggregate(false, calls) of Multicall3: the words that the calls return
  async together(calls) {
    const parts = calls.map(([to, call]) => join(addressWord(to), word(64), word(call.length), call, Buffer.alloc((32 - (call.length % 32)) % 32)));
    let at = 32 * parts.length;
    const offsets = parts.map((part) => ((at += part.length), word(at - part.length)));
    const input = join(raw("0x399542e9"), word(0), word(64), word(calls.length), ...offsets, ...parts);
    const answer = data(await this.sources.ask(this.network.chain_id, "eth_call", [{ to: MULTICALL, data: hex(input) }, "latest"]));
    const read = (offset) => (must(offset + 32 <= answer.length), Number(number(answer.subarray(offset, offset + 32))));
    const listed = read(64);
    must(read(listed) === calls.length);
    return calls.map((_, i) => {
      const one = listed + 32 + read(listed + 32 + 32 * i);
      const place = one + read(one + 32);
      must(read(one) === 1 && read(place) === 32);
      must(place + 64 <= answer.length);
      return number(answer.subarray(place + 32, place + 64));
    });
  }

  async cancellation(entry) {
    const statement = "nothing was taken";
    const done = await receiptOf(this.sources, this.network.chain_id, entry.tx_hash ?? "");
    const isPermit = entry.signed[0].transfer_method === "permit2";
    const nonce = BigInt(entry.nonce);
    const keeper = checksummed(isPermit ? this.network.permit2 : entry.signed[0].asset);
    const burns = (log) => {
      if (log.address !== keeper) return false;
      if (!isPermit) return log.topics.join() === [CANCELLED, topicOf(entry.payer), hex(word(nonce))].join();
      if (log.topics.join() !== [INVALIDATED, topicOf(entry.payer)].join() || log.data.length !== 64) return false;
      return number(log.data.subarray(0, 32)) === nonce >> 8n && (number(log.data.subarray(32)) >> (nonce & 255n)) & 1n;
    };
    const burned = done?.ok ? done.logs.find(burns) : undefined;
    if (!burned) return this.say("refuted", statement, entry.id);
    if (isPermit && (await this.isSpentBefore(burned, entry))) return this.say("undecided", statement, entry.id);
    this.sayRead(statement, entry.id);
  }

  // Permit2 lets a payer invalidate a nonce that was used
  async isSpentBefore(burned, entry) {
    const [chain, nonce, height] = [this.network.chain_id, BigInt(entry.nonce), burned.block_number];
    const call = hex(join(raw("0x4fe02b44"), addressWord(entry.payer), word(nonce >> 8n)));
    const at = "0x" + (height - 1n).toString(16);
    const bitmap = quantity(await this.sources.ask(chain, "eth_call", [{ to: this.network.permit2, data: call }, at]));
    if ((bitmap >> (nonce & 255n)) & 1n) return true;
    const span = { address: checksummed(entry.signed[0].asset), topics: [TRANSFER, topicOf(entry.payer)] };
    const block = "0x" + height.toString(16);
    const logs = await logsOf(this.sources, chain, { ...span, fromBlock: block, toBlock: block });
    const proxies = [this.network.upto_proxy, this.network.exact_proxy].map(checksummed);
    for (const log of logs) {
      if (log.log_index >= burned.log_index) continue;
      const done = await receiptOf(this.sources, chain, log.tx_hash);
      if (done && settledTransfers(done, proxies).length) return true;
    }
    return false;
  }

  // -- parties, shares, disputes

  async parties(entry, calls) {
    const known = (list, address) => (this.reader?.[list] ?? []).some((one) => one.toLowerCase() === address.toLowerCase());
    await this.payee(entry, calls, (payee) => known("payees", payee));
    const facilitators = entry.signed.map((terms) => terms.facilitator).filter(Boolean);
    const areKnown = facilitators.every((one) => known("facilitators", one));
    if (facilitators.length) this.say(areKnown ? "read" : "stated", "the facilitator is known", entry.id);
  }

  async payee(entry, calls, isKnown) {
    const statement = "the payee is a gateway's";
    const payees = new Set(entry.signed.map((terms) => checksummed(terms.payee)));
    if (this.paid.has(entry.id)) payees.add(this.paid.get(entry.id));
    const unknown = [...payees].filter((payee) => !isKnown(payee));
    if (!unknown.length) return this.say("read", statement, entry.id);
    if (!this.network.registry) return this.say("stated", statement, entry.id);
    const registered = new Set();
    try {
      for (const call of calls) {
        const proof = this.proof(call);
        const enclave = proof && (await this.enclave(proof.id));
        if (enclave) registered.add(enclave.payment);
        if (enclave && unknown.every((payee) => registered.has(payee))) {
          this.sources.source(this.network.registry.chain_id);
          return this.sayRead(statement, entry.id);
        }
      }
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      return this.say("undecided", statement, entry.id);
    }
    this.say("stated", statement, entry.id);
  }

  shares(entry, calls) {
    const shares = calls.map((call) => call.settled_atomic);
    if (entry.settled_atomic === undefined && shares.every((share) => share === undefined)) return;
    const sum = shares.reduce((total, share) => total + BigInt(share ?? 0), 0n);
    this.say(sum === BigInt(entry.settled_atomic ?? 0) ? "stated" : "refuted", "the calls' shares add up to the settlement", entry.id);
  }

  dispute(entry, call, calls) {
    const statement = "claims and facts agree, or the receipt says that they do not";
    let wrong = false;
    if (call.status !== "disputed" && entry.settled_atomic !== undefined) {
      const taken = BigInt(entry.settled_atomic);
      const costs = calls.map((one) => one.cost_atomic);
      const quoted = costs.reduce((total, cost) => total + BigInt(cost ?? 0), BigInt(costs.length));
      wrong = entry.signed.every((terms) => taken > BigInt(terms.amount_atomic));
      wrong ||= ["upto", BY_CHANNEL].includes(entry.signed.at(-1).scheme) && costs.every((cost) => cost !== undefined) && taken > quoted;
    }
    const claimed = isHex(call.claimed_payment_tx_hash, 64) ? call.claimed_payment_tx_hash.toLowerCase() : null;
    if (call.status !== "disputed" && claimed && entry.status !== "signed") wrong ||= claimed !== entry.tx_hash;
    this.say(wrong ? "refuted" : "stated", statement, call.call_id);
  }

  // -- calls

  async call(call) {
    const proof = this.proof(call);
    const latest = Math.min(this.file.created_at, Math.floor(Date.now() / 1000)) + 3600;
    const apart = call.created_at > latest ? true : proof ? Math.abs(call.created_at - Number(proof.time)) > 3600 : false;
    this.say(apart ? "refuted" : "stated", "model, tokens, times, endpoint and outcome of the call", call.call_id);
    const attested = proof ? this.attestation(call, proof) : null;
    if (attested) this.say(this.fits(attested, proof) ? "proven" : "refuted", "the enclave's key signed the call's hashes", call.call_id);
    else await this.signedByEnclave(call, proof);
    const isOwn = await this.data(call, proof);
    if (proof && !isOwn) this.say("stated", "the enclave's proof belongs to a call of this payer", call.call_id);
  }

  async enclave(id) {
    const { registry } = this.network;
    const answer = data(await this.sources.ask(registry.chain_id, "eth_call", [{ to: registry.address, data: "0x418b207d" + id.slice(2) }, "latest"]));
    const at = (offset, size = 32) => (must(offset + size <= answer.length && size <= 16384), answer.subarray(offset, offset + size));
    const int = (offset) => Number(number(at(offset)));
    const start = int(0);
    const dynamic = (index) => {
      const place = start + int(start + 32 * index);
      return at(place + 32, int(place));
    };
    const [endpoint, key, certificate] = [2, 3, 4].map(dynamic);
    must(endpoint && certificate);
    return { id: hex(keccak(key)), key, payment: checksummed(hex(at(start + 32).subarray(12))) };
  }

  // The key that an attestation names, for a reader who knows the image; else null
  attestation(call, proof) {
    const shown = this.file.of("attestation").find((one) => one.tee_id === proof.id);
    if (!shown) return null;
    const statement = "an attested enclave named the key as its own";
    const key = Buffer.from(shown.public_key_base64, "base64");
    const verdict = attestationOf(Buffer.from(shown.document_base64, "base64"), key, this.reader?.attestation_root_sha256 ?? AWS_ROOT);
    const holds = verdict.kind !== "proven" || hex(keccak(key)) === proof.id;
    this.say(holds ? verdict.kind : "refuted", statement, call.call_id);
    return holds && (this.reader?.pcr_hashes ?? []).includes(verdict.image) ? key : null;
  }

  fits(der, proof) {
    try {
      const key = createPublicKey({ key: der, format: "der", type: "spki" });
      const pss = { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 };
      const digest = keccak(proof.request, proof.output, word(proof.time));
      const isLong = key.asymmetricKeyType === "rsa" && key.asymmetricKeyDetails.modulusLength >= 2048;
      return isLong && verifySignature("sha256", digest, pss, proof.signature);
    } catch {
      return false;
    }
  }

  async signedByEnclave(call, proof) {
    const statement = "the enclave's key signed the call's hashes";
    if (proof === undefined) return this.say("refuted", statement, call.call_id);
    if (proof === null || !this.network.registry) return this.say("undecided", statement, call.call_id);
    let enclave;
    try {
      enclave = await this.enclave(proof.id);
      this.sources.source(this.network.registry.chain_id);
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      return this.say("undecided", statement, call.call_id);
    }
    if (enclave.id !== proof.id) return this.say("undecided", statement, call.call_id);
    if (!this.fits(enclave.key, proof)) return this.say("refuted", statement, call.call_id);
    this.sayRead(statement, call.call_id, "proven");
    this.sayRead("the key is registered as an enclave's", call.call_id);
  }

  async data(call, proof) {
    const statement = "the call's data were settled on chain";
    if (call.settlement_mode === "private") {
      this.say("stated", "nothing about the call's data was to be written on chain", call.call_id);
      return false;
    }
    const place = this.file.of("data_settlement").find((one) => one.call_id === call.call_id);
    const { relay } = this.network;
    const before = this.said.length;
    try {
      if (!place || !relay || !proof) throw new Missing("no event");
      this.sources.source(relay.chain_id);
      const done = await receiptOf(this.sources, relay.chain_id, place.tx_hash);
      const fits = (log) => log.log_index === BigInt(place.log_index) && log.address === checksummed(relay.address);
      const log = done?.ok ? done.logs.find(fits) : undefined;
      if (!log) throw new Refuted();
      if (call.settlement_mode === "batch") return await this.batch(call, proof, log);
      return await this.individual(call, proof, log);
    } catch (error) {
      if (!(error instanceof Missing || error instanceof Refuted)) throw error;
      this.said.length = before;
      this.say(error instanceof Refuted ? "refuted" : "undecided", statement, call.call_id);
      return false;
    }
  }

  async batch(call, proof, log) {
    if (log.topics.length !== 2 || log.topics[0] !== BATCH) throw new Refuted();
    const blob = await this.sources.blob(bytesAt(log.data, 1).toString("utf8"), this.reader?.blob_url);
    if (!blob) throw new Missing("no blob");
    const tree = treeOf(blob);
    if (hex(tree.root) !== log.topics[1] || BigInt(tree.leaves.length) !== number(log.data.subarray(0, 32))) throw new Refuted();
    if (!tree.leaves.includes(hex(merkleLeaf(raw(proof.id), proof.request, proof.output, proof.signature, proof.time)))) throw new Refuted();
    this.sayRead("the call's data were settled on chain", call.call_id);
    return false;
  }

  async individual(call, proof, log) {
    if (log.topics.length !== 3 || log.topics[0] !== INDIVIDUAL) throw new Refuted();
    const [request, output, time] = [0, 32, 64].map((start) => log.data.subarray(start, start + 32));
    const id = bytesAt(log.data, 3).toString("utf8");
    const same =
      log.topics[1] === proof.id &&
      log.topics[2] === topicOf(call.payer) &&
      request.equals(proof.request) &&
      output.equals(proof.output) &&
      number(time) === proof.time &&
      bytesAt(log.data, 4).equals(proof.signature);
    if (!same) throw new Refuted();
    this.sayRead("the call's data were settled on chain", call.call_id);
    const named = (statement, claimed, fact) => {
      if (claimed === null) return;
      if (claimed === fact) this.sayRead(`the gateway named the right ${statement} for the data settlement`, call.call_id);
      else this.say("refuted", `the gateway named the right ${statement} for the data settlement`, call.call_id);
    };
    named("transaction", isHex(call.data_tx_hash, 64) ? call.data_tx_hash.toLowerCase() : null, log.tx_hash);
    named("blob", call.data_blob_id ?? null, id);
    const blob = await this.sources.blob(id, this.reader?.blob_url);
    const record = "the blob is the record of this call";
    if (!blob) this.say("undecided", record, call.call_id);
    else if (isRecordOf(blob, { ...proof, id: raw(proof.id), payer: raw(call.payer) })) this.sayRead(record, call.call_id);
    else this.say("refuted", record, call.call_id);
    this.sayRead("the enclave's proof belongs to a call of this payer", call.call_id);
    return true;
  }

  // -- completeness

  async complete(payer) {
    const statement = "all settlements of the period are in this file";
    const { period } = this.file;
    if (!period) return this.say("undecided", statement, payer);
    if (!this.sources.rpc) return this.say("stated", statement, payer);
    const [chain, asset] = [this.network.chain_id, this.network.asset.address];
    const span = { address: asset, fromBlock: "0x" + period.from_block.toString(16), toBlock: "0x" + period.to_block.toString(16) };
    const logs = (topic) => logsOf(this.sources, chain, { ...span, topics: [topic, topicOf(payer)] });
    const used = new Set((await logs(USED)).map((log) => log.tx_hash));
    const proxies = [this.network.upto_proxy, this.network.exact_proxy].map(checksummed);
    const isMine = (log) =>
      log.address === checksummed(asset) && isTransfer(log) && log.topics[1] === topicOf(payer) && log.data.some((byte) => byte);
    const own = [...this.channels.values()].filter((channel) => checksummed(channel.payer) === payer).map((channel) => channel.id);
    const found = [];
    for (const txHash of new Set((await logs(TRANSFER)).map((log) => log.tx_hash))) {
      const done = await receiptOf(this.sources, chain, txHash);
      const [paidIn, deposits] = depositsIn(done, isMine);
      const moved = used.has(txHash) ? done.logs.filter(isTransfer) : settledTransfers(done, proxies);
      found.push(...moved.filter((log) => isMine(log) && !paidIn.has(place(log))), ...deposits.map((move) => move.log));
      own.push(...deposits.map((move) => move.channel));
    }
    if (own.length) {
      const query = { ...span, address: CHANNELS, topics: [CLAIMED, [...new Set(own)]] };
      found.push(...(await logsOf(this.sources, chain, query)));
    }
    const head = await blockOf(this.sources, chain, "latest");
    const isMissing = found.some((log) => !this.claims.has(place(log))) || own.some((id) => this.unexplained.has(id));
    if (isMissing) this.say("refuted", statement, payer);
    else if (head.number < BigInt(period.to_block)) this.say("undecided", statement, payer);
    else this.sayRead(statement, payer);
  }
}

class Refuted extends Error {}

const MOST_TRIES = 128;

// Behind this place first, then before it
function* signaturesIn(input, start) {
  for (const [first, end] of [[start, input.length], [0, start]]) {
    for (let at = input.indexOf(word(65), first); at >= 0 && at < end; at = input.indexOf(word(65), at + 1)) {
      yield input.subarray(at + 32, at + 97);
    }
  }
}

// What a call on a channel was charged; its most, where that is not known
const chargedOr = ({ voucher }) => BigInt(voucher.charged_atomic ?? BigInt(voucher.max_atomic) - BigInt(voucher.base_atomic));
const endOf = (entry) => BigInt(entry.voucher.base_atomic) + chargedOr(entry);
const chargeOf = (entry) => {
  if (entry.status === "settled") return BigInt(entry.settled_atomic ?? 0);
  return chargedOr(entry) > 0n ? chargedOr(entry) : 0n;
};

function depositsIn(done, isMine) {
  const [paidIn, deposits] = [new Set(), []];
  let pending = [];
  for (const log of inOrder(done.logs)) {
    if (isMine(log) && COLLECTORS.some((one) => topicOf(one) === log.topics[2])) pending.push(log);
    else if (moveOf(log)?.kind === "deposit") {
      if (pending.length) deposits.push(moveOf(log));
      pending.forEach((one) => paidIn.add(place(one)));
      pending = [];
    }
  }
  return [paidIn, deposits];
}

function bytesAt(content, index) {
  const at = Number(number(content.subarray(32 * index, 32 * index + 32)));
  if (at + 32 > content.length) throw new Refuted();
  const length = Number(number(content.subarray(at, at + 32)));
  if (at + 32 + length > content.length || length > 16384) throw new Refuted();
  return content.subarray(at + 32, at + 32 + length);
}

function merkleLeaf(id, request, output, signature, time) {
  const padding = Buffer.alloc((32 - (signature.length % 32)) % 32);
  return keccak(keccak(join(Buffer.alloc(32 - id.length), id), request, output, word(160), word(time), word(signature.length), signature, padding));
}

const pair = (one, other) => (Buffer.compare(one, other) < 0 ? keccak(one, other) : keccak(other, one));

function treeOf(blob) {
  try {
    const dump = JSON.parse(blob.toString("utf8"));
    const types = ["bytes32", "bytes32", "bytes32", "bytes", "uint256"];
    if (dump.format !== "standard-v1" || dump.leafEncoding.join() !== types.join()) throw new Refuted();
    const nodes = new Array(2 * dump.values.length - 1);
    for (const { treeIndex, value } of dump.values) {
      if (nodes[treeIndex] || treeIndex < dump.values.length - 1 || treeIndex >= nodes.length) throw new Refuted();
      const [id, request, output, signature, time] = value;
      nodes[treeIndex] = merkleLeaf(raw(id), raw(request), raw(output), raw(signature), BigInt(time));
    }
    for (let i = dump.values.length - 2; i >= 0; i--) nodes[i] = pair(nodes[2 * i + 1], nodes[2 * i + 2]);
    if (nodes.map(hex).join() !== dump.tree.map((one) => one.toLowerCase()).join()) throw new Refuted();
    return { root: nodes[0], leaves: nodes.slice(dump.values.length - 1).map(hex) };
  } catch {
    throw new Refuted();
  }
}

// -- texts of records, hashed as docs/wire.md says: JSON as Python writes it

const isHashOf = (hashes, fact) => hashes.length === 0 || hashes.some((one) => one === null || one.equals(fact));
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

class Float {
  constructor(value) {
    this.text = Number.isInteger(value) ? `${value}.0` : String(value);
  }
}

function pythonJson(value) {
  if (value instanceof Float) return value.text;
  if (typeof value === "string") return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (one) => "\\u" + one.charCodeAt(0).toString(16).padStart(4, "0"));
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  if (isObject(value)) return `{${Object.keys(value).sort().map((name) => `${pythonJson(name)}: ${pythonJson(value[name] ?? null)}`).join(", ")}}`;
  return JSON.stringify(value ?? null);
}

const hashOf = (value) => keccak(utf8(pythonJson(value)));
const callOf = ({ id, type, function: called }) => ({ id, type: type ?? "function", function: { name: called?.name, arguments: called?.arguments } });

function messageOf(message, contentOf) {
  const { role, content } = message;
  if (role === "system" || role === "developer") return { role: "system", content };
  if (role === "tool") return { role, content, tool_call_id: message.tool_call_id };
  if (role !== "assistant") return { role, content: contentOf(content) };
  return { role, content: content || "", ...(message.tool_calls?.length ? { tool_calls: message.tool_calls.map(callOf) } : {}) };
}

function partOf(part) {
  if (part.type === "text") return { type: "text", text: part.text || "" };
  const filename = part.file?.filename || part.filename;
  return { type: part.type, ...(filename ? { filename } : {}) };
}

// null: a hash that this verifier cannot make (lists as Python prints them)
function requestHashes(said) {
  if (typeof said === "string") return said ? [keccak(utf8(said))] : [];
  if (!isObject(said) || !(said.messages?.length > 0)) return [];
  const form = (contentOf) => {
    const request = { model: said.model, messages: said.messages.map((one) => messageOf(one, contentOf)), temperature: new Float(Number(said.temperature ?? 0)) };
    for (const name of ["max_tokens", "stop", "tools", "response_format"]) {
      const is = said[name] && (!Array.isArray(said[name]) || said[name].length);
      if (is) request[name] = said[name];
    }
    return said.web_search ? { ...request, web_search: true } : request;
  };
  const hasLists = said.messages.some((one) => !["system", "developer", "assistant", "tool"].includes(one.role) && Array.isArray(one.content));
  const forms = [form((content) => (Array.isArray(content) ? content.map(partOf) : content))];
  if (said.max_tokens === 0) forms.push(...forms.map((one) => ({ ...one, max_tokens: 0 })));
  if (said.web_search) forms.push(...forms.map(({ web_search, ...rest }) => rest));
  return [...forms.map(hashOf), ...(hasLists ? [null] : [])];
}

function answerHashes(record) {
  const said = "output" in record ? record.output : record.response;
  if (typeof said === "string") return [keccak(utf8(said))];
  if (!isObject(said)) return [];
  const reason = said.finish_reason || record.finish_reason;
  const [choice] = said.choices || [];
  const message = choice ? choice.message || {} : isObject(said.message) ? said.message : said;
  const ended = (choice && choice.finish_reason) || reason;
  const found = [];
  if (message.tool_calls?.length && ended !== "stop") found.push(hashOf(message.tool_calls.map(callOf)));
  if (message.content != null && ended !== "tool_calls") found.push(typeof message.content === "string" ? keccak(utf8(message.content)) : null);
  return found;
}

function isRecordOf(blob, event) {
  try {
    const record = JSON.parse(blob.toString("utf8"));
    const member = (...names) => [record, record.output ?? {}].flatMap((place) => names.map((name) => place[name])).find((one) => one != null);
    const isText = /^(0x)?([0-9a-fA-F]{2})+$/;
    const bytes = (text) => (isText.test(text) ? raw("0x" + text.replace(/^0x/, "")) : Buffer.from(text, "base64"));
    const agrees = (said, fact) => said === undefined || bytes(said).equals(fact);
    const signature = member("teeSignature", "tee_signature");
    const hashes = [
      member("inputHash", "input_hash", "teeRequestHash", "tee_request_hash"),
      member("outputHash", "output_hash", "teeOutputHash", "tee_output_hash"),
    ];
    const time = member("timestamp", "tee_timestamp");
    if (signature === undefined && hashes.includes(undefined)) return false;
    return (
      agrees(signature, event.signature) &&
      agrees(hashes[0], event.request) &&
      agrees(hashes[1], event.output) &&
      agrees(member("teeId", "tee_id"), event.id) &&
      agrees(member("ethAddress", "eth_address"), event.payer) &&
      (time === undefined || BigInt(time) === event.time) &&
      isHashOf(requestHashes("input" in record ? record.input : record.request), event.request) &&
      isHashOf(answerHashes(record), event.output)
    );
  } catch {
    return false;
  }
}

// -- attestation documents: COSE_Sign1 around CBOR

const AWS_ROOT = "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b";

function cbor(content) {
  let at = 0;
  const take = (size) => {
    if (at + size > content.length) throw new Refuted();
    return content.subarray(at, (at += size));
  };
  const value = () => {
    const [first] = take(1);
    const [major, info] = [first >> 5, first & 31];
    if (first === 0xf6) return null;
    if (info > 27 || major > 5) throw new Refuted();
    const size = info < 24 ? info : Number(number(take(2 ** (info - 24))));
    if (major === 0) return size;
    if (major === 1) return -1 - size;
    if (major === 2) return Buffer.from(take(size));
    if (major === 3) return take(size).toString("utf8");
    if (major === 4) return Array.from({ length: size }, value);
    return new Map(Array.from({ length: size }, () => [value(), value()]));
  };
  const found = value();
  return found;
}

function attestationOf(content, key, root) {
  try {
    const [header, rest, payload, signature] = cbor(content[0] === 0xd2 ? content.subarray(1) : content);
    if (rest.size || signature.length !== 96 || cbor(header).get(1) !== -35) throw new Refuted();
    const said = cbor(payload);
    const [bundle, signer, pcrs] = ["cabundle", "certificate", "pcrs"].map((name) => said.get(name));
    const user = said.get("user_data");
    if (said.get("digest") !== "SHA384") throw new Refuted();
    if (createHash("sha256").update(bundle[0]).digest("hex") !== root) return { kind: "undecided" };
    const chain = [...bundle, signer].map((der) => new X509Certificate(der));
    const at = new Date(said.get("timestamp"));
    chain.forEach((certificate, i) => {
      const issuer = chain[Math.max(0, i - 1)];
      if (i > 0 && !(issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey))) throw new Refuted();
      if (at < new Date(certificate.validFrom) || at > new Date(certificate.validTo)) throw new Refuted();
    });
    const length = (bytes) => (bytes.length < 24 ? [bytes.length] : bytes.length < 256 ? [24, bytes.length] : [25, bytes.length >> 8, bytes.length & 255]);
    const head = (major, bytes) => (([first, ...more]) => Buffer.from([(major << 5) | first, ...more]))(length(bytes));
    const signed = join([0x84], head(3, "Signature1"), utf8("Signature1"), head(2, header), header, [0x40], head(2, payload), payload);
    const options = { key: chain.at(-1).publicKey, dsaEncoding: "ieee-p1363" };
    if (!verifySignature("sha384", signed, options, signature)) throw new Refuted();
    const image = [0, 1, 2].map((i) => pcrs.get(i));
    if (image.every((pcr) => pcr.every((byte) => byte === 0))) throw new Refuted();
    if (user.length !== 68 || !user.subarray(36).equals(sha256(key))) throw new Refuted();
    return { kind: "proven", image: hex(keccak(...image)) };
  } catch {
    return { kind: "refuted" };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const task = JSON.parse(line);
  try {
    const file = read(Buffer.from(task.file, "base64"));
    const earlier = task.earlier ? read(Buffer.from(task.earlier, "base64")) : null;
    const said = await new Verifier(file, task.network, task.rpc).findings(earlier);
    if (task.rpc) {
      const known = new Set(said.map((finding) => finding.join()));
      const recorded = await new Verifier(file, task.network, null).findings(earlier);
      said.push(...recorded.filter((finding) => finding[0] === "refuted" && !known.has(finding.join())));
    }
    console.log(JSON.stringify(said));
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    console.log(JSON.stringify("unreadable"));
  }
}
