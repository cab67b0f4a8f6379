// A receiver of notifications: SECRET=whsec_... PORT=8900 node receiver.mjs
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const TOLERANCE = 5 * 60; // seconds between the sender's clock and ours

// True when body (a Buffer: the bytes as they came) is from whoever holds secret (whsec_...), a short while ago.
export function verify(secret, headers, body) {
  const id = headers["webhook-id"], timestamp = headers["webhook-timestamp"];
  const signatures = headers["webhook-signature"];
  if (!id || !signatures || !(Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE)) return false;
  const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
  const want = Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64"));
  // Two signatures come while the secret is being rotated: one good one is enough.
  return signatures.split(" ").map((s) => Buffer.from(s))
    .some((s) => s.length === want.length && timingSafeEqual(s, want));
}

const seen = new Set(); // ids already processed; a real receiver keeps them in its database

createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = Buffer.concat(parts);
  if (!verify(process.env.SECRET, request.headers, body)) {
    response.writeHead(401).end();
    return;
  }
  if (!seen.has(request.headers["webhook-id"])) { // the same notification can come twice
    seen.add(request.headers["webhook-id"]);
    console.log(request.headers["gancho-event"], body.toString());
  }
  response.writeHead(204).end(); // within 5 s: what takes longer belongs into a queue of yours
}).listen(process.env.PORT ?? 8900, "127.0.0.1");
