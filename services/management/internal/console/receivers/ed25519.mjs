// A receiver of notifications that are signed with ed25519: PUBLIC_KEY=whpk_... PORT=8900 node ed25519.mjs
import { createPublicKey, verify as verifySignature } from "node:crypto";
import { createServer } from "node:http";

const TOLERANCE = 5 * 60; // seconds between the sender's clock and ours
const SPKI = Buffer.from("302a300506032b6570032100", "hex"); // what precedes the 32 bytes of a key in its DER form

// True when body (a Buffer: the bytes as they came) is from whoever holds the private key, a short while ago.
export function verify(publicKey, headers, body) {
  const id = headers["webhook-id"], timestamp = headers["webhook-timestamp"];
  const signatures = headers["webhook-signature"];
  if (!id || !signatures || !(Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE)) return false;
  const raw = Buffer.from(publicKey.replace(/^whpk_/, ""), "base64");
  const key = createPublicKey({ key: Buffer.concat([SPKI, raw]), format: "der", type: "spki" });
  const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  // Two signatures come while the key pair is being rotated: one good one is enough.
  return signatures.split(" ").filter((s) => s.startsWith("v1a,"))
    .some((s) => verifySignature(null, signed, key, Buffer.from(s.slice(4), "base64")));
}

createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = Buffer.concat(parts);
  if (!verify(process.env.PUBLIC_KEY, request.headers, body)) {
    response.writeHead(401).end();
    return;
  }
  console.log(request.headers["gancho-event"], body.toString());
  response.writeHead(204).end();
}).listen(process.env.PORT ?? 8900, "127.0.0.1");
